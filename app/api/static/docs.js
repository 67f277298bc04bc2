"use strict";

// Draws openapi.json. Text goes in as text, never as markup.
function element(tag, text, ...children) {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  node.append(...children.filter(Boolean));
  return node;
}

function table(head, rows) {
  const cells = (tag, values) => element("tr", "", ...values.map((value) => element(tag, String(value ?? ""))));
  return element("table", "", element("thead", "", cells("th", head)), element("tbody", "", ...rows.map((row) => cells("td", row))));
}

function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  const several = schema.oneOf || schema.anyOf;
  if (several) return several.map(typeOf).join(" or ");
  if (schema.type === "array") return "list of " + (typeOf(schema.items) || "values");
  if (schema.format === "binary") return "bytes of a file";
  const range = schema.minimum !== undefined ? ` ${schema.minimum} to ${schema.maximum ?? "…"}` : "";
  const otherwise = schema.default !== undefined && schema.default !== null ? `, default ${schema.default}` : "";
  return (schema.type || "") + range + otherwise;
}

function operation(method, path, spec) {
  const summary = element("summary", "", Object.assign(element("span", method.toUpperCase()), { className: "method" }), ` ${path}  ${spec.summary}`);
  const parameters = (spec.parameters || []).map((p) => [p.name, typeOf(p.schema), p.description]);
  const bodies = Object.entries(spec.requestBody?.content || {}).map(([type, body]) => [
    type,
    body.schema.properties ? Object.entries(body.schema.properties).map(([name, s]) => `${name}: ${typeOf(s)}`).join(", ") : typeOf(body.schema),
  ]);
  const answers = Object.entries(spec.responses).map(([status, answer]) => [
    status,
    answer.description,
    Object.entries(answer.content || {}).map(([type, body]) => `${typeOf(body.schema)} (${type})`).join(", "),
  ]);
  return element("details", "", summary,
    parameters.length && element("h3", "Parameters"), parameters.length && table(["Name", "Type", "Meaning"], parameters),
    bodies.length && element("h3", "Body"), bodies.length && table(["Content-Type", "Content"], bodies),
    element("h3", "Answers"), table(["Status", "When", "Body"], answers));
}

function schema(name, spec) {
  const rows = Object.entries(spec.properties || {}).map(([field, s]) => [field, typeOf(s), s.description]);
  return element("details", "", element("summary", name), element("p", spec.description), rows.length && table(["Field", "Type", "Meaning"], rows));
}

async function draw() {
  const response = await fetch("openapi.json");
  const api = await response.json();
  const operations = Object.entries(api.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, spec]) => operation(method, path, spec)));
  document.getElementById("operations").replaceChildren(...operations);
  document.getElementById("schemas").replaceChildren(...Object.entries(api.components.schemas).map(([name, spec]) => schema(name, spec)));
  return api;
}

const drawn = draw();
