# From book/637-build-inputs.md. Edit there and tangle, or here and tangle --back.

# %% Build inputs: where context and Dockerfile come from
"""What `build` reads: a context and its Dockerfile, of a directory or of our input."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.context import (
    IGNORE_FILE,
    SourceTree,
    first_block,
    ignore_file,
    is_tar,
    open_context,
)
from minidocker.engine import Engine
from minidocker.errors import MinidockerError, NotFoundError, UsageError
from minidocker.flags import Given
from minidocker.patterns import read_patterns
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.reading import Read


# %% The nouns
class Input(Record):
    """What is built: a Dockerfile's text and name, and the context.

    ``dockerfile`` is its path in the context, "" where it is not from there.
    """

    text: bytes
    name: str
    tree: SourceTree


# %% Where the context comes from
REMOTE = ("http://", "https://", "git://", "git@", "ssh://")


def read_all(read: Read, most: int = 4 << 20) -> bytes:
    """Return what a stream has; UsageError when that is too much for a Dockerfile."""
    pieces, size = [], 0
    while data := read(1 << 16):
        pieces.append(data)
        size += len(data)
        if size > most:
            raise UsageError("neither a Dockerfile nor a tar", where="the input")
    return b"".join(pieces)


def peeked(read: Read) -> tuple[bytes, Read]:
    """Return the first 512 bytes, and a ``read`` that begins with them again."""
    head = first_block(read)
    rest = [head]

    def again(size: int) -> bytes:
        if rest and rest[0]:
            data, rest[0] = rest[0][:size], rest[0][size:]
            return data
        return read(size)

    return head, again


# %% Where the context comes from
@contextmanager
def input_from_stream(
    read: Read, given: Given, place: str, *, rootless: bool
) -> Iterator[Input]:
    """Give what our input holds: a Dockerfile alone, or a tar of a context."""
    from minidocker.compression import decompressed
    from minidocker.unpack import extract

    head, read = peeked(decompressed(read, "the input"))
    name = given.text("file") or "Dockerfile"
    os.makedirs(place, 0o700, exist_ok=True)
    if not is_tar(head):
        with SourceTree(place, lasting=False) as empty:
            yield Input(read_all(read), "Dockerfile", empty)
        return
    extract(read, place, ignore_owner=rootless)
    with SourceTree(place) as tree:
        text = dockerfile_in(tree, name)
        ignored, raw = ignore_file(tree, name)
    patterns = read_patterns(os.fsdecode(raw), ignored)
    with SourceTree(place, patterns, lasting=False) as tree:
        yield Input(text, name, tree)


def dockerfile_in(tree: SourceTree, name: str) -> bytes:
    """Return a Dockerfile of a context, read through its descriptor."""
    try:
        return tree.read(name)
    except NotFoundError as why:
        what = f'unable to read the Dockerfile: no file "{name}" in the context'
        raise MinidockerError(what, hint="-f names another one") from why


# %% Where the context comes from
@contextmanager
def input_from_directory(given: Given, path: str) -> Iterator[Input]:
    """Give a directory as context, and the Dockerfile that is or is not in it."""
    if not os.path.isdir(path):
        what = "unable to prepare context: no such directory"
        raise MinidockerError(what, where=path)
    name = given.text("file") or os.path.join(path, "Dockerfile")
    inside = os.path.relpath(name, path)
    inside = "" if inside.startswith("..") else inside
    for one in (inside, inside and f"{inside}.dockerignore", IGNORE_FILE):
        refuse_link_out(path, one)
    with open_context(path, inside) as tree:
        shown = given.text("file") or "Dockerfile"
        yield Input(read_dockerfile(name), shown, tree)


def refuse_link_out(path: str, inside: str) -> None:
    """Refuse a file of a context that is a link to something outside of it."""
    real, root = os.path.realpath(f"{path}/{inside}"), os.path.realpath(path)
    if os.path.commonpath((real, root)) != root:
        hint = "give the file itself with -f, if you trust who made the link"
        what = "a link that leads out of the context is not followed"
        raise MinidockerError(what, where=inside, hint=hint)


def read_dockerfile(name: str) -> bytes:
    """Return the text of a Dockerfile; MinidockerError says which path is missing."""
    try:
        if name == "-":
            return read_all(read_input)
        with open(name, "rb") as file:
            return file.read()
    except OSError as why:
        what = f"unable to read the Dockerfile: {why.strerror}"
        raise MinidockerError(what, where=name, hint="-f names another one") from why


# %% Where the context comes from
@contextmanager
def input_of(given: Given, engine: Engine) -> Iterator[Input]:
    """Give what `build PATH|-` builds."""
    path = given.args[0]
    if path.startswith(REMOTE):
        hint = "fetch it, and give the directory: minidocker build DIRECTORY"
        raise UsageError(f'the context "{path}" is not a directory', hint=hint)
    if path != "-":
        with input_from_directory(given, path) as found:
            yield found
        return
    if given.text("file") == "-":
        raise UsageError("the input cannot be both the context and the Dockerfile")
    from minidocker.trees import remove_path

    with engine.changing():  # or the next to come would sweep the context away
        place = engine.batch.new_path()
        try:
            rootless = engine.driver.rootless
            with input_from_stream(
                read_input, given, place, rootless=rootless
            ) as found:
                yield found
        finally:
            remove_path(place)


def read_input(size: int) -> bytes:
    """Read from our input."""
    return os.read(0, size)
