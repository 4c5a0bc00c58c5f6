# From book/644-removal.md. Edit there and tangle, or here and tangle --back.

# %% Removal: what may go, and what it frees
"""Remove images by Docker's rules, prune what nothing needs, and say what it costs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress

from minidocker.catalog import Entry, entries_of, is_dangling, labels_match
from minidocker.containers import Container, State, Status
from minidocker.engine import Engine
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    MinidockerError,
    NotFoundError,
)
from minidocker.filters import Filters, all_labels_match, moment_of
from minidocker.lifecycle import remove
from minidocker.oci import Reference, parse_reference, short_id
from minidocker.records import Record
from minidocker.storing import remove_volume, used_volumes, volume_store
from minidocker.tables import nanoseconds_of


# %% The nouns
class Gone(Record):
    """One thing that was removed: a name, or the digest of an image or a layer.

    ``size`` is the bytes of a layer's files.
    """

    name: str
    untagged: bool
    size: int = 0

    def __str__(self) -> str:
        return f"{'Untagged' if self.untagged else 'Deleted'}: {self.name}"


class Conflict(Record):
    """Why an image cannot go. ``hard``: nor by force; ``used``: by a container."""

    id: str
    why: str
    hard: bool = False
    used: bool = False

    def error(self) -> ConflictError:
        """Return it as Docker phrases it."""
        must = "cannot be forced" if self.hard else "must be forced"
        what = f"conflict: unable to delete {short_id(self.id)} ({must}) - {self.why}"
        return ConflictError(what, hint=None if self.hard else "--force removes it")


# %% Who stands on a layer
class Stacks:
    """How many images and containers stand on each layer."""

    def __init__(self, engine: Engine, entries: Iterable[Entry]) -> None:
        self.engine = engine
        self.below: dict[str, tuple[str | None, int]] = {}
        self.tops = {entry.id: entry.chain for entry in entries}
        self.counts = Counter(c for top in self.tops.values() for c in self.stack(top))
        for id in engine.containers.ids():
            self.counts.update(self.stack(engine.layers.rw_parent(id) or ""))

    def stack(self, chain: str) -> Iterator[str]:
        """Yield a layer and those below it, by chain id; none for an empty one."""
        at: str | None = chain
        while at:
            if at not in self.below:
                self.below[at] = (None, 0)
                with suppress(NotFoundError, IntegrityError):
                    layer = self.engine.layers.get(at)
                    self.below[at] = (layer.parent, layer.size)
            yield at
            at = self.below[at][0]

    def size(self, chain: str) -> int:
        """Return the bytes of one layer's files."""
        return self.below[chain][1]

    def release(self, id: str) -> list[Gone]:
        """Take an image away; return the layers on which nothing stands any more."""
        stack = list(self.stack(self.tops.pop(id, "")))
        self.counts.subtract(stack)
        return [
            Gone(chain, untagged=False, size=self.size(chain))
            for chain in stack
            if not self.counts[chain]
        ]


# %% One image
def is_single(names: list[str]) -> bool:
    """Whether names are at most one tag, and digests of its repository only."""
    tags = [name for name in names if "@" not in name]
    if len(names) <= 1:
        return True
    repositories = {parse_reference(name).name for name in names}
    return len(tags) <= 1 and len(repositories) == 1


def begins_id(id: str, text: str) -> bool:
    """Whether a text is an id or how it begins; ``IMAGE@N`` counts as an id."""
    number = text.rpartition("@")[2]
    return id[7:].startswith(text.removeprefix("sha256:")) or (
        "@" in text and number.isdecimal()
    )


