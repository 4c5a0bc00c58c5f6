# From book/636-build-results.md. Edit there and tangle, or here and tangle --back.

# %% Build results: outputs, and twice the same
"""What a build gives out: directories and tars, and whether twice the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from minidocker.context import SourceTree
from minidocker.engine import Engine
from minidocker.errors import BuildError, UsageError, did_you_mean
from minidocker.oci import chain_ids, parse_reference
from minidocker.records import Record
from minidocker.stage import BuildOptions


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


# %% The noun
class Output(Record):
    """A form of the result: ``kind`` is local, tar or oci; ``path`` may be "-"."""

    kind: str
    path: str


# %% What is given out
@contextmanager
def tree_of_image(engine: Engine, id: str) -> Iterator[str]:
    """Show the whole tree of an image in a directory for a ``with`` block."""
    from minidocker.oci import chain_id

    diff_ids, name = engine.images.get(id).diff_ids, f"output-{os.urandom(8).hex()}"
    engine.layers.create_rw(name, chain_id(diff_ids) if diff_ids else None)
    try:
        with engine.layers.rw_mounted(name, writable=False) as tree:
            yield tree
    finally:
        engine.layers.remove_rw(name)


def give_directory(engine: Engine, id: str, path: str) -> None:
    """Copy the image's tree into a directory, over what is there."""
    from minidocker.context import one_source
    from minidocker.copying import copy_sources
    from minidocker.manner import Manner

    os.makedirs(path, exist_ok=True)
    own = Manner(owner=(0, 0) if engine.driver.rootless else None)
    with tree_of_image(engine, id) as root, SourceTree(root, owned=True) as tree:
        copy_sources(tree, [one_source(tree, ".")], path, "/", own)


def give_tar(engine: Engine, id: str, path: str) -> None:
    """Write the image's tree as a tar to a file, or to our output."""
    from minidocker.archive import pack

    with tree_of_image(engine, id) as root, output_file(path) as file:
        pack(root, file.write)


def refuse_terminal() -> None:
    """Raise UsageError where our output is a terminal."""
    if os.isatty(1):
        raise UsageError("a tar is not for a terminal", hint="dest=FILE, or a pipe")


def output_file(path: str) -> BinaryIO:
    """Open what a tar is written to; "-" is our output. Raises UsageError."""
    if path != "-":
        return open(path, "wb")
    refuse_terminal()
    return open(1, "wb", closefd=False)


# %% What is given out
def give_oci(engine: Engine, id: str, path: str) -> None:
    """Write the image as an OCI layout in a tar, to a file or to our output."""
    from minidocker.compression import Codec
    from minidocker.transfer import Format, Order, Packing, save, shelf_at

    order = Order(id, tuple(map(parse_reference, engine.images.tags_of(id))))
    if path == "-":
        refuse_terminal()
    place = "" if path == "-" else path
    with shelf_at(place, Format.OCI_ARCHIVE, engine.batch.tmp) as shelf:
        packing = Packing(Codec.GZIP)
        save(
            engine.images, engine.layers, [order], shelf, docker=False, packing=packing
        )


# %% What is given out
OUTPUTS: dict[str, Callable[[Engine, str, str], None]] = {
    "local": give_directory, "tar": give_tar, "oci": give_oci,
}  # fmt: skip


def pairs_of(
    lines: tuple[str, ...], flag: str, *, from_environment: bool = False
) -> dict[str, str]:
    """Return ``NAME=VALUE`` flags; a name alone may take our environment's value.

    >>> pairs_of(("a=b=c",), "label")
    {'a': 'b=c'}
    """
    found = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and name:
            found[name] = value
        elif not from_environment:
            raise UsageError(
                f'"{line}" is not of the form NAME=VALUE', where=f"--{flag}"
            )
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def fields_of(text: str, flag: str, known: tuple[str, ...]) -> dict[str, str]:
    """Return the fields of ``a=b,c=d``; UsageError for one that is not known."""
    found = pairs_of(tuple(text.split(",")), flag)
    for name in found:
        if name not in known:
            hint = did_you_mean(name, known, other=f"there are {', '.join(known)}")
            raise UsageError(f'no field "{name}"', where=f"--{flag}", hint=hint)
    return found


