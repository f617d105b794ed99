"""Access control: anyone who can reach 127.0.0.1 may look; changing anything requires the token.

A page of another site, open in the user's browser, can reach 127.0.0.1 too. It cannot read anything (its origin
differs), not even through a domain name that resolves here (Host must name this machine), and it does not have the
token, which is not in a cookie.
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
    """The token, and whether it was generated here; the environment may provide one.

    ValueError if the token provided is so short that it could be guessed.
    """
    given = os.environ.get(TOKEN_VARIABLE, "")
    if not given:
        return secrets.token_urlsafe(32), True
    if len(given) < MIN_TOKEN_LENGTH:
        raise ValueError(f"{TOKEN_VARIABLE} has {len(given)} characters; use at least {MIN_TOKEN_LENGTH}, or unset it")
    return given, False


def opening(address: str, token: str, is_own: bool) -> list[str]:
    """The link to the page and a note. A generated token is in the fragment, which browsers do not send."""
    if is_own:
        return [f"{address}#token={token}", "this link includes the controls; press Ctrl-C to stop"]
    return [address, f"the controls need the token from {TOKEN_VARIABLE}; press Ctrl-C to stop"]


def digest_of(token: str) -> str:
    """All that a server knows of its token: enough to verify one, but the token cannot be recovered from it."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def holds_token(request: web.Request, digest: str) -> bool:
    """Whether the request has `Authorization: Bearer <token>` with the token of this digest."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(digest_of(given.strip()), digest)


@web.middleware
async def only_this_machine(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Reject requests for any other host name, and requests from pages of other sites."""
    address = request.transport.get_extra_info("sockname") if request.transport else None
    port = address[1] if address else None
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    if request.headers.get("Host", "") not in hosts:
        raise web.HTTPMisdirectedRequest(text=f"this server only answers to {' and '.join(sorted(hosts))}\n")
    origin = request.headers.get("Origin")
    if origin is not None and origin not in {f"http://{host}" for host in hosts}:
        raise web.HTTPForbidden(text="requests from pages of other sites are not allowed\n")
    return await handler(request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Keep browsers from running or sending anything that is not this server's, and from caching."""
    response.headers.update(_HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