# %% One image
class Remover:
    """Removes images from a store; keeps the counts between one and the next."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.images = engine, engine.images
        self.stacks = Stacks(engine, entries_of(engine.images, engine.layers))
        self.boxes = engine.containers.list()

    def remove(self, text: str, *, force: bool, prune: bool) -> list[Gone]:
        """Remove a name, and the image if nothing holds it; or an image by its id.

        Raises NotFoundError, and ConflictError with nothing removed.
        """
        id = self.images.resolve(text)
        names = self.names(id)
        by_id = begins_id(id, text)
        if by_id:
            if not is_single(names):
                names = []
            elif conflict := self.conflict(id, force=force, names=False):
                raise conflict.error()
            gone = self.untag(names)
        else:
            if not force and is_single(names):
                self.refuse_used_name(text, id)
            gone = self.untag(self.names_going(parse_reference(text).tagged, names))
            if self.names(id):
                return gone
        return gone + self.delete(id, force=force, prune=prune, quiet=not by_id)

    def names(self, id: str) -> list[str]:
        """Return all names of an image."""
        return self.images.tags_of(id) + self.images.digests_of(id)

    def untag(self, names: Iterable[str]) -> list[Gone]:
        """Take names away."""
        gone = [Gone(name, untagged=True) for name in names]
        for one in gone:
            self.images.untag(parse_reference(one.name))
        return gone

    def names_going(self, name: Reference, names: list[str]) -> list[str]:
        """Return a name, and the digests of its repository if it was the last tag."""
        whole = name.replace(tag=None).familiar if name.digest else name.familiar
        own = [one for one in names if parse_reference(one).name == name.name]
        if name.digest or any("@" not in one for one in own if one != whole):
            return [whole]
        return [whole] + [one for one in own if one != whole]

    def refuse_used_name(self, text: str, id: str) -> None:
        """Raise ConflictError where an image would lose its last name in use."""
        for box, _ in self.boxes:
            if box.image == id:
                what = (
                    "conflict: unable to remove repository reference "
                    f'"{text}" (must force) - container {box.id[:12]} '
                    f"is using its referenced image {short_id(id)}"
                )
                raise ConflictError(what, hint="--force removes the name")

    def conflict(self, id: str, *, force: bool, names: bool = True) -> Conflict | None:
        """Return what forbids to delete an image; ``names``: also that it has some."""
        if self.images.children(id):
            return Conflict(id, "image has dependent child images", hard=True)
        users = [(box, state) for box, state in self.boxes if box.image == id]
        running = [box for box, state in users if state.status is Status.RUNNING]
        if running:
            why = f"image is being used by running container {running[0].id[:12]}"
            return Conflict(id, why, hard=True, used=True)
        if force:
            return None
        if names and self.names(id):
            return Conflict(id, "image is referenced in multiple repositories")
        if users:
            why = f"image is being used by stopped container {users[0][0].id[:12]}"
            return Conflict(id, why, used=True)
        return None

    def delete(self, id: str, *, force: bool, prune: bool, quiet: bool) -> list[Gone]:
        """Delete an image, its names, its own layers, and then its idle ancestors.

        ``quiet``: what cannot go stays, unless the image would be left dangling.
        """
        if found := self.conflict(id, force=force):
            dangling = not self.names(id) and not self.images.children(id)
            if quiet and (not dangling or found.used):
                return []
            raise found.error()
        parent = self.images.parent(id)
        gone = self.untag(self.names(id))
        if not self.images.delete(id):
            return gone
        self.images.tell("delete", id)
        gone += [Gone(id, untagged=False), *self.stacks.release(id)]
        if parent and prune:
            with suppress(NotFoundError):
                gone += self.delete(parent, force=False, prune=True, quiet=True)
        return gone


# %% All that nothing needs
PRUNE_FILTERS = ("dangling", "label", "label!", "until")


def may_prune(created: int, filters: Filters) -> bool:
    """Whether a thing that was made at ``created`` is old enough for ``until``."""
    now = time.time_ns()
    return all(created <= moment_of(one, now) for one in filters.get("until", ()))


def prune_images(engine: Engine, filters: Filters, *, everything: bool) -> list[Gone]:
    """Remove the dangling images, or with ``everything`` all without a container.

    An image that cannot go stays without a word.
    """
    entries = entries_of(engine.images, engine.layers)
    remover = Remover(engine)
    gone: list[Gone] = []
    with engine.changing():
        for entry in entries:
            chosen = is_dangling(entry) or (everything and not entry.is_step)
            if not chosen or not may_prune(entry.created, filters):
                continue
            if labels_match(entry, filters):
                for text in entry.names or (entry.id,):
                    with suppress(ConflictError, NotFoundError):
                        gone += remover.remove(text, force=False, prune=True)
    engine.tidy()
    return gone


# %% All that nothing needs
def prune_volumes(engine: Engine, filters: Filters) -> list[Gone]:
    """Remove the volumes that no container mounts; return them with their bytes."""
    used, gone = used_volumes(engine.containers), []
    for volume in volume_store(engine.containers).list():
        if volume.name in used or not all_labels_match(volume.labels or {}, filters):
            continue
        size = volume.size()
        with suppress(ConflictError, NotFoundError):
            remove_volume(engine.containers, volume.name)
            gone.append(Gone(volume.name, untagged=False, size=size))
    return gone


def prune_containers(engine: Engine, filters: Filters) -> list[Gone]:
    """Remove the containers that do not run; return them with the bytes of each."""
    gone: list[Gone] = []
    for box, state in engine.containers.list():
        labels = box.config.labels or {}
        if state.status is Status.RUNNING or not all_labels_match(labels, filters):
            continue
        if may_prune(nanoseconds_of(box.created), filters):
            with suppress(MinidockerError):
                size = engine.layers.rw_size(box.id)
                remove(engine.containers, box)
                gone.append(Gone(box.id, untagged=False, size=size))
    return gone


# %% What it all costs
class ImageCost(Record):
    """What an image costs: ``shared`` bytes that others show too, and its own."""

    entry: Entry
    shared: int
    unique: int
    containers: int


class Costs(Record):
    """What a store holds, in bytes of files.

    ``layers`` is each layer once, ``needed`` those below a container. ``boxes`` has
    each container with its state and the bytes of its own layer.
    """

    images: tuple[ImageCost, ...]
    layers: int
    needed: int
    boxes: tuple[tuple[Container, State, int], ...]


# %% What it all costs
def costs_of(engine: Engine) -> Costs:
    """Return what the images and containers of a store cost."""
    entries = [e for e in entries_of(engine.images, engine.layers) if e.size >= 0]
    stacks = Stacks(engine, entries)
    shown = [entry for entry in entries if not entry.is_step]
    boxes = tuple(sized_boxes(engine))
    users = Counter(box.image for box, _, _ in boxes)
    standing = Counter(c for entry in shown for c in stacks.stack(entry.chain))
    used = {c for e in entries if users[e.id] for c in stacks.stack(e.chain)}
    return Costs(
        tuple(image_cost(entry, stacks, standing, users[entry.id]) for entry in shown),
        sum(map(stacks.size, stacks.below)),
        sum(map(stacks.size, used)),
        boxes,
    )


def sized_boxes(engine: Engine) -> Iterator[tuple[Container, State, int]]:
    """Yield each container with its state and the bytes of its own layer."""
    for box, state in engine.containers.list():
        with suppress(NotFoundError):  # removed meanwhile
            yield box, state, engine.layers.rw_size(box.id)


def image_cost(
    entry: Entry, stacks: Stacks, standing: Counter[str], containers: int
) -> ImageCost:
    """Return what one image costs; ``standing`` counts the images on each layer."""
    sizes = {c: stacks.size(c) for c in stacks.stack(entry.chain)}
    shared = sum(size for chain, size in sizes.items() if standing[chain] > 1)
    return ImageCost(entry, shared, entry.size - shared, containers)
