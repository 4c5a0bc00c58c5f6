# From book/550-transfer.md. Edit there and tangle, or here and tangle --back.

# %% Transfer: an image in one file
"""Write images to a tar or a directory that other engines read.

Constant memory: a layer's files are read once, packed, digested, compressed and
digested again on the way. What is not finished does not appear under its name.
"""

from __future__ import annotations

import json
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minidocker.archive import Put
from minidocker.compression import Codec, compress_layer
from minidocker.errors import ConflictError, MinidockerError, UsageError
from minidocker.headers import BLOCK, Entry, Kind, sealed, ustar
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.manifests import (
    Descriptor,
    Index,
    Manifest,
    Media,
    Platform,
    described,
)
from minidocker.oci import Reference, chain_ids, hex_of, parse_reference
from minidocker.records import Enum, Record
from minidocker.trees import remove_path, write_all


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class Format(Enum):
    """What a shipment looks like; the value is its name on the command line."""

    DOCKER_ARCHIVE = "docker-archive"
    OCI_ARCHIVE = "oci-archive"
    OCI_DIR = "oci-dir"


class Order(Record):
    """An image to be saved, and the names that go with it."""

    id: str
    names: tuple[Reference, ...]


class Packing(Record):
    """How layers are compressed; ``level`` None is the usual one."""

    codec: Codec = Codec.PLAIN
    level: int | None = None


LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
NAME_NOTE = "io.containerd.image.name"
REF_NOTE = "org.opencontainers.image.ref.name"


# %% Shelves: where blobs go
Writer = Callable[[Put], Descriptor]


class Shelf(ABC):
    """Takes a shipment. ``blob`` is kept once for each ``key``."""

    def __init__(self) -> None:
        self._kept: dict[str, Descriptor] = {}
        self._names: set[str] = set()

    def blob(self, key: str, write: Writer) -> Descriptor:
        """Keep what ``write`` puts, under the digest that it returns."""
        if key not in self._kept:
            self._kept[key] = self.add_blob(write)
        return self._kept[key]

    def text(self, data: bytes, media: Media) -> Descriptor:
        """Keep a document as a blob."""
        found = described(data, media.value)

        def write(put: Put) -> Descriptor:
            put(data)
            return found

        return self.blob(found.digest, write)

    def is_new(self, found: Descriptor) -> bool:
        """Whether this blob is not there yet; from now on it is."""
        new = found.digest not in self._names
        self._names.add(found.digest)
        return new

    @abstractmethod
    def add_blob(self, write: Writer) -> Descriptor:
        """Keep what ``write`` puts; return what it returned."""

    @abstractmethod
    def add_file(self, name: str, data: bytes) -> None:
        """Keep a small file that is no blob."""

    @abstractmethod
    def finish(self) -> None:
        """Nothing more comes."""


# %% Shelves: where blobs go
def member_header(name: str, size: int) -> bytes:
    """Return the header of a file in an archive, from 1970 and root's.

    One block for any size: over 8 GiB the number is in base 256, as GNU tar does.
    """
    block = ustar(Entry(name.encode(), Kind.FILE, size=size))
    if size >= 8**11:
        number = (0x80 << 88 | size).to_bytes(12, "big")
        block = sealed(block[:124] + number + block[136:])
    return block


def blob_name(digest: str) -> str:
    """Return the path of a blob in a layout.

    >>> blob_name("sha256:" + "0" * 64)[:15]
    'blobs/sha256/00'
    """
    return f"blobs/sha256/{hex_of(digest)}"


