# From book/535-uploads.md. Edit there and tangle, or here and tangle --back.

# %% Uploads: a blob on its way to a registry
"""Blobs on their way to a registry: found, mounted from elsewhere, or sent."""

from __future__ import annotations

import re
from contextlib import suppress
from urllib.parse import urlencode

from minidocker.credentials import scope_of
from minidocker.errors import IntegrityError, NotFoundError, RegistryError
from minidocker.registry import Client, Told, check_digest
from minidocker.wire import PassingError, done_with, patiently, pause


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from urllib3 import BaseHTTPResponse


# %% Is it there?
def blob_size(client: Client, repository: str, digest: str) -> int | None:
    """Return how long a blob in the registry is; None if it is not there."""
    response = client.call(
        "HEAD",
        f"/v2/{repository}/blobs/{digest}",
        scope=scope_of(repository, "pull", "push"),
        expected=(200, 404),
        where=f"{client.registry}/{repository}",
    )
    done_with(response)
    said = response.headers.get("Content-Length", "")
    return int(said) if response.status == 200 and said.isdecimal() else None


def mount_blob(client: Client, repository: str, digest: str, origin: str) -> bool:
    """Let a repository have a blob of another one; False when the registry does not.

    A registry that will not mount opens an upload instead, which is taken back.
    """
    query = urlencode({"mount": digest, "from": origin})
    scopes = scope_of(repository, "pull", "push"), scope_of(origin, "pull")
    try:
        response = client.call(
            "POST",
            f"/v2/{repository}/blobs/uploads/?{query}",
            scope=" ".join(scopes),
            expected=(201, 202),
            where=f"{client.registry}/{repository}",
        )
    except RegistryError:
        return False
    done_with(response)
    if response.status == 202 and (place := response.headers.get("Location")):
        with suppress(RegistryError, NotFoundError):
            done_with(client.once("DELETE", place, scope=scopes[0], expected=(204,)))
    return response.status == 201


# %% The conversation
BYTES = "application/octet-stream"
CHUNK = 8 << 20  # bytes sent at once, kept until the registry says that it has them


class Conversation:
    """An upload as the registry sees it: where it goes on, and what has come."""

    def __init__(self, client: Client, repository: str) -> None:
        self.client, self.repository = client, repository
        self.scope = scope_of(repository, "pull", "push")
        self.where = f"{client.registry}/{repository}"
        self.place, self.at = "", 0  # where the registry wants it; what it has

    def ask(self, method: str, query: str = "", **more: Any) -> BaseHTTPResponse:
        """Make one request about this upload, and note where it goes on."""
        path = self.place or f"/v2/{self.repository}/blobs/uploads/"
        if query:
            path += ("&" if "?" in path else "?") + query
        response = self.client.once(
            method, path, scope=self.scope, where=self.where, **more
        )
        done_with(response)
        if target := response.headers.get("Location"):
            self.place = self.client.url(target, sender=self.client.url(path))
        return response

    def begin(self) -> None:
        """Open an upload, a new one if there was one."""
        self.place, self.at = "", 0
        self.ask("POST", expected=(202,))
        if not self.place:
            raise RegistryError("opens an upload nowhere", where=self.where)

    def patch(self, data: bytes) -> None:
        """Send bytes that follow those that the registry has."""
        last = self.at + len(data) - 1
        headers = {"Content-Type": BYTES, "Content-Range": f"{self.at}-{last}"}
        response = self.ask("PATCH", headers=headers, body=data, expected=(202, 204))
        end = self.end_in(response, last + 1)
        if not self.at < end <= last + 1:
            raise PassingError("takes no bytes", where=self.where)
        self.at = end

    def locate(self, least: int, most: int) -> None:
        """Ask how far the registry got; IntegrityError if it has forgotten bytes."""
        response = patiently(
            lambda: self.ask("GET", expected=(204,)), self.client.limits
        )
        self.at = self.end_in(response, -1)
        if not least <= self.at <= most:
            raise IntegrityError("the registry lost what it had", where=self.where)

    def end_in(self, response: BaseHTTPResponse, otherwise: int) -> int:
        """Return how many bytes the registry has: the end of ``Range``, plus one."""
        found = re.fullmatch(r"(?:bytes=)?0-(\d+)", response.headers.get("Range", ""))
        return int(found[1]) + 1 if found else otherwise

    def put(self, digest: str, data: bytes) -> None:
        """Make the request that ends an upload."""
        query, headers = urlencode({"digest": digest}), {"Content-Type": BYTES}
        response = self.ask(
            "PUT", query, headers=headers, body=data, expected=(201, 204)
        )
        check_digest(response, digest, self.where)

    def close(self, digest: str, data: bytes) -> None:
        """End an upload; if the answer was lost, see whether the blob is there."""
        try:
            patiently(lambda: self.put(digest, data), self.client.limits)
        except NotFoundError:
            if blob_size(self.client, self.repository, digest) is None:
                raise


# %% The sender
class Upload(Conversation):
    """A blob on its way up. Call it with bytes; then ``finish``."""

    def __init__(self, client: Client, repository: str, told: Told = int) -> None:
        super().__init__(client, repository)
        self.told = told
        self._parts: list[bytes] = []
        self._pending = 0

    def __call__(self, data: bytes) -> None:
        """Take bytes; send when a chunk is full."""
        self._parts.append(data)
        self._pending += len(data)
        if self._pending >= CHUNK:
            self.send_chunk()

    def taken(self) -> bytes:
        """Return what is pending, which is so no more."""
        data = b"".join(self._parts)
        self._parts, self._pending = [], 0
        return data

    def send_chunk(self) -> None:
        """Send what is pending; after a break, from where the registry is."""
        data, base, failures = self.taken(), self.at, 0
        while self.at < base + len(data):
            before = self.at
            try:
                if not self.place:
                    self.begin()
                self.patch(data[self.at - base :])
            except PassingError as why:
                failures += 1
                pause(why, failures, self.client.limits)
                if base:
                    self.locate(base, base + len(data))
                else:
                    self.place = ""  # all is still here: begin anew
            self.told(self.at - before)

    def finish(self, digest: str) -> None:
        """Send what is pending, and say what the digest of all is."""
        if self.at:
            self.send_chunk()
            self.close(digest, b"")
        else:
            data = self.taken()
            patiently(lambda: self.whole(digest, data), self.client.limits)
            self.told(len(data))

    def whole(self, digest: str, data: bytes) -> None:
        """Send a small blob in one request."""
        self.begin()
        self.put(digest, data)
