# From book/520-wire.md. Edit there and tangle, or here and tangle --back.

# %% Wire: one request, and all that can go wrong
"""Single HTTP requests to servers that are slow, busy, broken or hostile.

What is sent is bounded in time, what comes in size and time, and where a server sends
us is checked.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

from minidocker.credentials import Challenge, Login, parse_challenges, token_in
from minidocker.errors import IntegrityError, NotFoundError, RegistryError
from minidocker.manifests import clean
from minidocker.oci import HUB
from minidocker.records import Record
from minidocker.trust import is_insecure


TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Any

    from urllib3 import BaseHTTPResponse, PoolManager


# %% The nouns
class Limits(Record):
    """How patient a client is; seconds. ``attempts`` counts the first one too."""

    connect: float = 3.0
    idle: float = 30.0
    attempts: int = 5
    pause: float = 0.5
    redirects: int = 5


class PassingError(RegistryError):
    """A failure that may pass. ``after`` is the seconds that the server asked for."""

    def __init__(
        self, what: str, *, where: str | None = None, after: float = 0
    ) -> None:
        super().__init__(what, where=where)
        self.after = after


class UnreachableError(PassingError):
    """No connection could be made at all."""


class DeniedError(RegistryError):
    """The registry does not know us, or not well enough."""


T = TypeVar("T")
PIECE = 1 << 18  # bytes read at once
USER_AGENT = "minidocker"


# %% Where it is
HUB_HOST = "registry-1.docker.io"
LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")


def is_local(url: str) -> bool:
    """Whether an address is on this machine.

    >>> is_local("http://127.0.0.1:5000/"), is_local("http://127.0.0.1.example/")
    (True, False)
    """
    return LOOPBACK.fullmatch(urlsplit(url).hostname or "") is not None


def endpoint(registry: str) -> str:
    """Return the host that answers for a registry."""
    return (
        (os.environ.get("MINIDOCKER_HUB") or HUB_HOST) if registry == HUB else registry
    )


def addresses(host: str) -> tuple[str, ...]:
    """Return the addresses under which a registry may answer, in order."""
    plain, secure = f"http://{host}", f"https://{host}"
    if is_local(secure):
        return (plain, secure)
    return (secure, plain) if is_insecure(host) else (secure,)


def origin(url: str) -> tuple[str, str, int]:
    """Return what must be equal for two addresses to be the same server."""
    parts = urlsplit(url)
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme, 0)
    return parts.scheme, parts.hostname or "", port


def checked_url(url: str, sender: str) -> str:
    """Return an address that ``sender`` named, whole, if we may go there.

    Raises RegistryError for another scheme than http and https, for plain http to
    another machine, and for a stranger who sends us to our own.
    """
    try:
        url = urljoin(sender, url)
        scheme, host, _ = origin(url)
    except ValueError as why:
        raise RegistryError(f'"{clean(url)}" is no address') from why
    if scheme not in ("http", "https") or not host:
        raise RegistryError(f'the registry names "{clean(url)}", which is not http')
    if is_local(url) and not is_local(sender):
        raise RegistryError(f'the registry names "{clean(url)}", on this machine')
    if scheme == "http" and not (is_local(url) or is_insecure(urlsplit(url).netloc)):
        raise RegistryError(f'the registry names "{clean(url)}", which is not https')
    return url


# %% Where it is
def resolve(host: str, seconds: float) -> None:
    """Raise UnreachableError when a name has no address within some seconds.

    The system's resolver knows no time limit; it may ask silent servers for minutes.
    """
    import socket

    name, port = urlsplit(f"//{host}").hostname, urlsplit(f"//{host}").port or 443
    said: list[str] = []

    def ask() -> None:
        try:
            socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            said.append("")
        except OSError as why:
            said.append(why.strerror or str(why))

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(seconds)
    answer = said[0] if said else f"no address within {seconds:g} s"
    if answer:
        raise UnreachableError(f"cannot be reached: {answer}", where=host)


# %% One request
CERTS = "/etc/docker/certs.d"


def tls_context(url: str) -> ssl.SSLContext:
    """Return how a server is to prove who it is."""
    import ssl

    context = ssl.create_default_context()
    if is_local(url) or is_insecure(urlsplit(url).netloc):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    place = f"{CERTS}/{urlsplit(url).netloc}"
    names = sorted(os.listdir(place)) if os.path.isdir(place) else []
    for name in names:
        if name.endswith(".crt"):
            context.load_verify_locations(f"{place}/{name}")
        elif name.endswith(".cert"):
            key = f"{place}/{name.removesuffix('.cert')}.key"
            context.load_cert_chain(f"{place}/{name}", key)
    return context


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for an address."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    if is_local(url) or proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


# %% One request
class Wire:
    """Single requests, over connections that are kept; safe in threads.

    ``base`` is the address of the registry, once it is known.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.base = limits, ""
        self._pools: dict[str, PoolManager] = {}
        self._lock = threading.Lock()

    def pool(self, url: str) -> PoolManager:
        """Return the connections to the server of an address."""
        import urllib3

        parts, limits = urlsplit(url), self.limits
        with self._lock:
            key = f"{parts.scheme}://{parts.netloc}"
            if key not in self._pools:
                more: dict[str, Any] = {
                    "timeout": urllib3.Timeout(
                        connect=limits.connect, read=limits.idle
                    ),
                    "retries": False,
                    "maxsize": 8,
                }
                if parts.scheme == "https":
                    more["ssl_context"] = tls_context(url)
                if proxy := proxy_for(url):
                    self._pools[key] = urllib3.ProxyManager(proxy, **more)
                else:
                    self._pools[key] = urllib3.PoolManager(**more)
            return self._pools[key]

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> BaseHTTPResponse:
        """Make one request; the body of the answer is still to be read."""
        import urllib3
        from urllib3 import exceptions as fault

        urllib3.disable_warnings(fault.InsecureRequestWarning)  # only this machine
        with wire_faults(url):
            return self.pool(url).request(
                method,
                url,
                body=body,
                headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
                | dict(headers),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )


