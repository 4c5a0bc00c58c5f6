# From book/614-catalog.md. Edit there and tangle, or here and tangle --back.

# %% The catalog: a thousand images at a glance
"""The list of all images on one page: a cache that can be lost; a choice; the tree.

``image/<driver>/catalog`` has a line for each image, the newest first. Reading it
imports next to nothing; making it needs the stores, which are handed in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from zlib import crc32

from minidocker.errors import (
    IntegrityError,
    NotFoundError,
)
from minidocker.filters import Filters, all_labels_match, pattern_of, truth_of
from minidocker.records import Record
from minidocker.tables import human_size, nanoseconds_of, short


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.images import ImageStore
    from minidocker.layers import LayerStore


# %% The nouns
NEVER = nanoseconds_of("0001-01-01T00:00:00Z")  # Go's zero time


class Entry(Record):
    """An image as lists show it.

    ``created`` is nanoseconds since 1970, or NEVER; ``size`` the bytes of its files, -1
    where a layer is not here; ``chain`` the chain id of its top layer or empty;
    ``labels`` a JSON text. ``has_child``: another image was built on it here. ``names``
    by digest have an ``@``.
    """

    id: str
    created: int
    size: int
    chain: str
    parent: str
    has_child: bool
    names: tuple[str, ...]
    labels: str = ""

    @property
    def tags(self) -> tuple[str, ...]:
        """The names that are no digests."""
        return tuple(name for name in self.names if "@" not in name)

    @property
    def is_step(self) -> bool:
        """Whether it is nothing but a step of a build: without a name, with a child."""
        return self.has_child and not self.names


# %% The page
HEAD = "minidocker catalog 1"
PATIENCE = 100_000_000  # nanoseconds after which a time can be trusted
COARSE = 2_100_000_000  # the same where a file system counts whole seconds


def is_settled(youngest: int, now: int) -> bool:
    """Whether a time is so old that a later change would have another.

    >>> is_settled(5_000_000_001, 5_200_000_000), is_settled(5 * 10**9, 6 * 10**9)
    (True, False)
    """
    return now - youngest > (PATIENCE if youngest % 1_000_000_000 else COARSE)


def stamp_of(home: str) -> tuple[str, int]:
    """Return what tells one state of a store from the next, and its youngest time.

    ``home`` is ``image/<driver>``; the time is in nanoseconds.
    """
    words, youngest = [], 0
    for name in ("imagedb/content/sha256", "repositories.json"):
        try:
            st = os.stat(f"{home}/{name}")
        except FileNotFoundError:
            words.append("-")
        else:
            words.append(f"{st.st_mtime_ns}.{st.st_size}.{st.st_ino}")
            youngest = max(youngest, st.st_mtime_ns)
    return " ".join(words), youngest


# %% The page
def line_of(entry: Entry) -> str:
    """Return the line of an image."""
    fields = (
        entry.id, str(entry.created), str(entry.size), entry.chain, entry.parent,
        "+" if entry.has_child else "", " ".join(entry.names), entry.labels,
    )  # fmt: skip
    return "\t".join(fields)


def entry_of(line: str) -> Entry:
    """Return the image of a line."""
    id, created, size, chain, parent, child, names, labels = line.split("\t")
    return Entry(
        id,
        int(created),
        int(size),
        chain,
        parent,
        child == "+",
        tuple(names.split()),
        labels,
    )


# %% The page
def read_page(home: str) -> tuple[str, list[Entry]]:
    """Return the stamp and the entries of the page; nothing when it is not right."""
    try:
        with open(f"{home}/catalog", "rb") as file:
            head, _, text = file.read().partition(b"\n")
        if head.decode() != f"{HEAD} {crc32(text):08x}":
            return "", []
        stamp, *lines = text.decode().split("\n")
        return stamp, list(map(entry_of, lines))
    except (OSError, ValueError):
        return "", []


def write_page(images: ImageStore, stamp: str, entries: list[Entry]) -> None:
    """Write the page; where that cannot be done, do without.

    No lock, no sync: the checksum tells a page that two writers or a power cut tore.
    """
    text = "\n".join([stamp, *map(line_of, entries)]).encode()
    try:
        new = f"{images.home}/catalog.new"
        with open(new, "wb") as file:
            file.write(f"{HEAD} {crc32(text):08x}\n".encode() + text)
        os.rename(new, f"{images.home}/catalog")
    except OSError:
        return


def known_entries(home: str) -> list[Entry] | None:
    """Return the page's entries, the newest first, if they are still true."""
    stamp, entries = read_page(home)
    return entries if stamp and stamp == stamp_of(home)[0] else None


