"""The files of the page. They are open to all, since they say nothing of any fleet."""

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from importlib.resources import files

from fastapi import FastAPI, Request, Response

_HEADERS = {
    # No script, style, frame or address but the page's own, so no text that got into it can run or send anything.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked about every time, so that an update is never half of one
}
_HTML, _CSS, _SVG = "text/html; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml"
_MODULE = "text/javascript; charset=utf-8"
_FILES: Mapping[str, tuple[str, str]] = {
    "/fleet": ("page.html", _HTML),
    "/fleet/page.css": ("page.css", _CSS),
    "/fleet/panels.css": ("panels.css", _CSS),
    "/fleet/icon.svg": ("icon.svg", _SVG),
    **{f"/fleet/{name}.js": (f"{name}.js", _MODULE) for name in ("main", "api", "dom", "words", "islands")},
    **{f"/fleet/{name}.js": (f"{name}.js", _MODULE) for name in ("models", "decisions", "events", "asking")},
}
PATHS = frozenset(_FILES)


def add_page(app: FastAPI) -> None:
    """Serve the page at `/fleet`."""
    for path, (name, media_type) in _FILES.items():
        content = (files("deployments.page") / "static" / name).read_bytes()
        app.add_api_route(path, _answering(content, media_type), include_in_schema=False, methods=["GET", "HEAD"])


def _answering(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer
