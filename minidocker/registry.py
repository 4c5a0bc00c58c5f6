# From book/530-registry.md. Edit there and tangle, or here and tangle --back.

# %% Registry: images over HTTP
"""A client of the OCI distribution protocol: requests, manifests, blobs.

A registry is not trusted: what it sends is checked against its digest before anybody
may use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import BinaryIO

from minidocker.credentials import Login, scope_of
from minidocker.errors import IntegrityError, RegistryError
from minidocker.manifests import DOCUMENT_LIMIT, INDEXES, MANIFESTS, Descriptor, clean
from minidocker.oci import sha256_text
from minidocker.records import Record
from minidocker.wire import (
    Authorizer,
    Limits,
    PassingError,
    UnreachableError,
    Wire,
    addresses,
    challenges_of,
    check_status,
    checked_url,
    done_with,
    endpoint,
    is_local,
    origin,
    patiently,
    pause,
    pieces,
    proxy_for,
    read_all,
    resolve,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from urllib3 import BaseHTTPResponse


# %% The nouns
class Document(Record):
    """A manifest or an index as it came: bytes, media type, digest."""

    data: bytes
    media_type: str
    digest: str


Told = Callable[[int], object]  # is told of bytes that moved; less than 0: again
REDIRECTS = (301, 302, 303, 307, 308)


# %% The client
class Place:
    """Where and how a registry answers."""

    def __init__(
        self, registry: str, login: Login | None = None, limits: Limits | None = None
    ) -> None:
        self.registry, self.limits = registry, limits or Limits()
        self.host = endpoint(registry)
        self.wire = Wire(self.limits)
        self.authorizer = Authorizer(self.wire, login)

    def connect(self) -> None:
        """Find out where and how the registry answers, once.

        Fails soon where there is no network, and does not wait for a slow resolver.
        """
        if self.wire.base:
            return
        found = addresses(self.host)
        if not is_local(found[0]) and not proxy_for(found[0]):
            resolve(self.host, self.limits.connect)
        for base in found:
            try:
                patiently(partial(self.ping, base), self.limits, offline=True)
            except RegistryError:
                if base == found[-1]:
                    raise
            else:
                return

    def ping(self, base: str) -> None:
        """Ask ``/v2/`` whether there is a registry, and what it wants to see."""
        try:
            response = self.wire.send("GET", f"{base}/v2/", {}, None)
        except PassingError as why:
            raise UnreachableError(why.what, where=why.where) from why
        if response.status == 404:
            raise RegistryError("answers, but is no registry", where=self.host)
        check_status(response, (200, 401), self.host)
        self.wire.base = base
        self.authorizer.offered = challenges_of(response)
        done_with(response)

    def url(self, path: str, sender: str = "") -> str:
        """Return the address of a path, or of what a server named."""
        return checked_url(path, sender or self.wire.base)


# %% The client
class Requests(Place):
    """One request at a time, with credentials and along redirects."""

    def once(
        self,
        method: str,
        path: str,
        *,
        scope: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        expected: tuple[int, ...] = (200,),
        where: str = "",
    ) -> BaseHTTPResponse:
        """Make a request, with credentials and along redirects.

        Returns an answer with an ``expected`` status; its body is still to be read.
        """
        self.connect()
        response = self.follow(method, self.url(path), scope, dict(headers or {}), body)
        check_status(response, expected, where or self.registry)
        return response

    def follow(
        self,
        method: str,
        url: str,
        scope: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> BaseHTTPResponse:
        """Make a request, and others where the answer says to look elsewhere."""
        for _ in range(self.limits.redirects + 1):
            if origin(url) == origin(self.wire.base):
                response = self.authorized(method, url, scope, headers, body)
            else:
                response = self.wire.send(method, url, headers, body)
            target = response.headers.get("Location")
            if response.status not in REDIRECTS or not target:
                return response
            done_with(response)
            if method not in ("GET", "HEAD"):
                raise RegistryError("redirects an upload", where=self.registry)
            url = self.url(target, sender=url)
        raise RegistryError("redirects without end", where=self.registry)

    def authorized(
        self,
        method: str,
        url: str,
        scope: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> BaseHTTPResponse:
        """Make a request to the registry itself, answering its challenge once."""
        for last in (False, True):
            header = self.authorizer.header(scope)
            own = {"Authorization": header} if header else {}
            response = self.wire.send(method, url, headers | own, body)
            if response.status != 401 or last:
                break
            if not self.authorizer.answer(challenges_of(response), scope, header):
                break
            done_with(response)
        return response


# %% The client
class Client(Requests):
    """A registry. Methods may be called from several threads at once.

    Raises PassingError when patience is at its end, RegistryError, NotFoundError, and
    IntegrityError for an answer that lies.
    """

    def call(self, method: str, path: str, **more: Any) -> BaseHTTPResponse:
        """Make a request with patience; see ``once``. The caller reads and closes."""
        return patiently(lambda: self.once(method, path, **more), self.limits)

    def read(
        self, path: str, most: int, **more: Any
    ) -> tuple[bytes, Mapping[str, str]]:
        """Get a short text and its headers. Raises IntegrityError if it is long."""

        def get() -> tuple[bytes, Mapping[str, str]]:
            response = self.once("GET", path, **more)
            return read_all(response, most, self.limits), response.headers

        return patiently(get, self.limits)

    def check_login(self) -> None:
        """Raise RegistryError when the registry does not take our login."""
        done_with(self.call("GET", "/v2/", where=self.registry))


# %% Manifests
def get_manifest(client: Client, repository: str, which: str) -> Document:
    """Return the manifest or index of a tag or digest; its digest is checked."""
    where = f"{client.registry}/{repository}"
    data, headers = client.read(
        f"/v2/{repository}/manifests/{which}",
        DOCUMENT_LIMIT,
        headers={"Accept": ", ".join(sorted(MANIFESTS | INDEXES))},
        scope=scope_of(repository, "pull"),
        where=f"{where}{'@' if ':' in which else ':'}{which}",
    )
    digest, said = sha256_text(data), headers.get("Docker-Content-Digest", "")
    for expected in (which if ":" in which else "", said):
        if expected and expected != digest:
            what = f'the manifest is not "{clean(expected, 80)}"'
            raise IntegrityError(what, where=where)
    kind = headers.get("Content-Type", "").partition(";")[0].strip()
    return Document(data, kind if kind in MANIFESTS | INDEXES else "", digest)


# %% Manifests
def put_manifest(client: Client, repository: str, which: str, it: Document) -> None:
    """Give a manifest to the registry, under a tag or its digest."""
    where = f"{client.registry}/{repository}"
    response = client.call(
        "PUT",
        f"/v2/{repository}/manifests/{which}",
        scope=scope_of(repository, "pull", "push"),
        headers={"Content-Type": it.media_type},
        body=it.data,
        expected=(200, 201, 202),
        where=where,
    )
    done_with(response)
    check_digest(response, it.digest, where)


def check_digest(response: BaseHTTPResponse, digest: str, where: str) -> None:
    """Raise IntegrityError when the registry has understood other bytes."""
    said = response.headers.get("Docker-Content-Digest", digest)
    if said != digest:
        what = f'the registry got "{clean(said, 80)}", and {digest} was sent'
        raise IntegrityError(what, where=where)


# %% Down: a blob
PROGRESS = 1 << 20


class Download:
    """A blob on its way into ``file``: how much has come, and its hash."""

    def __init__(
        self,
        client: Client,
        repository: str,
        it: Descriptor,
        file: BinaryIO,
        told: Told,
    ) -> None:
        self.client, self.repository, self.it = client, repository, it
        self.file, self.told = file, told
        self.where = f"{client.registry}/{repository}@{it.digest[:19]}"
        self.at = self.best = 0
        self.restart()

    def restart(self) -> None:
        """Begin from the first byte."""
        from hashlib import sha256

        self.told(-self.at)
        self.file.seek(0)
        self.file.truncate()
        self.at, self.hash = 0, sha256()

    def run(self) -> None:
        """Fetch all. Raises IntegrityError for other bytes than the digest's."""
        failures = 0
        while True:
            try:
                self.receive()
                break
            except PassingError as why:
                if self.at >= self.best + PROGRESS:
                    failures = 0
                self.best = max(self.best, self.at)
                failures += 1
                pause(why, failures, self.client.limits)
        found = f"sha256:{self.hash.hexdigest()}"
        if found != self.it.digest:
            what = f"the bytes that came are {found}, not what was asked for"
            raise IntegrityError(what, where=self.where)

    def receive(self) -> None:
        """Receive from where we are; PassingError when it breaks off."""
        response = self.client.once(
            "GET",
            f"/v2/{self.repository}/blobs/{self.it.digest}",
            scope=scope_of(self.repository, "pull"),
            headers={"Range": f"bytes={self.at}-"} if self.at else {},
            expected=(200, 206, 416),
            where=self.where,
        )
        try:
            self.check_start(response)
            for piece in pieces(response, self.client.limits):
                self.take(piece)
        except BaseException:
            response.close()
            raise
        response.release_conn()
        if self.at < self.it.size:
            raise PassingError("the body is too short", where=self.where)

    def check_start(self, response: BaseHTTPResponse) -> None:
        """See where in the blob an answer begins."""
        begins = response.headers.get("Content-Range", "").startswith
        if response.status == 206 and begins(f"bytes {self.at}-"):
            return
        self.restart()
        if response.status != 200:
            raise PassingError("cannot resume", where=self.where)
        says = response.headers.get("Content-Length", str(self.it.size))
        if says != str(self.it.size):
            what = f"{clean(says, 30)} bytes, and the manifest says {self.it.size}"
            raise IntegrityError(what, where=self.where)

    def take(self, piece: bytes) -> None:
        """Keep what came."""
        self.at += len(piece)
        if self.at > self.it.size:
            what = f"more than the {self.it.size} bytes that the manifest says"
            raise IntegrityError(what, where=self.where)
        self.hash.update(piece)
        self.file.write(piece)
        self.told(len(piece))