# %% Reading everything
def entries_of(images: ImageStore, layers: LayerStore) -> list[Entry]:
    """Return an entry for each image, the newest first; the page is renewed.

    Raises IntegrityError for an image JSON that is damaged.
    """
    found = None if images.batch.staged else known_entries(images.home)
    return all_entries(images, layers) if found is None else found


def all_entries(images: ImageStore, layers: LayerStore) -> list[Entry]:
    """Read what the page does not say, or says no more."""
    stamp, youngest = stamp_of(images.home)
    before = {entry.id: entry for entry in read_page(images.home)[1]}
    parents = {id: images.parent(id) or "" for id in images.ids()}
    names: dict[str, list[str]] = {}
    for tags in images.names.read().values():
        for name, id in tags.items():
            names.setdefault(id, []).append(name)
    with_child, sizes = set(parents.values()), dict[str, int]()
    entries = []
    for id, parent in parents.items():
        with suppress(NotFoundError):  # deleted meanwhile
            entry = before.get(id) or new_entry(images, layers, id, sizes)
            own = tuple(sorted(names.get(id, ())))
            known = entry.replace(parent=parent, has_child=id in with_child, names=own)
            entries.append(known)
    entries.sort(key=lambda entry: (-entry.created, entry.names, entry.id))
    settled = is_settled(youngest, time.time_ns()) and not images.batch.staged
    if settled and all(entry.size >= 0 for entry in entries):
        write_page(images, stamp, entries)
    return entries


# %% Reading everything
def new_entry(
    images: ImageStore, layers: LayerStore, id: str, sizes: dict[str, int]
) -> Entry:
    """Read what an image JSON and its layers say; ``all_entries`` adds the rest.

    ``sizes`` are those of stacks that were read already, by their top chain id.
    """
    from minidocker.oci import chain_id, go_json

    image = images.get(id)
    chain = chain_id(image.diff_ids) if image.diff_ids else ""
    if chain not in sizes:
        sizes[chain] = stack_size(layers, image.diff_ids)
    labels = (image.config.labels if image.config else None) or {}
    text = go_json(dict(labels)).decode() if labels else ""
    created = nanoseconds_of(image.created) if image.created else NEVER
    return Entry(id, created, sizes[chain], chain, "", False, (), text)


def stack_size(layers: LayerStore, diff_ids: tuple[str, ...]) -> int:
    """Return the bytes of the files of a stack of layers, -1 where one is not whole."""
    try:
        return sum(layer.size for layer in layers.stack(diff_ids))
    except (NotFoundError, IntegrityError):
        return -1


def chains_in_use(images: ImageStore, layers: LayerStore) -> set[str]:
    """Return the chain ids of the top layers of all images."""
    return {e.chain for e in entries_of(images, layers) if e.chain}


# %% Filters
def labels_match(entry: Entry, filters: Filters) -> bool:
    """Whether the labels of an image match the filters."""
    if not ("label" in filters or "label!" in filters):
        return True
    import json

    return all_labels_match(json.loads(entry.labels or "{}"), filters)


# %% Filters
def repository_of(name: str) -> str:
    """Return a name without its tag or digest.

    >>> repository_of("127.0.0.1:5000/kb:v1"), repository_of("kb@sha256:00")
    ('127.0.0.1:5000/kb', 'kb')
    """
    return name.rpartition("@")[0] or name.rpartition(":")[0]


