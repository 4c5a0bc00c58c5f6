# From book/650-look-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Look verbs: the commands that show images
"""The commands that show images: all of them, or one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from minidocker.catalog import (
    LIST_FILTERS,
    NEVER,
    TREE,
    Entry,
    chosen_entries,
    known_entries,
    repository_of,
)
from minidocker.errors import NotFoundError, UsageError, WordFault
from minidocker.filters import parse_filters
from minidocker.flags import (
    FILTER,
    FORMAT,
    NO_TRUNC,
    NUMBER,
    QUIET,
    TEXT,
    Command,
    Flag,
    Given,
    default_root,
)
from minidocker.tables import (
    formatted,
    human_size,
    human_span,
    short,
    table,
    view_of,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.engine import Engine
    from minidocker.filters import Filters


# %% The list
def stored_entries(given: Given) -> list[Entry]:
    """Return all images of the store, the newest first."""
    root, driver = given.text("root") or default_root(), given.text("storage-driver")
    try:
        with open(f"{root}/driver", encoding="ascii") as file:
            written = file.read().strip()
    except FileNotFoundError:
        written = ""
    found = None
    if written and driver in ("", written):
        found = known_entries(f"{root}/image/{written}")
    if found is None:
        from minidocker.catalog import entries_of
        from minidocker.container_verbs import open_engine

        engine = open_engine(given)
        found = entries_of(engine.images, engine.layers)
    return found


def filter_times(
    given: Given, filters: Filters, entries: list[Entry]
) -> dict[str, int]:
    """Return when the images of ``before=`` and ``since=`` were made."""
    from minidocker.container_verbs import open_engine

    images, times = open_engine(given).images, {}
    created = {entry.id: entry.created for entry in entries}
    for name, best in (("before", min), ("since", max)):
        if texts := filters.get(name):
            times[name] = best(created[images.resolve(text)] for text in texts)
    return times


def listed_entries(given: Given) -> list[Entry]:
    """Return the images that the filters and the argument leave."""
    filters = parse_filters(given.list("filter"), LIST_FILTERS)
    if given.args:
        filters.setdefault("reference", []).append(given.args[0])
    entries = stored_entries(given)
    timed = "before" in filters or "since" in filters
    times = filter_times(given, filters, entries) if timed else {}
    return list(chosen_entries(entries, filters, times, everything=given.on("all")))


# %% The list
Names = tuple[str, str, str]  # repository, tag, digest


def names_of(entry: Entry, *, digests: bool) -> list[Names]:
    """Return the repository, tag and digest of each row of an image."""
    if not entry.names:
        return [("<none>", "<none>", "<none>")]
    tags: dict[str, list[str]] = {}
    by_digest: dict[str, list[str]] = {}
    for name in entry.names:
        repository = repository_of(name)
        found = by_digest if "@" in name else tags
        found.setdefault(repository, []).append(name[len(repository) + 1 :])
    rows: list[Names] = []
    for repository, own in tags.items():
        known = by_digest.pop(repository, [])
        shown = known if digests and known else ["<none>"]
        rows += [(repository, tag, digest) for tag in own for digest in shown]
    for repository, known in by_digest.items():
        shown = known if digests else ["<none>"]
        rows += [(repository, "<none>", digest) for digest in shown]
    return rows


def age(entry: Entry, now: float) -> str:
    """Return how old an image is; Docker has no words for one without a time."""
    if entry.created == NEVER:
        return "N/A"
    return f"{human_span(now - entry.created // 10**9)} ago"


def made_at(entry: Entry) -> str:
    """Return when an image was made, as Go prints a time."""
    from minidocker.tables import local_time

    return local_time(entry.created // 10**9)


# %% The list
def columns_of(*, whole: bool) -> dict[str, Callable[[Entry, Names], str]]:
    """Return for each field what makes it; ``whole`` ids are not cut."""
    now = time.time()
    return {
        "Containers": lambda entry, names: "N/A",
        "CreatedAt": lambda entry, names: made_at(entry),
        "CreatedSince": lambda entry, names: age(entry, now),
        "Digest": lambda entry, names: names[2],
        "ID": lambda entry, names: entry.id if whole else short(entry.id),
        "Repository": lambda entry, names: names[0],
        "SharedSize": lambda entry, names: "N/A",
        "Size": lambda entry, names: human_size(entry.size),
        "Tag": lambda entry, names: names[1],
        "UniqueSize": lambda entry, names: "N/A",
        "VirtualSize": lambda entry, names: human_size(entry.size, 4),
    }


HEADS = {
    "Containers": "CONTAINERS", "CreatedAt": "CREATED AT", "CreatedSince": "CREATED",
    "Digest": "DIGEST", "ID": "IMAGE ID", "Repository": "REPOSITORY",
    "SharedSize": "SHARED SIZE", "Size": "SIZE", "Tag": "TAG",
    "UniqueSize": "UNIQUE SIZE", "VirtualSize": "SIZE",
}  # fmt: skip
PLAIN = ("Repository", "Tag", "ID", "CreatedSince", "Size")
WITH_DIGESTS = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")


def image_rows(
    entries: Iterable[Entry], fields: Iterable[str], *, whole: bool, digests: bool
) -> list[dict[str, Any]]:
    """Return ``fields`` of each row."""
    makers = columns_of(whole=whole)
    chosen = [(name, makers[name]) for name in fields]
    return [
        {name: make(entry, names) for name, make in chosen}
        for entry in entries
        for names in names_of(entry, digests=digests)
    ]


# %% The list
def images(given: Given) -> int:
    """``images [OPTIONS] [REPOSITORY[:TAG]]``"""
    entries, form = listed_entries(given), given.text("format")
    whole = given.on("no-trunc")
    if given.on("tree"):
        return image_tree(given, entries)
    digests = given.on("digests") or "{{.Digest}}" in form
    view = view_of(HEADS, WITH_DIGESTS if given.on("digests") else PLAIN)
    if given.on("quiet") and not form:
        form = "{{.ID}}"
    columns = view.columns if form in ("", "table") else tuple(HEADS)
    if form == "{{.ID}}":
        rows = image_rows(entries, ("ID",), whole=whole, digests=digests)
        text = "\n".join(row["ID"] for row in rows)
    else:
        rows = image_rows(entries, columns, whole=whole, digests=digests)
        text = formatted(view, rows, form)
    if text:
        print(text)
    return 0


def image_tree(given: Given, entries: list[Entry]) -> int:
    """Show which image stands on which."""
    from minidocker.catalog import forest, tree_rows
    from minidocker.container_verbs import open_engine

    found = forest(open_engine(given).images, entries)
    print(table(TREE, list(tree_rows(found, whole=given.on("no-trunc")))))
    return 0


# %% One image
def history(given: Given) -> int:
    """``history [OPTIONS] IMAGE``"""
    from minidocker.container_verbs import open_engine, print_lines, print_text
    from minidocker.images import history as lines
    from minidocker.views import history_table, history_view

    engine, whole = open_engine(given), given.on("no-trunc")
    id = engine.images.resolve(given.args[0])
    found = lines(engine.images, engine.layers, id)
    human = given.flags.get("human", True)
    rows = history_view(found, whole=whole, human=human)
    if given.on("quiet"):
        print_lines(row["ID"] for row in rows)
    else:
        view = history_table(human=human)
        print_text(formatted(view, rows, given.text("format")))
    return 0


# %% One image
KINDS = ("container", "image", "network", "volume")


def document_of(engine: Engine, text: str, kind: str, *, size: bool) -> dict[str, Any]:
    """Return the document of a thing of a kind. Raises NotFoundError."""
    from minidocker.network_views import inspect_network
    from minidocker.sandbox import network_store
    from minidocker.storing import volume_store
    from minidocker.views import inspect_container, inspect_image, sizes_of

    if kind == "image":
        return inspect_image(engine, engine.images.resolve(text))
    if kind == "network":
        return inspect_network(network_store(engine.containers), text)
    if kind == "volume":
        return volume_store(engine.containers).get(text).to_dict()
    container = engine.containers.resolve(text)
    sizes = sizes_of(engine, container) if size else {}
    return inspect_container(engine, container) | sizes


def inspected(engine: Engine, text: str, given: Given) -> dict[str, Any]:
    """Return the document of the first kind of thing that has a name.

    Raises NotFoundError.
    """
    from minidocker.container_verbs import notice

    asked, size = given.text("type"), given.on("size")
    if asked:
        return document_of(engine, text, asked, size=size)
    for kind in KINDS:
        with suppress(NotFoundError):
            found = document_of(engine, text, kind, size=size)
            if size and kind != "container":
                notice(f"WARNING: --size ignored for {kind}")
            return found
    raise NotFoundError(f"no such object: {text}")


def inspect(given: Given) -> int:
    """``inspect [OPTIONS] NAME|ID [NAME|ID...]``"""
    from minidocker.container_verbs import inspect_each, open_engine

    if given.text("type") not in ("", *KINDS):
        what = f'"{given.text("type")}" is not a valid value for --type'
        raise WordFault(what, hint=", ".join(KINDS))
    engine = open_engine(given)
    return inspect_each(given, lambda text: inspected(engine, text, given))


# %% One image
def explain(given: Given) -> int:
    """``explain [OPTIONS] IMAGE``"""
    import json

    from minidocker import explain as chapter
    from minidocker.container_verbs import Needs, open_engine

    engine, form = open_engine(given, Needs.MOUNTS), given.text("format") or "text"
    id = engine.images.resolve(given.args[0])
    found = chapter.explain(
        engine.images,
        engine.layers,
        id,
        limit=given.number("limit") or 12,
        width=column_width(),
    )
    if form == "json":
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    elif form == "html":
        print(found._repr_html_())
    elif form == "text":
        print(found)
    else:
        raise UsageError(f'no format "{form}"', hint="text, json or html")
    return 0


def column_width() -> int:
    """Return how wide half of the terminal is; 60 where there is none."""
    try:
        return max(36, os.get_terminal_size(1).columns // 2 - 5)
    except OSError:
        return 60


# %% One image
def ids(given: Given) -> int:
    """``ids [OPTIONS] IMAGE``"""
    from minidocker import ids as chapter
    from minidocker.container_verbs import Needs, open_engine
    from minidocker.oci import go_json

    engine, text = open_engine(given, Needs.MOUNTS), given.args[0]
    images, layers = engine.images, engine.layers
    id = images.resolve(text)
    if digest := given.text("bytes"):
        with open(1, "wb", closefd=False) as file:
            chapter.write_bytes(images, layers, id, digest, file.write)
        return 0
    root = given.text("root")
    program = f"minidocker --root {engine.root}" if root else "minidocker"
    blobs = layers if given.on("blobs") else None
    claims = list(chapter.claims_of(images, id, text, program, blobs))
    verdicts = []
    if given.on("verify"):
        verdicts = [chapter.verdict_on(images, layers, id, one) for one in claims]
    if given.text("format") == "json":
        for number, claim in enumerate(claims):
            verdict = verdicts[number] if verdicts else None
            print(go_json(chapter.claim_document(claim, verdict)).decode())
    else:
        print("\n".join(chapter.claim_lines(claims, verdicts)))
    return int(any(verdict.right is False for verdict in verdicts))


# %% One image
def lineage(given: Given) -> int:
    """``lineage [OPTIONS] IMAGE``"""
    from minidocker.container_verbs import open_engine
    from minidocker.lineage import lineage_dot, lineage_text, side_by_side

    engine, form = open_engine(given), given.text("format") or "text"
    id = engine.images.resolve(given.args[0])
    if given.on("diff"):
        parent = engine.images.parent(id)
        if parent is None:
            raise NotFoundError("this image has no parent here", where=given.args[0])
        print(side_by_side(engine.images.raw(parent), engine.images.raw(id)))
    elif path := given.text("output"):
        draw(lineage_dot(engine.images, engine.layers, id), path)
    elif form == "svg":
        print(svg_or_text(engine, id))
    elif form in ("text", "dot"):
        make = lineage_text if form == "text" else lineage_dot
        print(make(engine.images, engine.layers, id))
    else:
        raise UsageError(f'no format "{form}"', hint="text, dot or svg")
    return 0


def svg_or_text(engine: Engine, id: str) -> str:
    """Return the picture as SVG, or the plain text where ``dot`` is absent."""
    from minidocker.container_verbs import notice
    from minidocker.errors import UnsupportedError
    from minidocker.lineage import lineage_dot, lineage_svg, lineage_text

    try:
        return lineage_svg(lineage_dot(engine.images, engine.layers, id))
    except UnsupportedError as why:
        notice(f"minidocker: {why}")
        return lineage_text(engine.images, engine.layers, id)


def draw(dot: str, path: str) -> None:
    """Write the picture to a file."""
    from minidocker.lineage import lineage_svg

    with open(path, "w", encoding="utf-8") as file:
        file.write(dot if path.endswith(".dot") else lineage_svg(dot))


# %% The table
SHAPE = Flag("format", "Format the output: json, or a template", "f", TEXT)
COMMANDS = (
    Command(
        "images", "[OPTIONS] [REPOSITORY[:TAG]]", "List images", images,
        (
            Flag("all", "Show all images (default hides intermediate images)", "a"),
            Flag("digests", "Show digests"), FILTER, FORMAT, NO_TRUNC, QUIET,
            Flag("tree", "Show which image stands on which, and what it adds"),
        ),
        most=1, example="minidocker images --filter dangling=true",
    ),
    Command(
        "history", "[OPTIONS] IMAGE", "Show the history of an image", history,
        (
            FORMAT,
            Flag("human", "Print sizes and dates in human readable format", "H"),
            NO_TRUNC, QUIET,
        ),
        least=1, most=1,
    ),
    Command(
        "inspect", "[OPTIONS] NAME|ID [NAME|ID...]",
        "Return low-level information on containers, images, networks and volumes",
        inspect,
        (
            SHAPE, Flag("size", "Display total file sizes of containers", "s"),
            Flag("type", "container, image, network or volume", takes=TEXT),
        ),
        least=1, example="minidocker inspect -f '{{json .Config.Env}}' web@3",
    ),
    Command(
        "explain", "[OPTIONS] IMAGE",
        "Show what each step changed in the image JSON and in the tree", explain,
        (
            Flag("format", "text, json or html", takes=TEXT, default="text"),
            Flag("limit", "Paths of each layer to show (default 12)", "n", NUMBER),
        ),
        least=1, most=1, example="minidocker explain web",
    ),
    Command(
        "ids", "[OPTIONS] IMAGE",
        "Show of which bytes each id is the digest, and how to check it", ids,
        (
            Flag("blobs", "Compress each layer, for the digest that push gives it"),
            Flag("bytes", "Write the bytes of one of the digests", takes=TEXT),
            Flag("format", "json: one object a line", takes=TEXT),
            Flag("verify", "Hash everything anew; status 1 if anything is wrong"),
        ),
        least=1, most=1, example="minidocker ids --verify web",
    ),
    Command(
        "lineage", "[OPTIONS] IMAGE", "Draw an image's layers and ancestors",
        lineage,
        (
            Flag("diff", "Show the image JSON beside its parent's"),
            Flag("format", "text, dot or svg", takes=TEXT, default="text"),
            Flag("output", "Write the picture to a file (.svg or .dot)", "o", TEXT),
        ),
        least=1, most=1,
    ),
)  # fmt: skip