# %% One request
@contextmanager
def wire_faults(url: str) -> Iterator[None]:
    """Turn what urllib3 raises into errors of ours."""
    from urllib3 import exceptions as fault

    host = urlsplit(url).netloc
    try:
        yield
    except (fault.NewConnectionError, fault.ConnectTimeoutError) as why:
        reason = re.sub(r".*(?:: |\] )", "", str(why))
        raise UnreachableError(f"cannot be reached: {reason}", where=host) from why
    except (fault.SSLError, fault.ProxyError) as why:
        raise UnreachableError(f"no connection: {clean(why)}", where=host) from why
    except fault.TimeoutError as why:
        raise PassingError("is silent", where=host) from why
    except fault.LocationValueError as why:
        raise RegistryError(f"no address: {clean(why)}", where=host) from why
    except (fault.HTTPError, OSError) as why:
        raise PassingError(f"the connection broke: {clean(why)}", where=host) from why


def pieces(response: BaseHTTPResponse, limits: Limits) -> Iterator[bytes]:
    """Yield a body as it comes. Raises PassingError when it breaks off or dribbles.

    A server that sends a byte now and then is as good as silent: less than 1 KiB in
    the time of the idle limit is an end.
    """
    url = response.url or ""
    window, came = time.monotonic(), 0
    while True:
        with wire_faults(url):
            piece = response.read1(PIECE)
        if not piece:
            return
        came += len(piece)
        if time.monotonic() - window > limits.idle:
            if came < 1024:
                raise PassingError("is all but silent", where=urlsplit(url).netloc)
            window, came = time.monotonic(), 0
        yield piece


# %% One request
def done_with(response: BaseHTTPResponse) -> None:
    """Let the connection be used again, or close it when much is still to come."""
    left = response.length_remaining
    if left is not None and left <= 1 << 16:
        response.drain_conn()
    else:
        response.close()


def read_all(response: BaseHTTPResponse, most: int, limits: Limits) -> bytes:
    """Read a short body. Raises IntegrityError for more than ``most`` bytes."""
    found, size = [], 0
    try:
        for piece in pieces(response, limits):
            found.append(piece)
            size += len(piece)
            if size > most:
                where = urlsplit(response.url or "").netloc
                raise IntegrityError(f"sent more than {most} bytes", where=where)
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return b"".join(found)