# %% Shelves: where blobs go
class TarShelf(Shelf):
    """A tar in an open file that can go back."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._at = os.lseek(fd, 0, os.SEEK_CUR)
        for name in (b"blobs/", b"blobs/sha256/"):
            self._write(ustar(Entry(name, Kind.DIRECTORY, 0o755)))

    def _write(self, data: bytes) -> None:
        write_all(self._fd, data)
        self._at += len(data)

    def add_blob(self, write: Writer) -> Descriptor:
        """Write the contents, then go back for the header."""
        start = self._at
        self._write(bytes(BLOCK))
        found = write(self._write)
        if not self.is_new(found):
            self._at = os.lseek(self._fd, start, os.SEEK_SET)
            return found
        self._write(bytes(-found.size % BLOCK))
        os.pwrite(self._fd, member_header(blob_name(found.digest), found.size), start)
        return found

    def add_file(self, name: str, data: bytes) -> None:
        """Write a member."""
        self._write(member_header(name, len(data)) + data + bytes(-len(data) % BLOCK))

    def finish(self) -> None:
        """End the tar, and cut off what a repeated blob has left behind it."""
        self._write(bytes(2 * BLOCK))
        if os.fstat(self._fd).st_size > self._at:
            os.ftruncate(self._fd, self._at)


# %% Shelves: where blobs go
class PipeShelf(TarShelf):
    """A tar into something that cannot go back; a blob waits in an unnamed file."""

    def __init__(self, fd: int, tmp: str) -> None:
        Shelf.__init__(self)
        self._fd, self._tmp, self._at = fd, tmp, 0
        for name in (b"blobs/", b"blobs/sha256/"):
            self._write(ustar(Entry(name, Kind.DIRECTORY, 0o755)))

    def add_blob(self, write: Writer) -> Descriptor:
        """Write to the unnamed file, then copy it behind its header."""
        from tempfile import TemporaryFile

        os.makedirs(self._tmp, 0o700, exist_ok=True)
        with TemporaryFile(dir=self._tmp, buffering=0) as spool:
            found = write(lambda data: write_all(spool.fileno(), data))
            if self.is_new(found):
                spool.seek(0)
                self._write(member_header(blob_name(found.digest), found.size))
                while data := spool.read(1 << 18):
                    self._write(data)
                self._write(bytes(-found.size % BLOCK))
        return found

    def finish(self) -> None:
        """End the tar."""
        self._write(bytes(2 * BLOCK))


# %% Shelves: where blobs go
class DirectoryShelf(Shelf):
    """A directory, new or empty."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        os.makedirs(f"{path}/blobs/sha256")

    def add_blob(self, write: Writer) -> Descriptor:
        """Write to a file, then give it its name."""
        new = f"{self._path}/blobs/new"
        with open(new, "xb", buffering=0) as file:
            found = write(lambda data: write_all(file.fileno(), data))
        self.is_new(found)
        os.rename(new, f"{self._path}/{blob_name(found.digest)}")
        return found

    def add_file(self, name: str, data: bytes) -> None:
        """Write a file."""
        with open(f"{self._path}/{name}", "xb") as file:
            file.write(data)

    def finish(self) -> None:
        """Every file is closed."""


# %% An image on the shelf
def put_image(
    images: ImageStore, layers: LayerStore, id: str, shelf: Shelf, packing: Packing
) -> tuple[Descriptor, Manifest]:
    """Put an image's blobs on a shelf; return the descriptor of its manifest, and it.

    Raises IntegrityError when its files are not those of its layers any more.
    """
    image = images.get(id)
    config = shelf.text(images.raw(id), Media.OCI_CONFIG)
    found = []
    for diff_id, chain in zip(image.diff_ids, chain_ids(image.diff_ids), strict=True):

        def write(put: Put, chain: str = chain) -> Descriptor:
            codec, level = packing.codec, packing.level
            return compress_layer(layers, chain, put, codec=codec, level=level)

        found.append(shelf.blob(diff_id, write))
    manifest = Manifest(config, tuple(found))
    variant = str((image.extra or {}).get("variant", ""))
    platform = Platform(image.os, image.architecture, variant)
    place = shelf.text(manifest.to_json(), Media.OCI_MANIFEST)
    return place.replace(platform=platform), manifest


# %% An image on the shelf
def index_lines(
    place: Descriptor, names: tuple[Reference, ...]
) -> Iterator[Descriptor]:
    """Yield a line of the index for each name; one without, if there is none."""
    if not names:
        yield place
    for name in names:
        whole = f"{name.registry}/{name.repository}:{name.tag}"
        notes = {NAME_NOTE: whole, REF_NOTE: name.tag or ""}
        yield place.replace(annotations=notes)


def docker_line(manifest: Manifest, names: tuple[Reference, ...]) -> dict[str, Any]:
    """Return what Docker's `manifest.json` has for an image."""
    return {
        "Config": blob_name(manifest.config.digest),
        "RepoTags": [name.familiar for name in names] or None,
        "Layers": [blob_name(layer.digest) for layer in manifest.layers],
    }


