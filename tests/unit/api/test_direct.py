"""The short way to quick routes: the same layers around them, and the framework's own for everything else."""

from __future__ import annotations

import asyncio

import httpx
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.direct import DirectFastAPI
from app.errors import BrokenMedia


class Mark:
    """Middleware that leaves a header behind."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def marked(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-mark", self._name.encode())]  # type: ignore[misc]
            await send(message)

        await self._app(scope, receive, marked)  # type: ignore[arg-type]


async def echo(request: Request) -> Response:
    body = await request.body()
    if body == b"broken":
        raise BrokenMedia("it is broken")
    via = "router" if "router" in request.scope else "direct"
    return PlainTextResponse(f"{via} {body.decode()} {request.url.query}")


async def answer_error(request: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), status_code=422)


async def name_of(request: Request) -> Response:
    return PlainTextResponse(f"direct {request.path_params['name']}")


def ask(method: str, path: str, body: bytes = b"") -> httpx.Response:
    app = DirectFastAPI()
    app.add_direct_route("/v1.0/{name}/run", name_of, answer_error)
    app.add_direct_route("/quick", echo, answer_error)
    app.add_api_route("/quick", echo, methods=["POST"], response_model=None)
    app.add_api_route("/usual", echo, methods=["POST"], response_model=None)
    app.add_middleware(Mark, name="inner")
    app.add_middleware(Mark, name="outer")

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=body)

    return asyncio.run(scenario())


def test_a_quick_route_goes_through_the_middleware_and_past_the_router() -> None:
    response = ask("POST", "/quick?a=1", b"body")
    assert response.text == "direct body a=1"
    assert response.headers.get_list("x-mark") == ["inner", "outer"]


def test_other_routes_go_the_usual_way_through_the_same_middleware() -> None:
    response = ask("POST", "/usual", b"body")
    assert response.text == "router body "
    assert response.headers.get_list("x-mark") == ["inner", "outer"]


def test_an_error_of_ours_is_answered_by_the_handler() -> None:
    response = ask("POST", "/quick", b"broken")
    assert (response.status_code, response.text) == (422, "it is broken")
    assert response.headers.get_list("x-mark") == ["inner", "outer"]


def test_a_name_in_the_path_is_one_part_of_it_and_all_else_is_as_it_stands() -> None:
    assert ask("POST", "/v1.0/hiera/run").text == "direct hiera"
    for path in ("/v1.0/a/b/run", "/v1.0//run", "/v1x0/hiera/run", "/v1.0/hiera/run/", "/quick/more"):
        assert ask("POST", path).status_code == 404


def test_another_method_is_the_frameworks_matter() -> None:
    assert ask("GET", "/quick").status_code == 405
