# From book/183-poolrecords.md. Edit there and tangle, or here and tangle --back.

# %% Pool records: what the kernel does not write down
"""What is written down beside a thin pool: options, layers, and what was being done.

On disk as Docker's, below ``devicemapper/metadata``: ``<layer>`` says which thin
device a layer is, ``deviceset-metadata`` and ``transaction-metadata`` what was done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from minidocker.durable import read_json, sync_path, write_lasting
from minidocker.errors import NotFoundError, UsageError, did_you_mean
from minidocker.records import Record, json_text, plain


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class PoolOptions(Record):
    """How a new pool is made; sizes in bytes.

    ``base_size`` is that of every layer's file system. ``data_size`` is what the pool
    starts with, and grows by when it runs low; so is ``metadata_size``. With less than
    ``min_free`` percent free, and no room to grow, no layer is made. ``discard``: what
    a removed layer had is given back to the file system below.
    """

    base_size: int = 10 << 30
    data_size: int = 4 << 30
    metadata_size: int = 64 << 20
    fs: str = "ext4"
    min_free: int = 10
    discard: bool = True


UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Return a size in bytes.

    >>> parse_size("10G"), parse_size("64m")
    (10737418240, 67108864)
    """
    number = text.rstrip("bB").rstrip("kKmMgGtT")
    unit = text.rstrip("bB")[len(number) :].upper()
    if not (number.isascii() and number.isdecimal()) or unit not in UNITS:
        raise UsageError(f'invalid size "{text}"', hint="such as 10G or 512M")
    return int(number) * UNITS[unit]


def parse_percent(text: str) -> int:
    """Return a percentage.

    >>> parse_percent("10%")
    10
    """
    number = text.removesuffix("%")
    if number == text or not number.isdecimal() or int(number) > 100:
        raise UsageError(f'invalid percentage "{text}"', hint="such as 10%")
    return int(number)


def parse_switch(text: str) -> bool:
    """Return what ``true`` or ``false`` says."""
    if text not in ("true", "false"):
        raise UsageError(f'neither true nor false: "{text}"')
    return text == "true"


def parse_fs(text: str) -> str:
    """Return the name of a file system that we can make."""
    if text not in FILE_SYSTEMS:
        raise UsageError(f'unknown file system "{text}"', hint="ext4 or xfs")
    return text


OPTION_NAMES: dict[str, tuple[str, Callable[[str], object]]] = {
    "dm.basesize": ("base_size", parse_size),
    "dm.loopdatasize": ("data_size", parse_size),
    "dm.loopmetadatasize": ("metadata_size", parse_size),
    "dm.fs": ("fs", parse_fs),
    "dm.min_free_space": ("min_free", parse_percent),
    "dm.blkdiscard": ("discard", parse_switch),
}


def parse_options(words: tuple[str, ...]) -> PoolOptions:
    """Read ``--storage-opt``. Raises UsageError for an unknown name or value."""
    options = PoolOptions()
    for word in words:
        name, _, text = word.partition("=")
        if name not in OPTION_NAMES:
            known = f"there are {', '.join(OPTION_NAMES)}"
            hint = did_you_mean(name, OPTION_NAMES, other=known)
            raise UsageError(f'unknown storage option "{name}"', hint=hint)
        field, parse = OPTION_NAMES[name]
        options = options.replace(**{field: parse(text)})
    return options


# %% The nouns
class FileSystem(Record):
    """How one kind of file system is made, and with which options it is mounted."""

    make: tuple[str, ...]
    options: str


FILE_SYSTEMS = {
    "ext4": FileSystem(
        ("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"),
        "noinit_itable",
    ),
    "xfs": FileSystem(
        ("mkfs.xfs", "-q", "-K", "-m", "reflink=0"),
        "nouuid",  # every snapshot has the same
    ),
}


UUID_AT = {"ext4": 1024 + 104, "xfs": 32}  # bytes from the start of the device


class Thin(Record):
    """What ``metadata/<layer>`` says: which thin device a layer is.

    ``size`` is in bytes. ``parent`` is ours: Docker's driver is told it each time.
    """

    device_id: int
    size: int
    transaction_id: int
    initialized: bool = False
    deleted: bool = False
    parent: str = ""


# %% Files that say what was done
class Records:
    """The files below ``metadata``."""

    def __init__(self, home: str) -> None:
        self.home = home

    def read(self, name: str) -> dict[str, Any]:
        """Return what a file says; nothing if there is none."""
        try:
            return read_json(f"{self.home}/{name}")
        except (FileNotFoundError, ValueError):
            return {}

    def write(self, name: str, fields: Thin | Mapping[str, Any]) -> None:
        """Write a file whole, and synced."""
        os.makedirs(self.home, 0o700, exist_ok=True)
        write_lasting(f"{self.home}/{name}", json_text(plain(fields)))

    def drop(self, name: str) -> None:
        """Remove a file; nothing if there is none."""
        with suppress(FileNotFoundError):
            os.unlink(f"{self.home}/{name}")
            sync_path(self.home)

    def layer(self, name: str) -> Thin:
        """Return the thin device of a layer. Raises NotFoundError."""
        found = self.read(name)
        if "device_id" not in found:
            raise NotFoundError(f'no such layer: "{name}"')
        return Thin(**{key: found[key] for key in Thin.__match_args__ if key in found})

    def layers(self) -> list[str]:
        """Return the names of all layers, sorted."""
        names = os.listdir(self.home) if os.path.isdir(self.home) else []
        return sorted(n for n in names if n not in NOT_LAYERS and "." not in n)


BASE = "base"
DEVICE_SET, TRANSACTION = "deviceset-metadata", "transaction-metadata"
NOT_LAYERS = {BASE, DEVICE_SET, TRANSACTION}