def output_of(text: str) -> Output:
    """Return an ``--output``; a path alone is ``type=local``, a dash a tar.

    >>> output_of("out"), output_of("type=tar,dest=t.tar")
    (Output(kind='local', path='out'), Output(kind='tar', path='t.tar'))
    """
    if "=" not in text:
        return Output("tar" if text == "-" else "local", text)
    given = fields_of(text, "output", ("type", "dest"))
    kind, path = given.get("type", ""), given.get("dest", "")
    if kind not in OUTPUTS:
        hint = did_you_mean(kind, OUTPUTS, other=f"there are {', '.join(OUTPUTS)}")
        raise UsageError(f'no type "{kind}"', where="--output", hint=hint)
    if not path and kind == "local":
        raise UsageError("type=local needs dest=DIRECTORY", where="--output")
    return Output(kind, path or "-")


# %% Twice the same
def first_byte(one: bytes, two: bytes) -> int:
    """Return where two texts differ first, or the shorter one's length.

    >>> first_byte(b"abc", b"abx"), first_byte(b"ab", b"abc")
    (2, 2)
    """
    pairs = zip(one, two, strict=False)
    same = (n for n, (a, b) in enumerate(pairs) if a != b)
    return next(same, min(len(one), len(two)))


# %% Twice the same
def layer_difference(engine: Engine, chains: tuple[str, str]) -> str:
    """Say where the tars of two layers differ, and in which file."""
    import tarfile
    import tempfile

    os.makedirs(engine.batch.tmp, 0o700, exist_ok=True)
    with ExitStack() as stack:
        files = []
        for chain in chains:
            files.append(
                stack.enter_context(tempfile.TemporaryFile(dir=engine.batch.tmp))
            )
            engine.layers.tar_of(chain, files[-1].write)
            files[-1].seek(0)
        at, (one, two) = 0, files
        while (a := one.read(1 << 18)) == (b := two.read(1 << 18)) and a:
            at += len(a)
        at += first_byte(a, b)
        one.seek(0)
        name = "the end"
        with tarfile.open(fileobj=one) as tar:
            for member in tar:
                if member.offset > at:
                    break
                name = member.name
    return f'byte {at} of the layer\'s tar, in "{name}"'


def difference(engine: Engine, one: str, two: str) -> str:
    """Say what is the first byte that differs in two images."""
    images = [engine.images.get(id) for id in (one, two)]
    stacks = [image.diff_ids for image in images]
    for number, pair in enumerate(zip(*stacks, strict=False), 1):
        if pair[0] != pair[1]:
            chains = tuple(chain_ids(ids)[number - 1] for ids in stacks)
            where = layer_difference(engine, (chains[0], chains[1]))
            return f"layer {number} of {len(stacks[0])}: {where}"
    texts = [engine.images.raw(id) for id in (one, two)]
    at = first_byte(*texts)
    shown = [text[max(0, at - 20) : at + 20].decode(errors="replace") for text in texts]
    return f'byte {at} of the JSON: "{shown[0]}" and "{shown[1]}"'


# %% Twice the same
def verify(
    engine: Engine, made: Callable[[BuildOptions], str], options: BuildOptions
) -> str:
    """Build twice without the cache; BuildError if they differ."""
    from time import time

    if options.epoch is None:
        given = options.build_args.get("SOURCE_DATE_EPOCH", "")
        text = given or os.environ.get("SOURCE_DATE_EPOCH", "")
        options = options.replace(epoch=int(text) if text.isdigit() else int(time()))
    options = options.replace(no_cache=True)
    one = made(options)
    two = made(options.replace(tags=()))
    if one != two:
        what = f"two builds differ: {difference(engine, one, two)}"
        raise BuildError(what, hint="what depends on time, chance or the network?")
    return one
