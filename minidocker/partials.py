# From book/555-partials.md. Edit there and tangle, or here and tangle --back.

# %% Partials: downloads that go on another day
"""Keep what came of a blob when a pull breaks off, and go on from there."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import BinaryIO

from minidocker.durable import lock_file
from minidocker.errors import IntegrityError
from minidocker.oci import hex_of
from minidocker.registry import Download


# %% A file under a lock
DOWNLOADS = "buildcache/downloads"
LOCK = ".lock"


class Partial:
    """The file that a blob comes into: kept for its digest, or ``spare``, our own.

    The lock is held from the beginning until ``close`` or ``remove``.
    """

    def __init__(self, root: str, digest: str, spare: str) -> None:
        home = f"{root}/{DOWNLOADS}"
        os.makedirs(home, 0o700, exist_ok=True)
        self.path = f"{home}/{hex_of(digest)}"
        self.lock = lock_file(self.path + LOCK)
        if self.lock is None:
            self.path = spare

    def open(self) -> BinaryIO:
        """Open the file, made if it is missing; the caller closes."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(self.path, flags, 0o600), "r+b")

    def close(self) -> None:
        """Leave what came for another day, if it is anything."""
        if self.lock is None or not os.path.getsize(self.path):
            self.remove()
        else:
            self.let_go(self.lock)

    def remove(self) -> None:
        """Remove the file: its contents are a layer now, or are wrong."""
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        if self.lock is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.path + LOCK)
            self.let_go(self.lock)

    def let_go(self, lock: int) -> None:
        """Close the lock."""
        os.close(lock)
        self.lock = None


# %% Going on
class Resumed(Download):
    """A download that begins after what its file has."""

    begun = False

    def restart(self) -> None:
        """Begin: the first time with what is there, then from the first byte."""
        if self.begun:
            super().restart()
            return
        from hashlib import sha256

        self.begun, self.hash = True, sha256()
        self.file.seek(0)
        while data := self.file.read(1 << 20):
            self.hash.update(data)
            self.at += len(data)
        if self.at > self.it.size:
            super().restart()
        self.told(self.at)

    @property
    def is_whole(self) -> bool:
        """Say whether all has come, and is what was asked for."""
        return f"sha256:{self.hash.hexdigest()}" == self.it.digest

    def run(self) -> None:
        """Fetch what is missing. Raises IntegrityError as ``Download`` does."""
        before = self.at
        if before == self.it.size and self.is_whole:
            return
        if before == self.it.size:
            super().restart()
        try:
            super().run()
        except IntegrityError:
            if not before:
                raise
            super().restart()  # what was there was wrong, perhaps
            super().run()
