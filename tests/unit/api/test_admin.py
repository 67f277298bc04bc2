"""The admin calls: who may make them, what they ask for, and what they answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from test_application import SteeredService, ask, build

from app.api.keys import KeyRing
from app.errors import ChangeRefused, HieraError, Unavailable, UnknownModel
from app.serving.changes import Change, Order, Report, Standing, VersionOnDisk

CALLS = [
    ("GET", "/admin/models"),
    ("PUT", "/admin/models/m"),
    ("DELETE", "/admin/models/m"),
    ("POST", "/admin/reload"),
    ("GET", "/admin/nothing-there"),
]
SWAPPED = Change("m", "swapped", 3, 2, "passed the golden check", None, 1.23456, 0.5, True)


class Office:
    """Takes orders down and answers with what it was given."""

    def __init__(self, outcome: Report | HieraError) -> None:
        self.outcome = outcome
        self.orders: list[Order] = []

    async def __call__(self, order: Order) -> Report:
        self.orders.append(order)
        if isinstance(self.outcome, HieraError):
            raise self.outcome
        return self.outcome


def call(
    method: str,
    path: str,
    key: str | None = "root",
    *,
    office: Office | None = None,
    use: tuple[str, ...] = (),
    admin: tuple[str, ...] = ("op:root",),
) -> httpx.Response:
    app = build(
        SteeredService(),
        keys=KeyRing(use),
        admin_keys=KeyRing(admin, called="admin key"),
        administer=office or Office(Report((SWAPPED,))),
    )
    headers: dict[str, Any] = {"x-api-key": key} if key is not None else {}
    return ask(app, method, path, headers={**headers, "x-request-id": "r-1"})


def said(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_without_an_admin_key_set_they_are_off_for_everybody(method: str, path: str) -> None:
    office = Office(Report())
    for key in (None, "root", "use"):
        assert said(call(method, path, key, office=office, admin=(), use=("alice:use",))) == (403, "admin_off")
    assert office.orders == []


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_only_an_admin_key_opens_them(method: str, path: str) -> None:
    office = Office(Report())
    for key in (None, "", "roo", "op", "op:root"):
        assert said(call(method, path, key, office=office, use=("alice:use",))) == (401, "unauthorized")
    assert said(call(method, path, "use", office=office, use=("alice:use",))) == (403, "forbidden")
    assert office.orders == []


def test_an_admin_key_opens_nothing_else_where_keys_are_asked_for() -> None:
    assert said(call("GET", "/models", "root", use=("alice:use",))) == (403, "forbidden")
    assert call("GET", "/health/live", "root", use=("alice:use",)).status_code == 200


def test_a_secret_of_both_rings_opens_neither() -> None:
    for path in ("/models", "/admin/models"):
        assert said(call("GET", path, "both", use=("alice:both",), admin=("op:both",))) == (403, "forbidden")


def test_who_sends_a_key_of_each_ring_may_do_both() -> None:
    rings = {"keys": KeyRing(["alice:use"]), "admin_keys": KeyRing(["op:root"])}
    app = build(SteeredService(), administer=Office(Report()), **rings)  # type: ignore[arg-type]
    for method, path in (("POST", "/classify/image"), ("GET", "/admin/models")):
        for key, token in (("use", "root"), ("root", "use")):
            headers = [("Authorization", f"Bearer {token}"), ("X-API-Key", key)]
            for ordered in (headers, headers[::-1]):
                assert ask(app, method, path, headers=ordered, content=b"x").status_code == 200


def test_a_call_becomes_an_order_with_the_name_of_its_key() -> None:
    office = Office(Report((SWAPPED,)))
    for method, path in (
        ("GET", "/admin/models"),
        ("PUT", "/admin/models/m"),
        ("PUT", "/admin/models/m?version=7"),
        ("DELETE", "/admin/models/m"),
        ("POST", "/admin/reload"),
    ):
        assert call(method, path, office=office).status_code == 200
    assert office.orders == [
        Order("survey", "op", None, None, "r-1"),
        Order("load", "op", "m", None, "r-1"),
        Order("load", "op", "m", 7, "r-1"),
        Order("unload", "op", "m", None, "r-1"),
        Order("reload", "op", None, None, "r-1"),
    ]


def test_a_change_is_answered_in_full() -> None:
    swapped = {
        "name": "m",
        "outcome": "swapped",
        "version": 3,
        "replaced": 2,
        "golden": "passed the golden check",
        "reason": None,
        "ready_seconds": 1.235,
        "drain_seconds": 0.5,
        "drained": True,
    }
    assert call("PUT", "/admin/models/m").json() == swapped
    assert call("POST", "/admin/reload").json() == {"changes": [swapped]}


def test_the_list_has_what_is_on_disk_beside_what_serves() -> None:
    standing = Standing(
        "m", 2, "ready", None, "ab", (VersionOnDisk(2, "ab", True), VersionOnDisk(3, None, False)), "swap"
    )
    assert call("GET", "/admin/models", office=Office(Report((), (standing,)))).json() == {
        "models": [
            {
                "name": "m",
                "version": 2,
                "state": "ready",
                "reason": None,
                "fingerprint": "ab",
                "on_disk": [
                    {"version": 2, "fingerprint": "ab", "serves": True},
                    {"version": 3, "fingerprint": None, "serves": False},
                ],
                "pending": "swap",
            }
        ]
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ChangeRefused("m version 3 is refused: model.onnx was changed"), 409, "change_refused"),
        (UnknownModel("the repository has no model named m"), 404, "unknown_model"),
        (Unavailable("the server is shutting down", code="draining"), 503, "draining"),
    ],
)
def test_what_cannot_be_done_says_why(error: HieraError, status: int, code: str) -> None:
    response = call("PUT", "/admin/models/m", office=Office(error))
    assert said(response) == (status, code)
    assert response.json()["detail"] == f"{error}."


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/admin/models/m?version=0"),
        ("PUT", "/admin/models/m?version=x"),
        ("PUT", "/admin/models/m?version="),
        ("PUT", "/admin/models/m?version=1&version=2"),
        ("PUT", "/admin/models/m?versoin=1"),
        ("DELETE", "/admin/models/m?version=1"),
        ("POST", "/admin/reload?name=m"),
        ("GET", "/admin/models?x"),
    ],
)
def test_a_parameter_that_is_not_understood_changes_nothing(method: str, path: str) -> None:
    office = Office(Report((SWAPPED,)))
    assert said(call(method, path, office=office)) == (422, "invalid_parameter")
    assert office.orders == []


def test_the_document_has_them_with_their_own_security_and_every_answer() -> None:
    document = ask(build(SteeredService()), "GET", "/openapi.json").json()
    both: list[dict[str, list[str]]] = [{"admin_key": []}, {"admin_bearer": []}]
    put = document["paths"]["/admin/models/{name}"]["put"]
    assert put["security"] == both
    assert set(put["responses"]) == {"200", "401", "403", "404", "409", "422", "503"}
    assert [parameter["name"] for parameter in put["parameters"]] == ["name", "version"]
    assert put["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/ModelChange")
    assert "404" in document["paths"]["/admin/models/{name}"]["delete"]["responses"]
    for path, method in (("/admin/models", "get"), ("/admin/reload", "post")):
        operation = document["paths"][path][method]
        assert operation["security"] == both
        assert {"200", "401", "403", "409"} <= set(operation["responses"])
    assert "security" not in document["paths"]["/classify/image"]["post"]


@pytest.mark.parametrize(
    "path", ["/", "/health/live", "/health/ready", "/metrics", "/docs", "/docs/docs.js", "/openapi.json"]
)
def test_head_is_get_without_the_body(path: str) -> None:
    app = build(SteeredService())
    assert ask(app, "HEAD", path).status_code == ask(app, "GET", path).status_code == 200
    document = ask(app, "GET", "/openapi.json").json()
    assert not any("head" in operations for operations in document["paths"].values())
    assert ask(app, "POST", path).status_code == 405
