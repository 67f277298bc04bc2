"""`/docs`: a page of our own that draws `/openapi.json` and needs no other host; and `/`, which says where to look."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from app.api.schemas import Signpost

_FOLDER = Path(__file__).parent / "static"
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
# Nothing from elsewhere, nothing inline, in no one's frame.
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "media-src blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
_SIGNPOST = Signpost(
    service="hiera-serve",
    docs="/docs",
    openapi="/openapi.json",
    models="/models",
    ready="/health/ready",
    metrics="/metrics",
    classify=("/classify/image", "/classify/video"),
)


class PageEndpoints:
    """A few small files, read once."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in _MEDIA_TYPES}

    async def docs(self, request: Request) -> Response:
        """The page."""
        return self._file("docs.html")

    async def file(self, request: Request) -> Response:
        """A script or the style of the page, by the last part of its address."""
        return self._file(request.url.path.rpartition("/")[2])

    async def root(self, request: Request) -> Response:
        """Browsers are sent to the page, programs get a list of addresses."""
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/docs", status_code=307)
        return Response(_SIGNPOST.model_dump_json(), media_type="application/json")

    def _file(self, name: str) -> Response:
        headers = {**_PAGE_HEADERS, "content-type": _MEDIA_TYPES[Path(name).suffix]}
        return Response(self._files[name], headers=headers)
