"""Who may ask what. Looking is for whoever reaches 127.0.0.1; changing something is for who holds the token.

A page of another site that a browser has open could reach 127.0.0.1 too. It cannot read (its origin differs), not even
by pointing a name of its own here (Host must be this machine's), and it has no token, which is in no cookie.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web

TOKEN_VARIABLE = "RAYMIX_DASHBOARD_TOKEN"
MIN_TOKEN_LENGTH = 16

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def choose_token() -> tuple[str, bool]:
    """The token, and whether it was made here: the environment may give one.

    Raises:
        ValueError: the one given is short enough to be guessed.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if not given:
        return secrets.token_urlsafe(32), True
    if len(given) < MIN_TOKEN_LENGTH:
        raise ValueError(f"{TOKEN_VARIABLE} has {len(given)} characters; give at least {MIN_TOKEN_LENGTH}, or none")
    return given, False


def opening(address: str, token: str, is_own: bool) -> list[str]:
    """The link to the page, which carries a token that was made here where no server sees it, and what it can do."""
    if is_own:
        return [f"{address}#token={token}", "with the controls; Ctrl-C ends it"]
    return [address, f"the controls want the token of {TOKEN_VARIABLE}; Ctrl-C ends it"]


def digest_of(token: str) -> str:
    """What a server knows of its token: it tells a right one from a wrong one, and nobody can make the token of it."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def holds_token(request: web.Request, digest: str) -> bool:
    """Whether the request carries `Authorization: Bearer <token>` with the token of this digest."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(digest_of(given.strip()), digest)


@web.middleware
async def only_this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse whatever was not addressed to this server by its own name, and what another site's page sends."""
    address = request.transport.get_extra_info("sockname") if request.transport else None
    port = address[1] if address else None
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    if request.headers.get("Host", "") not in hosts:
        raise web.HTTPMisdirectedRequest(text=f"this server answers to {' and '.join(sorted(hosts))} only\n")
    origin = request.headers.get("Origin")
    if origin is not None and origin not in {f"http://{host}" for host in hosts}:
        raise web.HTTPForbidden(text="a page of another site may not ask here\n")
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """What keeps a browser from running or sending anything that is not this server's; kept by no cache."""
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
