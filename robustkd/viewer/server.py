"""The viewer as a server on this machine alone: Starlette behind uvicorn, as MLflow brings them."""

from __future__ import annotations

import socket
from base64 import b64encode
from hashlib import sha256
from threading import Lock
from typing import TYPE_CHECKING

from robustkd.contracts import RobustkdError, UsageError
from robustkd.redaction import safe_to_show
from robustkd.reporting.environment import TEMPLATES
from robustkd.viewer.addresses import HOME, Address, address
from robustkd.viewer.pages import html
from robustkd.viewer.runs import REPORT
from robustkd.viewer.samples import picture
from robustkd.viewer.site import NotFound, Site

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = "127.0.0.1"
HOSTS = [LOOPBACK, "localhost"]
"""Names under which the server answers. A page of the web can make its own name mean this machine, but not send another name."""
_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'"
HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def application(site: Site) -> Starlette:
    """The viewer as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    lock = Lock()  # requests are answered in threads, and what was read lately is shared

    def answer(request: Request) -> Response:
        wanted = address(request.path_params.get("page", HOME), **dict(request.query_params))
        with lock:
            try:
                return _answer(site, wanted)
            except NotFound as error:
                return HTMLResponse(_missing(site, wanted, error), status_code=404, headers=HEADERS)
            except RobustkdError as error:
                return HTMLResponse(_missing(site, wanted, error), status_code=500, headers=HEADERS)

    async def unknown(request: Request, error: Exception) -> Response:
        return Response("there is no such page", status_code=404, headers=HEADERS)

    return Starlette(
        routes=[Route("/", answer), Route("/{page}", answer)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)],
        exception_handlers={404: unknown},
    )


def _answer(site: Site, wanted: Address) -> Response:
    from starlette.responses import HTMLResponse, Response

    if wanted.name == "style.css":
        return Response(site.style(), media_type="text/css", headers=HEADERS)
    if wanted.name == "view.js":
        return Response(site.script(), media_type="text/javascript", headers=HEADERS)
    if wanted.name == "image":
        return Response(
            picture(site, wanted), media_type="image/png", headers=HEADERS | {"Cache-Control": "private, max-age=600"}
        )
    if wanted.name == "report":
        return HTMLResponse(_report(site, wanted), headers=HEADERS | {"Content-Security-Policy": _report_policy()})
    return HTMLResponse(html(site, wanted), headers=HEADERS)


def _missing(site: Site, wanted: Address, error: RobustkdError) -> str:
    return site.render("missing.html.j2", wanted, message=safe_to_show(str(error)))


def _report(site: Site, wanted: Address) -> bytes:
    file = site.run(wanted).file(REPORT)
    if file is None:
        raise NotFound("the campaign has no report.html", fix="robustkd report writes it")
    return file.read_bytes()


def _report_policy() -> str:
    """A report may come from anybody: it loads nothing, is no page of this server's own, and runs no script but robustkd's."""
    digest = b64encode(sha256((TEMPLATES / "report.js").read_bytes()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"{allowed}; sandbox allow-scripts; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def listening(port: int) -> socket.socket:
    """A socket of this machine alone that listens at ``port``; at any free one for 0.

    Raises:
        UsageError: the port is taken.
    """
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((LOOPBACK, port))
        made.listen(64)
    except OSError as error:
        made.close()
        raise UsageError(f"port {port} cannot be used: {error.strerror}", fix="choose another one with --port") from error
    return made


def serve(site: Site, listener: socket.socket) -> None:
    """Answer until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(application(site), log_level="warning", access_log=False, server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
