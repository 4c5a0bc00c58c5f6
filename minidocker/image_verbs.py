# From book/630-image-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Image verbs: import, commit, diff, export
"""The commands on images: take what was given, ask the engine, print."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext, suppress

from minidocker.container_verbs import (
    Needs,
    open_engine,
    print_lines,
)
from minidocker.containers import Status
from minidocker.engine import Engine
from minidocker.errors import IntegrityError, MinidockerError, UsageError
from minidocker.flags import LIST, MAX_SIZE, TEXT, Command, Flag, Given, size
from minidocker.oci import Reference, go_json, parse_reference
from minidocker.pausing import paused


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.reading import Read


# %% Progress
class Meter:
    """A line on the terminal that counts bytes; silent where there is no terminal."""

    def __init__(self, what: str) -> None:
        self.what, self.size, self.shown = what, 0, 0
        self.live = os.isatty(2)

    def add(self, size: int) -> None:
        """Count bytes; show them at every eighth of a megabyte."""
        self.size += size
        if self.live and self.size - self.shown >= 1 << 17:
            from minidocker.tables import human_size

            self.shown = self.size
            sys.stderr.write(f"\r{self.what} {human_size(self.size):>8} ")
            sys.stderr.flush()

    def end(self) -> None:
        """Clear the line."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# %% From a container to an image
def diff(given: Given) -> int:
    """``diff CONTAINER``"""
    engine = open_engine(given, Needs.TREES)
    print_lines(map(str, engine.diff(engine.containers.resolve(given.args[0]))))
    return 0


def commit(given: Given) -> int:
    """``commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]``"""
    reference = optional_reference(given.args[1:])
    engine = open_engine(given, Needs.MOUNTS)
    container = engine.containers.resolve(given.args[0])
    with paused(engine.containers, container) if given.on("pause") else nullcontext():
        id = engine.commit(
            container,
            reference,
            author=given.text("author"),
            comment=given.text("message"),
            changes=given.list("change"),
        )
    print(id)
    return 0


def optional_reference(args: tuple[str, ...]) -> Reference | None:
    """Return the reference in the arguments, if there is one."""
    return parse_reference(args[0]) if args else None


def export(given: Given) -> int:
    """``export [OPTIONS] CONTAINER``"""
    engine, path = open_engine(given, Needs.MOUNTS), given.text("output")
    container = engine.containers.resolve(given.args[0])
    if not path and os.isatty(1):
        raise UsageError("a tar is not for a terminal", hint="-o FILE, or a pipe")
    meter = Meter("Exporting")
    with open(path, "wb") if path else open(1, "wb", closefd=False) as file:

        def put(data: bytes) -> None:
            file.write(data)
            meter.add(len(data))

        engine.export(container, put)
    meter.end()
    return 0


# %% Images
def tar_reader(engine: Engine, source: str) -> Read:
    """Open a tar, compressed or not; ``-`` is our input. Returns its ``read``.

    A tar at an address is fetched whole first. Raises MinidockerError.
    """
    from minidocker.compression import decompressed

    if source.startswith(("http://", "https://")):
        fd = fetched(engine, source)
    else:
        try:
            fd = 0 if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as why:
            what = f"cannot be read: {why.strerror}"
            raise MinidockerError(what, where=source) from why
    return decompressed(lambda size: os.read(fd, size), source)


def fetched(engine: Engine, url: str) -> int:
    """Fetch what is at an address into an unnamed file; return its descriptor."""
    from minidocker.addresses import fetch

    path = engine.batch.new_path()
    try:
        fetch(url, path)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def import_(given: Given) -> int:
    """``import [OPTIONS] FILE|URL|- [REPOSITORY[:TAG]]``"""
    from minidocker.manifests import parse_platform

    source, meter = given.args[0], Meter("Importing")
    reference = optional_reference(given.args[1:])
    wanted = given.text("platform")
    platform = parse_platform(wanted) if wanted else None
    if source == "-" and os.isatty(0):
        raise UsageError("a tar is expected on the input, not a terminal")
    engine = open_engine(given, Needs.MOUNTS)
    engine.max_size = size(given, MAX_SIZE.name)
    read = tar_reader(engine, source)

    def counted(size: int) -> bytes:
        data = read(size)
        meter.add(len(data))
        return data

    try:
        id = engine.import_(
            counted,
            reference,
            source=source,
            message=given.text("message"),
            changes=given.list("change"),
            platform=platform,
        )
    except IntegrityError as why:
        why.where = why.where or ("the input" if source == "-" else source)
        raise
    meter.end()
    print(id)
    return 0


# %% Images
def info(given: Given) -> int:
    """``info [OPTIONS]``"""
    from minidocker.info import driver_reason, findings
    from minidocker.tables import human_size
    from minidocker.values import fill

    found = findings()
    engine = open_engine(given)
    states = [state.status for _, state in engine.containers.list()]
    facts = {
        "Containers": len(states),
        "ContainersRunning": states.count(Status.RUNNING),
        "Images": len(engine.images.ids()),
        "Driver": engine.driver.name,
        "DriverReason": driver_reason(engine.driver.name, engine.root),
        "Rootless": engine.driver.rootless,
        "RootDir": engine.root,
        "KernelVersion": os.uname().release,
        "Architecture": os.uname().machine,
        "NCPU": os.cpu_count() or 1,
        **{finding.name.replace(" ", ""): finding.works for finding in found},
    }
    if form := given.text("format"):
        print(go_json(facts).decode() if form == "json" else fill(form, facts))
        return 0
    for name, value in list(facts.items())[:10]:
        print(f"{name}: {value}")
    for name, value in engine.driver.report().items():
        print(f" {name}: {human_size(value) if isinstance(value, int) else value}")
    for finding in found:
        print(f"{finding.name}: {'yes' if finding.works else 'no'}, {finding.follows}")
    return 0


# %% The table
CHANGE = Flag("change", "Apply Dockerfile instruction to the image", "c", LIST)

COMMANDS = (
    Command(
        "import", "[OPTIONS] FILE|URL|- [REPOSITORY[:TAG]]",
        "Import the contents from a tarball to create an image", import_,
        (
            CHANGE, Flag("message", "Set commit message for the image", "m", TEXT),
            MAX_SIZE,
            Flag("platform", "Set the platform of the image: linux/arm64", takes=TEXT),
        ),
        least=1, most=2, example="tar -C tree -c . | minidocker import - tree:v1",
    ),
    Command(
        "commit", "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        "Create a new image from a container's changes", commit,
        (
            Flag("author", "Author", "a", TEXT), CHANGE,
            Flag("message", "Commit message", "m", TEXT),
            Flag("pause", "Pause container during commit", "p", default="true"),
        ),
        least=1, most=2,
    ),
    Command(
        "diff", "CONTAINER", "Inspect changes to files on a container's filesystem",
        diff, least=1, most=1,
    ),
    Command(
        "export", "[OPTIONS] CONTAINER",
        "Export a container's filesystem as a tar archive", export,
        (Flag("output", "Write to a file, instead of STDOUT", "o", TEXT),),
        least=1, most=1,
    ),
    Command(
        "info", "[OPTIONS]", "Say what this kernel and this user allow", info,
        (Flag("format", "Format the output: json, or a template", "f", TEXT),), most=0,
    ),
)  # fmt: skip
