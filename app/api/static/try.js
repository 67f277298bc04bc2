"use strict";

// The form: sends a file as any client would, and shows what comes back. `element` and `drawn` are docs.js's.
const part = (name) => document.getElementById(`try-${name}`);
const percent = (probability) => `${(100 * probability).toFixed(1)}%`;
let tasks = {}; // of the models that are ready, by name
let preview = null;

function keyHeader() {
  const key = part("key").value;
  return key ? { "X-API-Key": key } : {};
}

async function listModels() {
  const response = await fetch("models", { headers: keyHeader() });
  if (!response.ok) return; // for want of a key; the default answers all the same
  const ready = (await response.json()).models.filter((model) => model.state === "ready");
  const chosen = part("model").value;
  tasks = Object.fromEntries(ready.map((model) => [model.name, model.task]));
  const options = ready.map((model) => new Option(`${model.name} (${model.task})`, model.name));
  part("model").replaceChildren(new Option("the default", ""), ...options);
  part("model").value = chosen in tasks ? chosen : "";
}

function showPreview() {
  const file = part("file").files[0];
  if (preview) URL.revokeObjectURL(preview.src);
  const shown = file ? document.createElement(file.type.startsWith("video/") ? "video" : "img") : null;
  preview = shown;
  part("view").hidden = !file;
  if (!file) return;
  shown.addEventListener("error", () => { if (preview === shown) part("view").hidden = true; }); // not of a browser's formats
  Object.assign(shown, { src: URL.createObjectURL(file), controls: true, muted: true, alt: file.name });
  part("view").replaceChildren(shown, element("figcaption", file.name));
}

function bar({ label, probability }) {
  const meter = Object.assign(document.createElement("meter"), { value: probability, textContent: percent(probability) });
  return element("tr", "", element("td", label), element("td", "", meter), element("td", percent(probability)));
}

function clipRow(clip) {
  const span = element("button", `${clip.start_s.toFixed(2)} to ${clip.end_s.toFixed(2)} s`);
  span.type = "button";
  span.addEventListener("click", () => { preview.currentTime = clip.start_s; preview.play?.(); });
  return element("tr", "", element("td", "", span), element("td", clip.label), element("td", percent(clip.probability)));
}

function drawResult(result) {
  const { model, latency_ms: spent } = result;
  const stages = Object.entries(spent).map(([stage, milliseconds]) => `${stage} ${milliseconds.toFixed(1)}`).join(", ");
  const warning = (model.noop && "No model was run: these classes mean nothing.")
    || (model.random_weights && "The weights are random: these classes mean nothing.") || (model.demo && "This is a small demo model.");
  const clips = result.clips || [];
  return [
    element("p", `${model.name} version ${model.version}, ${model.engine} ${model.precision}. ${warning || ""}`),
    element("table", "", element("tbody", "", ...result.predictions.map(bar))),
    clips.length && element("table", "", element("tbody", "", ...clips.map(clipRow))),
    element("p", `Milliseconds: ${stages}.`),
  ].filter(Boolean);
}

function drawProblem(problem) {
  const code = Object.assign(element("a", problem.code), { href: `#${problem.code}` });
  return [element("p", `${problem.status} ${problem.title}, `, code, `: ${problem.detail}`)];
}

function show(drawn, answer) {
  part("result").replaceChildren(...drawn);
  part("answer").textContent = answer ? JSON.stringify(answer, null, 2) : "";
  part("raw").hidden = !answer;
}

async function classify(event) {
  event.preventDefault();
  const file = part("file").files[0];
  if (!file) return show([element("p", "Choose a file first.")]);
  show([element("p", "…")]);
  const model = part("model").value;
  const task = tasks[model] || (file.type.startsWith("video/") ? "video" : "image");
  const form = new FormData();
  form.append("file", file);
  const query = new URLSearchParams(model ? { model } : {});
  try {
    const response = await fetch(`classify/${task}?${query}`, { method: "POST", body: form, headers: keyHeader() });
    const answer = await response.json();
    show(response.ok ? drawResult(answer) : drawProblem(answer), answer);
  } catch (error) {
    show([element("p", String(error))]);
  }
}

function take(event, files) {
  if (!files?.length) return;
  event.preventDefault();
  part("file").files = files;
  showPreview();
}

part("file").addEventListener("change", showPreview);
part("key").addEventListener("change", listModels);
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => take(event, event.dataTransfer.files));
document.addEventListener("paste", (event) => take(event, event.clipboardData.files));
document.getElementById("try").addEventListener("submit", classify);
drawn.then((api) => api.paths["/models"].get.security || listModels()); // who needs a key is asked again with it