def repositories(lines: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the oldest of the documents: names, and the digits of the top layer."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        top = line["Layers"][-1].rpartition("/")[2] if line["Layers"] else ""
        for text in line["RepoTags"] or () if top else ():
            name = parse_reference(text)
            found.setdefault(name.name, {})[name.tag or ""] = top
    return found


# %% An image on the shelf
def save(
    images: ImageStore,
    layers: LayerStore,
    orders: list[Order],
    shelf: Shelf,
    *,
    docker: bool = True,
    packing: Packing | None = None,
) -> None:
    """Put images on a shelf, and the documents about them; ``docker``: Docker's too."""
    lines: list[Descriptor] = []
    docker_lines: list[dict[str, Any]] = []
    for order in orders:
        place, manifest = put_image(
            images, layers, order.id, shelf, packing or Packing()
        )
        lines += index_lines(place, order.names)
        docker_lines.append(docker_line(manifest, order.names))
    if docker:
        shelf.add_file("manifest.json", json.dumps(docker_lines).encode())
        found = repositories(docker_lines)
        shelf.add_file("repositories", json.dumps(found).encode())
    shelf.add_file("index.json", Index(tuple(lines)).to_json())
    shelf.add_file("oci-layout", LAYOUT)
    shelf.finish()


# %% Which images, by which names
def orders_of(images: ImageStore, texts: tuple[str, ...]) -> list[Order]:
    """Return what is to be saved for the words of a command line, in their order.

    Raises NotFoundError and UsageError.
    """
    found: dict[str, dict[Reference, None]] = {}
    for text in texts:
        for id, name in meant(images, text):
            found.setdefault(id, {}).update(dict.fromkeys(name))
    return [Order(id, tuple(names)) for id, names in found.items()]


def meant(images: ImageStore, text: str) -> Iterator[tuple[str, list[Reference]]]:
    """Yield the images that a word means, with the names it gives them."""
    try:
        name = parse_reference(text)
    except UsageError:
        yield images.resolve(text), []
        return
    tags = images.names.read().get(name.name, {})
    whole = [(id, [parse_reference(tag)]) for tag, id in tags.items() if "@" not in tag]
    if whole and not (name.tag or name.digest):
        yield from whole
        return
    id = images.resolve(text)
    yield id, [name] if name.tag and tags.get(name.familiar) == id else []


# %% Where it goes
@contextmanager
def shelf_at(path: str, form: Format, tmp: str) -> Iterator[Shelf]:
    """Yield the shelf for an output: a path, or "" for our standard output.

    A file or directory appears under its name when the block ends well, and is gone
    when it does not; a device or a pipe is written to directly.
    """
    if form is Format.OCI_DIR:
        with finished(path, directory=True) as new:
            yield DirectoryShelf(new)
    elif not path:
        yield shelf_on(1, tmp)
    elif is_stream(path):
        with open(path, "wb", buffering=0) as file:
            yield shelf_on(file.fileno(), tmp)
    else:
        with finished(path) as new, open(new, "xb", buffering=0) as file:
            yield TarShelf(file.fileno())


def is_stream(path: str) -> bool:
    """Whether this is a pipe or a device, which cannot be replaced."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


# %% Where it goes
def shelf_on(fd: int, tmp: str) -> TarShelf:
    """Return the shelf for an open file: one that goes back if the file can."""
    plain = stat.S_ISREG(os.fstat(fd).st_mode)
    return TarShelf(fd) if plain and not appends(fd) else PipeShelf(fd, tmp)


def appends(fd: int) -> bool:
    """Whether what is written goes to the end whatever the position: ``>>``."""
    import fcntl

    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)


@contextmanager
def finished(path: str, *, directory: bool = False) -> Iterator[str]:
    """Yield a name beside ``path``; what is there gets the name when all went well.

    A symbolic link stays, and what it points to is replaced: /dev/stdout is one.
    """
    path = os.path.realpath(path)
    if directory and os.path.isdir(path) and os.listdir(path):
        raise ConflictError("the directory is not empty", where=path)
    if not directory and os.path.isdir(path):
        raise ConflictError("it is a directory", where=path)
    new = f"{path}.{os.urandom(4).hex()}"
    try:
        yield new
        os.rename(new, path)
    except OSError as why:
        remove_path(new)
        raise MinidockerError(f"cannot be written: {why.strerror}", where=path) from why
    except BaseException:
        remove_path(new)
        raise
