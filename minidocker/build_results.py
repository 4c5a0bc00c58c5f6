# From book/648-build-results.md. Edit there and tangle, or here and tangle --back.

# %% Build results: progress, outputs, and twice the same
"""What a build shows and gives out: progress, directories and tars, verification."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from minidocker.context import SourceTree
from minidocker.durable import write_new
from minidocker.engine import Engine
from minidocker.errors import BuildError, UsageError, did_you_mean
from minidocker.flags import Given
from minidocker.oci import chain_ids, go_json, hex_of, parse_reference
from minidocker.records import Record
from minidocker.stage import BuildOptions
from minidocker.trees import remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


# %% The noun
class Output(Record):
    """A form of the result: ``kind`` is local, tar or oci; ``path`` may be "-"."""

    kind: str
    path: str


# %% Progress
class Progress:
    """Shows the lines of a build and, through ``output``, what its commands print."""

    output = -1  # the descriptor that commands write to; -1 is our own output

    def __call__(self, line: str) -> None:
        print(line, flush=True)

    def end(self, *, failed: bool = False) -> None:
        """Finish: nothing more comes."""


class Quiet(Progress):
    """Keeps everything, and shows it when the build has failed."""

    def __init__(self) -> None:
        self.output = os.memfd_create("build", os.MFD_CLOEXEC)

    def __call__(self, line: str) -> None:
        os.write(self.output, os.fsencode(f"{line}\n"))

    def end(self, *, failed: bool = False) -> None:
        """Show what was kept, if that is wanted."""
        at = 0
        while failed and (data := os.pread(self.output, 1 << 16, at)):
            os.write(2, data)
            at += len(data)
        os.close(self.output)


class Json(Progress):
    """Prints each line as an object, as Docker's daemon sends them."""

    def __init__(self) -> None:
        import threading

        source, self.output = os.pipe2(os.O_CLOEXEC)
        self.reader = threading.Thread(target=self.wrap, args=(source,), daemon=True)
        self.reader.start()

    def __call__(self, line: str) -> None:
        os.write(self.output, os.fsencode(f"{line}\n"))

    def wrap(self, source: int) -> None:
        """Wrap what comes until there is no more."""
        with open(source, "rb") as lines:
            for line in lines:
                print(
                    go_json({"stream": line.decode(errors="replace")}).decode(),
                    flush=True,
                )

    def end(self, *, failed: bool = False) -> None:
        """Wait until all is printed."""
        os.close(self.output)
        self.reader.join()


class Rich(Progress):
    """Prints in colours, with the time of each step."""

    def __init__(self) -> None:
        from time import monotonic

        from rich.console import Console

        self.console, self.clock, self.since = Console(highlight=False), monotonic, 0.0

    def __call__(self, line: str) -> None:
        kinds = {"Step ": "bold", " ---> Using cache": "green", " ---> Not": "yellow"}
        style = next((s for start, s in kinds.items() if line.startswith(start)), "")
        style = style or ("cyan" if line.startswith("Success") else "dim")
        if style == "bold":
            self.end()
            self.since = self.clock()
        self.console.print(line, style=style, markup=False, soft_wrap=True)

    def end(self, *, failed: bool = False) -> None:
        """Say how long the step took that has ended."""
        if self.since:
            took = f" ---> {self.clock() - self.since:.2f} s"
            self.console.print(took, style="red" if failed else "dim", markup=False)
        self.since = 0.0


PROGRESS: dict[str, Callable[[], Progress]] = {
    "plain": Progress, "rich": Rich, "json": Json,
}  # fmt: skip


def progress_of(given: Given) -> Progress:
    """Return how progress is shown: as asked for, coloured on a terminal, or plain."""
    name = given.text("progress")
    if given.on("quiet"):
        return Quiet()
    if name == "auto":
        name = "rich" if os.isatty(1) and "NO_COLOR" not in os.environ else "plain"
    if name not in PROGRESS:
        hint = did_you_mean(name, PROGRESS, other=f"there are {', '.join(PROGRESS)}")
        raise UsageError(f'no progress "{name}"', where="--progress", hint=hint)
    return PROGRESS[name]()


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


def output_file(path: str) -> BinaryIO:
    """Open what a tar is written to; "-" is our output. Raises UsageError."""
    if path != "-":
        return open(path, "wb")
    if os.isatty(1):
        raise UsageError("a tar is not for a terminal", hint="dest=FILE, or a pipe")
    return open(1, "wb", closefd=False)


def lay_out(engine: Engine, id: str, place: str) -> None:
    """Write an image as an OCI layout below the directory ``place``."""
    from minidocker.compression import compress_layer
    from minidocker.manifests import Descriptor, Index, Manifest, Media, described

    blobs, layers = f"{place}/blobs/sha256", list[Descriptor]()
    os.makedirs(blobs)
    for chain in chain_ids(engine.images.get(id).diff_ids):
        with open(f"{blobs}/new", "wb") as file:
            layers.append(compress_layer(engine.layers, chain, file.write))
        os.rename(f"{blobs}/new", f"{blobs}/{hex_of(layers[-1].digest)}")
    config = described(engine.images.raw(id), Media.OCI_CONFIG.value)
    manifest = Manifest(config, tuple(layers)).to_json()
    told = described(manifest, Media.OCI_MANIFEST.value)
    names = [parse_reference(name).tag or "" for name in engine.images.tags_of(id)]
    lines = [told.replace(annotations={REF_NAME: name}) for name in names if name]
    for path, data in {
        f"blobs/sha256/{hex_of(id)}": engine.images.raw(id),
        f"blobs/sha256/{hex_of(told.digest)}": manifest,
        "index.json": Index(tuple(lines or [told])).to_json(),
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
    }.items():
        write_new(f"{place}/{path}", data)


REF_NAME = "org.opencontainers.image.ref.name"


def give_oci(engine: Engine, id: str, path: str) -> None:
    """Write the image as an OCI layout in a tar, to a file or to our output."""
    from minidocker.archive import names_below, pack

    place = engine.batch.new_path()
    try:
        lay_out(engine, id, place)
        for name in names_below(place):  # the same image, the same tar
            os.utime(os.path.join(os.fsencode(place), name), (0, 0))
        with output_file(path) as file:
            pack(place, file.write)
    finally:
        remove_path(place)


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
