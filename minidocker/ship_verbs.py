# From book/642-ship-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Ship verbs: images leave and arrive
"""The commands that ship images: take what was given, do it, print."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.compression import Codec, codec_named
from minidocker.container_verbs import Needs, open_engine, print_lines
from minidocker.durable import store_lock
from minidocker.engine import Engine
from minidocker.errors import IntegrityError, MinidockerError, UsageError
from minidocker.flags import MAX_SIZE, TEXT, Command, Flag, Given, size
from minidocker.loading import load as load_images
from minidocker.manifests import parse_platform
from minidocker.oci import short_id
from minidocker.opened_store import BASE
from minidocker.parcels import Source, directory_source, source_of
from minidocker.transfer import Format, Packing, orders_of, shelf_at
from minidocker.transfer import save as save_images


# %% How far it is
class Bars:
    """One line on the terminal that tells how far a layer is; silent elsewhere."""

    STEP = 1 << 20

    def __init__(self, *, quiet: bool) -> None:
        self.live = os.isatty(2) and not quiet
        self.shown = ("", 0)

    def tell(self, name: str, done: int, size: int) -> None:
        """Show that ``done`` of ``size`` bytes of a layer have been read."""
        if not self.live:
            return
        before, at = self.shown
        if name == before and done - at < self.STEP:
            return
        from minidocker.tables import human_size

        self.shown = name, done
        text = f"{short_id(name)}: {human_size(done)}/{human_size(size)}"
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    def end(self) -> None:
        """Clear the line."""
        if self.shown[0]:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# %% save
FORMATS = {form.value: form for form in Format}
USUAL = {
    Format.DOCKER_ARCHIVE: Codec.PLAIN,
    Format.OCI_ARCHIVE: Codec.GZIP,
    Format.OCI_DIR: Codec.GZIP,
}


def packing_of(given: Given, form: Format) -> Packing:
    """Return how layers are to be compressed."""
    name, level = given.text("compression"), given.text("compression-level")
    if level and not level.isdigit():
        raise UsageError(f'"{level}" is no level of compression')
    codec = codec_named(name) if name else USUAL[form]
    return Packing(codec, int(level) if level else None)


def save(given: Given) -> int:
    """``save [OPTIONS] IMAGE [IMAGE...]``"""
    path, name = given.text("output"), given.text("format")
    if name not in FORMATS:
        raise UsageError(f'no format "{name}"', hint=", ".join(FORMATS))
    form = FORMATS[name]
    packing = packing_of(given, form)
    if form is Format.OCI_DIR and not path:
        raise UsageError("a directory needs a name", hint="-o DIRECTORY")
    if not path and os.isatty(1):
        what = "cowardly refusing to save to a terminal"
        raise UsageError(what, hint="-o FILE, or a pipe")
    engine = open_engine(given, Needs.MOUNTS)
    for text in given.args:
        if text.removesuffix(":latest") == BASE:
            engine.find_image(text)
    with store_lock(engine.root):
        orders = orders_of(engine.images, given.args)
        with shelf_at(path, form, engine.batch.tmp) as shelf:
            docker = form is Format.DOCKER_ARCHIVE
            stores = engine.images, engine.layers
            save_images(*stores, orders, shelf, docker=docker, packing=packing)
    for id in dict.fromkeys(order.id for order in orders):
        engine.images.tell("save", id)
    return 0


# %% load
@contextmanager
def opened(engine: Engine, path: str, limit: int) -> Iterator[Source]:
    """Yield the shipment at a path; "" is our input."""
    if path and os.path.isdir(path):
        with directory_source(path) as source:
            yield source
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if path else 0
    except OSError as why:
        raise MinidockerError(f"cannot be read: {why.strerror}", where=path) from why
    try:
        with source_of(fd, engine.batch.tmp, limit=limit) as source:
            yield source
    finally:
        if fd:
            os.close(fd)


@contextmanager
def coming_from(path: str) -> Iterator[None]:
    """Put the file before an error that has no place of its own."""
    try:
        yield
    except IntegrityError as why:
        why.where = why.where or path or "the input"
        raise


def load(given: Given) -> int:
    """``load [OPTIONS]``"""
    path, bars = given.text("input"), Bars(quiet=given.on("quiet"))
    wanted = given.text("platform")
    platform = parse_platform(wanted) if wanted else None
    if not path and stat.S_ISCHR(os.fstat(0).st_mode):
        raise UsageError(
            "requested load from stdin, but stdin is empty", hint="-i FILE"
        )
    engine = open_engine(given, Needs.MOUNTS)
    engine.max_size = size(given, MAX_SIZE.name)
    limit = engine.room()
    with engine.bringing(), coming_from(path), opened(engine, path, limit) as source:
        stores = engine.images, engine.layers
        reports = load_images(
            *stores, source, platform=platform, limit=limit, told=bars.tell
        )
    bars.end()
    for report in reports:
        print_lines(report.lines())
    return 0


# %% The table
COMMANDS = (
    Command(
        "save", "[OPTIONS] IMAGE [IMAGE...]",
        "Save one or more images to a tar archive (streamed to STDOUT by default)",
        save,
        (
            Flag("output", "Write to a file, instead of STDOUT", "o", TEXT),
            Flag(
                "format", "docker-archive, oci-archive or oci-dir",
                takes=TEXT, default="docker-archive",
            ),
            Flag("compression", "Compress layers: none, gzip or zstd", takes=TEXT),
            Flag("compression-level", "0 to 3 (gzip), 1 to 22 (zstd)", takes=TEXT),
        ),
        least=1, example="minidocker save web:v1 | docker load",
    ),
    Command(
        "load", "[OPTIONS]", "Load an image from a tar archive or STDIN", load,
        (
            Flag("input", "Read from a file or directory, instead of STDIN", "i", TEXT),
            MAX_SIZE,
            Flag("platform", "Load the image for a platform: linux/arm64", takes=TEXT),
            Flag("quiet", "Suppress the load output", "q"),
        ),
        most=0, example="docker save web:v1 | minidocker load",
    ),
)  # fmt: skip
