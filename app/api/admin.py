"""`/admin`: what is on disk and in service, and the calls that load, swap and unload models while the server runs.

Who may call is decided before (`app.api.middleware.RequireKey`); what is done is the rollout's, here or in the engine
host.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from app.api.exchange import exchange_of
from app.api.schemas import ModelChange, ModelChanges, ModelStanding, ModelStandings, VersionFolder
from app.errors import InvalidParameter
from app.serving.changes import Action, Administer, Change, Order, Standing

ADMIN_PREFIX = "/admin/"
VERSION: dict[str, Any] = {
    "name": "version",
    "in": "query",
    "required": False,
    "description": "A version on disk; the highest by default.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


class AdminEndpoints:
    """Turns requests into orders, and reports into answers."""

    def __init__(self, administer: Administer) -> None:
        self._administer = administer

    async def list_packages(self, request: Request) -> Response:
        """Every model, on disk or in service."""
        _version(request, allowed=False)
        report = await self._administer(_order(request, "survey"))
        return _json(ModelStandings(models=tuple(map(_standing, report.standings))))

    async def load_model(self, request: Request) -> Response:
        """Load or swap one model.

        Raises:
            UnknownModel: the repository has no such model or version.
            ChangeRefused: the package is bad; what served before serves on.
        """
        report = await self._administer(_order(request, "load", _version(request, allowed=True)))
        return _json(_change(report.changes[0]))

    async def unload_model(self, request: Request) -> Response:
        """Take one model out of service.

        Raises:
            UnknownModel: the server has no such model.
        """
        _version(request, allowed=False)
        report = await self._administer(_order(request, "unload"))
        return _json(_change(report.changes[0]))

    async def reload_models(self, request: Request) -> Response:
        """Bring what is served in line with the repository.

        Raises:
            ChangeRefused: the repository cannot be read, or is empty.
        """
        _version(request, allowed=False)
        report = await self._administer(_order(request, "reload"))
        return _json(ModelChanges(changes=tuple(map(_change, report.changes))))


def _order(request: Request, action: Action, version: int | None = None) -> Order:
    exchange = exchange_of(request.scope)
    name = request.path_params.get("name")
    return Order(action, exchange.key or "", name, version, exchange.request_id)


def _version(request: Request, *, allowed: bool) -> int | None:
    """The one parameter of these routes, where it is allowed."""
    given = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    for name, _ in given:
        if name != "version" or not allowed or len(given) > 1:
            known = "version, once" if allowed else "none"
            raise InvalidParameter(f"unknown or repeated parameter {name[:40]!r}; this call takes {known}")
    if not given:
        return None
    text = given[0][1]
    if _VERSION.fullmatch(text) is None:
        raise InvalidParameter(f"version is {text[:20]!r}, but must be a whole number from 1 on")
    return int(text)


def _change(change: Change) -> ModelChange:
    return ModelChange(
        name=change.name,
        outcome=change.outcome,
        version=change.version,
        replaced=change.replaced,
        golden=change.golden,
        reason=change.reason,
        ready_seconds=round(change.ready_s, 3),
        drain_seconds=round(change.drain_s, 3),
        drained=change.drained,
    )


def _standing(standing: Standing) -> ModelStanding:
    return ModelStanding(
        name=standing.name,
        version=standing.version,
        state=standing.state,
        reason=standing.reason,
        fingerprint=standing.fingerprint,
        on_disk=tuple(
            VersionFolder(version=each.version, fingerprint=each.fingerprint, serves=each.serves)
            for each in standing.on_disk
        ),
        pending=standing.pending,
    )


def _json(answer: ModelChange | ModelChanges | ModelStandings) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
