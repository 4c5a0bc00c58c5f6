# From book/195-splits.md. Edit there and tangle, or here and tangle --back.

# %% Splits: give back the very tar that came
"""Split a tar into its frame and its files, and put the two together again.

The frame is written in the format of Docker's ``tar-split.json.gz``: lines of JSON,
gzipped. A tree that cannot give the bytes back is an ``IntegrityError``.
"""

from __future__ import annotations

import errno
import json
import os
from base64 import b64decode
from binascii import b2a_base64
from collections.abc import Callable, Iterator

from minidocker.archive import Put, TreeWriter
from minidocker.errors import ConflictError, IntegrityError
from minidocker.headers import Entry
from minidocker.places import names_in
from minidocker.reading import Tape
from minidocker.records import Record
from minidocker.trees import printable


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class Segment(Record):
    """Bytes of the frame, to be written as they are."""

    data: bytes


class Contents(Record):
    """A place where a member's contents stood.

    ``path`` is where the file is, relative to the tree's root; ``size`` in bytes, 0 for
    what has no contents; ``crc`` is the CRC-64 of the contents.
    """

    name: bytes
    path: bytes
    size: int
    crc: int


# %% A sum of each file
ONES = (1 << 64) - 1


def crc64_folded(data: bytes, crc: int = 0) -> int:
    """Return the CRC-64 (ISO 3309) of bytes, or of more bytes after those of ``crc``.

    >>> hex(crc64_folded(b"123456789"))
    '0xb90956c775a41001'
    """
    left = 8 * len(data)
    number = int.from_bytes(data, "little") ^ crc ^ ONES
    q = 1 << max(0, (left // 64 + 1).bit_length() - 2)
    while left:
        fold = min(60 * q, left + 64 - 64 * q)
        if fold <= 0:
            q >>= 1
            continue
        high = number & ((1 << fold) - 1)
        high ^= high << q
        high ^= high << 3 * q
        number = number >> fold ^ high << (60 * q - fold)
        left -= fold
    return number ^ ONES


# %% A sum of each file
Crc = Callable[[bytes, int], int]


def fast_crc64() -> Crc:
    """Return the fastest CRC-64 that this machine has."""
    import ctypes

    try:
        from isal import isal_zlib

        found = ctypes.CDLL(isal_zlib.__file__).crc64_iso_refl
    except (ImportError, OSError, AttributeError):
        return crc64_folded
    found.restype = ctypes.c_uint64
    found.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint64]
    return lambda data, crc: int(found(crc, data, len(data)))


# %% Recording
SEGMENT, CONTENTS = 2, 1
MOST = 1 << 16  # bytes of a segment
BATCH = 256  # lines


def base64(data: bytes) -> str:
    """Return bytes as they stand in JSON."""
    return b2a_base64(data, newline=False).decode()


class SplitWriter(Tape):
    """Write the split of a tar that is being read to a new file; end with ``with``."""

    def __init__(self, path: str) -> None:
        from isal import isal_zlib

        self._file = open(path, "xb")  # noqa: SIM115
        self._press = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
        self._sum, self._crc = fast_crc64(), 0
        self._frame: list[bytes] = []
        self._lines: list[str] = []
        self._size = self._number = 0
        self._path = path
        self._members: dict[bytes, int] = {}

    def __enter__(self) -> SplitWriter:
        return self

    def _line(self, line: str) -> None:
        """Write one line; ``line`` lacks only its number and its end."""
        self._lines.append(f'{line},"position":{self._number}}}\n')
        self._number += 1
        if len(self._lines) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        """Compress the lines that have gathered."""
        text = "".join(self._lines).encode()
        self._lines.clear()
        self._file.write(self._press.compress(text))

    def _segment(self) -> None:
        """Write the frame that has gathered."""
        if self._frame:
            self._line(f'{{"type":2,"payload":"{base64(b"".join(self._frame))}"')
            self._frame.clear()
            self._size = 0

    def frame(self, data: bytes) -> None:
        """Gather the frame."""
        self._frame.append(data)
        self._size += len(data)
        if self._size >= MOST:
            self._segment()

    def piece(self, data: memoryview) -> None:
        """Sum contents."""
        self._crc = self._sum(bytes(data), self._crc)

    def entry(self, entry: Entry, path: bytes) -> None:
        """Note a member, after the frame that was before it."""
        self._segment()
        line = '{"type":1,' + name_fields(entry.name)
        payload = "null"
        if entry.size:
            line += f',"size":{entry.size}'
            payload = f'"{base64(self._crc.to_bytes(8, "big"))}"'
            if not names(entry.name, path):
                line += f',"real":"{base64(path)}"'
            self._members[path] = self._number
        self._line(f'{line},"payload":{payload}')
        self._crc = 0

    def replaced(self, path: bytes, fd: int) -> None:
        """Keep the contents of a member beside the split: its file will be another."""
        if (member := self._members.pop(path, None)) is not None:
            with open(kept_path(self._path, member), "xb") as file:
                while data := os.read(fd, 1 << 18):
                    file.write(data)

    def __exit__(self, *_: object) -> None:
        self._segment()
        self._flush()
        self._file.write(self._press.flush())
        self._file.close()


# %% Recording
def kept_path(split: str, number: int) -> str:
    """Return where the contents of a line are kept, if their file was replaced."""
    return f"{os.path.dirname(split)}/replaced-{number}"


def names(name: bytes, path: bytes) -> bool:
    """Whether a member's name is that of the file at ``path``."""
    return name.removeprefix(b"./") == path or b"/".join(names_in(name)) == path


def name_fields(name: bytes) -> str:
    """Return a name as JSON; one that is not UTF-8 in base64.

    >>> name_fields(b"etc/motd"), name_fields(b"\\xff")
    ('"name":"etc/motd"', '"name_raw":"/w=="')
    """
    try:
        text = name.decode()
        if text.isprintable() and '"' not in text and "\\" not in text:
            return f'"name":"{text}"'
        return f'"name":{json.dumps(text, ensure_ascii=False)}'
    except UnicodeDecodeError:
        return f'"name_raw":"{base64(name)}"'


# %% Reading it back
LINE_LIMIT = 64 << 20  # Docker writes the whole end of a tar as one line


def read_split(path: str) -> Iterator[Segment | Contents]:
    """Yield what a split says, in order; IntegrityError for one that is damaged."""
    from isal import igzip, igzip_lib

    damaged: Any = (EOFError, ValueError, KeyError, TypeError, AttributeError)
    try:
        with igzip.open(path, "rb") as file:  # type: ignore[no-untyped-call]
            while line := file.readline(LINE_LIMIT):
                yield split_line(json.loads(line))
    except (*damaged, igzip_lib.IsalError, OSError) as why:
        if getattr(why, "errno", None):
            raise
        what = f"the split of a tar is damaged: {why}"
        raise IntegrityError(what, where=path) from why


def split_line(found: dict[str, Any]) -> Segment | Contents:
    """Return what one line says."""
    payload = b64decode(found["payload"] or "", validate=True)
    if found["type"] == SEGMENT:
        return Segment(payload)
    if found["type"] != CONTENTS:
        raise ValueError(f"type {found['type']}")
    raw = found.get("name_raw")
    name = b64decode(raw) if raw else str(found.get("name", "")).encode()
    real = found.get("real")
    path = b64decode(real) if real else b"/".join(names_in(name))
    return Contents(
        name, path, int(found.get("size", 0)), int.from_bytes(payload, "big")
    )


# %% Reading it back
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


def assemble(split: str, tree: str, put: Put) -> None:
    """Write the tar that the file ``split`` was recorded from; ``tree`` has the files.

    Raises IntegrityError for a file that is gone or has another size. Whether the
    bytes are right the caller sees by their digest.
    """
    with TreeWriter(tree, put) as writer:
        kept = kept_beside(split)
        for number, part in enumerate(read_split(split)):
            if isinstance(part, Segment):
                writer.tar.write(part.data)
            elif part.size:
                add_contents(writer, part, kept.get(number))
        writer.tar.flush()


def kept_beside(split: str) -> dict[int, str]:
    """Return the files with replaced contents, by the number of their line."""
    above = os.path.dirname(split) or "."
    names = [name for name in os.listdir(above) if name.startswith("replaced-")]
    return {int(name.partition("-")[2]): f"{above}/{name}" for name in names}


def add_contents(writer: TreeWriter, part: Contents, kept: str | None) -> None:
    """Write the contents of one file, or of the one that was there before it."""
    try:
        if kept:
            with open(kept, "rb") as file:
                writer.tar.copy(file.fileno(), part.size, part.path)
            return
        writer.add_contents(part.path, part.size)
    except (ConflictError, OSError) as why:
        if getattr(why, "errno", None) not in (*NOT_THERE, None):
            raise
        what = "the file is not the one that came with the layer"
        raise IntegrityError(what, where=printable(part.path)) from why


# %% Reading it back
def damaged_file(split: str, tree: str) -> str | None:
    """Return the path of the first file whose contents are not those that came."""
    crc64, kept = fast_crc64(), kept_beside(split)
    for number, part in enumerate(read_split(split)):
        if isinstance(part, Contents) and part.size:
            found = [0]

            def put(data: bytes, found: list[int] = found) -> None:
                found[0] = crc64(data, found[0])

            with TreeWriter(tree, put) as writer:
                add_contents(writer, part, kept.get(number))
                writer.tar.flush()
            if found[0] != part.crc:
                return printable(part.path)
    return None