# %% Patience
BUSY = (408, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 20.0


def seconds_in(header: str | None) -> float:
    """Return the seconds of a ``Retry-After`` header; 0 where it says no number."""
    return float(header) if header and header.isascii() and header.isdecimal() else 0.0


def pause(why: PassingError, failures: int, limits: Limits) -> None:
    """Wait after a failure; raise it again when there were enough of them."""
    if failures >= limits.attempts:
        raise why
    chance = os.urandom(1)[0] / 512
    seconds = limits.pause * 2 ** (failures - 1) * (1 + chance)
    time.sleep(min(max(seconds, why.after), LONGEST_PAUSE))


def patiently(action: Callable[[], T], limits: Limits, *, offline: bool = False) -> T:
    """Do something again, after a growing pause, while it fails in a way that passes.

    With ``offline`` a server that cannot be reached at all is not tried again.
    """
    failures = 0
    while True:
        try:
            return action()
        except PassingError as why:
            if offline and isinstance(why, UnreachableError):
                raise
            failures += 1
            pause(why, failures, limits)


# %% What an answer means
def complaint(data: bytes) -> str:
    """Return what a registry's error says, on one line, or nothing."""
    import json

    try:
        found = json.loads(data)["errors"]
        said = [str(one.get("message") or one.get("code")) for one in found[:3]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return clean(": " + "; ".join(said)) if said else ""


def check_status(
    response: BaseHTTPResponse, expected: tuple[int, ...], where: str
) -> None:
    """Raise the error that an answer's status means, unless it is an expected one."""
    status = response.status
    if status in expected:
        return
    with wire_faults(response.url or ""):
        said = complaint(response.read(1 << 16))
    response.close()
    if status in BUSY:
        after = seconds_in(response.headers.get("Retry-After"))
        raise PassingError(f"answers {status}{said}", where=where, after=after)
    if status in (401, 403):
        hint = f"`minidocker login {where.partition('/')[0]}`, or it does not exist"
        raise DeniedError(f"access is denied{said}", where=where, hint=hint)
    if status == 404:
        raise NotFoundError(f"not found{said}", where=where)
    raise RegistryError(f"answers {status}{said}", where=where)


# %% Who we are
def challenges_of(response: BaseHTTPResponse) -> list[Challenge]:
    """Return the challenges of an answer."""
    return parse_challenges(", ".join(response.headers.getlist("WWW-Authenticate")))


class Authorizer:
    """The ``Authorization`` headers for one registry, by scope; safe in threads.

    ``offered`` are the challenges that the registry began with.
    """

    def __init__(self, wire: Wire, login: Login | None) -> None:
        self.wire, self.login = wire, login
        self.offered: list[Challenge] = []
        self._headers: dict[str, str] = {}
        self._lock = threading.Lock()

    def header(self, scope: str) -> str | None:
        """Return the header for a scope; None where none is asked for."""
        if scope not in self._headers and self.offered:
            self.answer(self.offered, scope, None)
        return self._headers.get(scope)

    def answer(
        self, challenges: list[Challenge], scope: str, stale: str | None
    ) -> bool:
        """Get a header for a scope; ``stale`` is the one that was refused.

        False when there is nothing (more) to answer with.
        """
        with self._lock:
            if self._headers.get(scope) != stale:
                return True  # another thread was faster
            known = {one.scheme: one for one in reversed(challenges)}
            if "bearer" in known:
                token = self.fetch_token(known["bearer"], scope)
                self._headers[scope] = f"Bearer {token}"
                return True
            if "basic" in known and self.login and self.login.basic != stale:
                self._headers[scope] = self.login.basic
                return True
            return False

    def fetch_token(self, challenge: Challenge, scope: str) -> str:
        """Ask the realm for a token. Raises RegistryError when it gives none."""
        realm, login = checked_url(challenge.realm, self.wire.base), self.login
        where, headers = urlsplit(realm).netloc, {}
        scopes = (scope or challenge.scope).split()
        query = [("service", challenge.service), *(("scope", s) for s in scopes)]
        body = None
        if login and login.identity_token:
            fields = {"grant_type": "refresh_token", "client_id": USER_AGENT}
            fields |= {"refresh_token": login.identity_token}
            fields |= {"service": challenge.service, "scope": " ".join(scopes)}
            body = urlencode(fields).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif login:
            query.append(("account", login.username))
            headers["Authorization"] = login.basic
        if body is None:
            realm += ("&" if "?" in realm else "?") + urlencode(query)

        def ask() -> bytes:
            method = "GET" if body is None else "POST"
            response = self.wire.send(method, realm, headers, body)
            check_status(response, (200,), where)
            return read_all(response, 1 << 20, self.wire.limits)

        return token_in(patiently(ask, self.wire.limits), where)