def names_that_match(entry: Entry, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the names of an image that one of the patterns matches."""
    tests = [pattern_of(pattern) for pattern in patterns]
    return tuple(
        name
        for name in entry.names
        if any(test(name) or test(repository_of(name)) for test in tests)
    )


# %% Filters
LIST_FILTERS = ("before", "dangling", "label", "reference", "since")


def chosen_entries(
    entries: Iterable[Entry],
    filters: Filters,
    times: Mapping[str, int],
    *,
    everything: bool = False,
) -> Iterator[Entry]:
    """Yield the images that a list shows, with the names that it shows.

    ``times`` has the nanoseconds of ``before`` and ``since``. Steps of builds, and
    images that lack a layer, are left out; the first not with ``everything``.
    """
    dangling = truth_of(filters, "dangling")
    for entry in entries:
        if entry.size < 0 or (entry.is_step and not everything):
            continue
        if entry.created >= times.get("before", entry.created + 1):
            continue
        if entry.created <= times.get("since", entry.created - 1):
            continue
        if dangling is not None and dangling is not is_dangling(entry):
            continue
        if labels_match(entry, filters):
            names = entry.names
            if "reference" in filters:
                names = names_that_match(entry, filters["reference"])
            if names or "reference" not in filters:
                yield entry.replace(names=names) if names != entry.names else entry


def is_dangling(entry: Entry) -> bool:
    """Whether an image has no tag and is no step."""
    return not entry.tags and not entry.has_child


# %% The tree
class Branch(Record):
    """An image, those that stand on it, and what it adds to the one below.

    ``layers`` counts all its layers, ``own`` those that the one below does not have.
    """

    entry: Entry
    layers: int
    own: int
    own_size: int
    above: tuple[Branch, ...] = ()


Trunk = tuple[tuple[object, ...], tuple[str, ...]]


def forest(images: ImageStore, entries: Iterable[Entry]) -> tuple[Branch, ...]:
    """Return the images that stand on no other, each with those above it."""
    chosen = list(entries)
    trunks: dict[str, Trunk] = {}
    for entry in chosen:
        image = images.get(entry.id)
        trunks[entry.id] = (image.history, image.diff_ids)
    owners = {trunk: id for id, trunk in reversed(trunks.items())}
    above: dict[str, list[Entry]] = {}
    for entry in chosen:
        below = below_of(trunks[entry.id], owners)
        above.setdefault(below, []).append(entry)
    return branches(above, trunks, {entry.id: entry for entry in chosen}, "")


def below_of(trunk: Trunk, owners: Mapping[Trunk, str]) -> str:
    """Return the image that a history and its layers stand on, or an empty text."""
    history, diff_ids = trunk
    count = len(diff_ids)
    for length in range(len(history) - 1, 0, -1):
        if not getattr(history[length], "empty_layer", False):
            count -= 1
        if found := owners.get((history[:length], diff_ids[: max(count, 0)])):
            return found
    return ""


# %% The tree
def branches(
    above: Mapping[str, list[Entry]],
    trunks: Mapping[str, Trunk],
    entries: Mapping[str, Entry],
    below: str,
) -> tuple[Branch, ...]:
    """Return the branches that stand on ``below``."""
    under = len(trunks[below][1]) if below else 0
    size = entries[below].size if below else 0
    return tuple(
        Branch(
            entry,
            count := len(trunks[entry.id][1]),
            count - under,
            entry.size - size,
            branches(above, trunks, entries, entry.id),
        )
        for entry in above.get(below, ())
    )


# %% The tree
def tree_rows(
    found: tuple[Branch, ...], *, whole: bool = False, stem: str | None = None
) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the tree: image, id, size, its own size, layers."""
    for number, branch in enumerate(found):
        last = number == len(found) - 1
        knee = "" if stem is None else stem + ("└─ " if last else "├─ ")
        entry = branch.entry
        layers = f"{branch.layers}" + (
            f" ({branch.own} own)" if branch.own < branch.layers else ""
        )
        yield (
            knee + (", ".join(entry.tags) or "<none>"),
            entry.id if whole else short(entry.id),
            human_size(entry.size),
            human_size(branch.own_size),
            layers,
        )
        further = "" if stem is None else stem + ("   " if last else "│  ")
        yield from tree_rows(branch.above, whole=whole, stem=further)


TREE = ("IMAGE", "IMAGE ID", "SIZE", "OWN SIZE", "LAYERS")
