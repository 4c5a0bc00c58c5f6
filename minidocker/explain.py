# From book/250-explain.md. Edit there and tangle, or here and tangle --back.

# %% Explain: both halves of each step
"""Explain an image step by step: what changed in its JSON, and what in its tree."""

from __future__ import annotations

import html
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress

from minidocker.changes import ChangeKind
from minidocker.errors import NotFoundError
from minidocker.images import ImageStore
from minidocker.layers import Layer, LayerStore
from minidocker.lineage import shortened, size_words
from minidocker.oci import HistoryEntry, short_id
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class JsonChange(Record):
    """A value of the JSON that became another; None where there is none.

    ``path`` is as jq writes it, without the first dot: ``config.Env[1]``.
    """

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.before is None:
            return f"+ {self.path}: {value_words(self.after)}"
        if self.after is None:
            return f"- {self.path}: {value_words(self.before)}"
        return f"~ {self.path}: {value_words(self.before)} → {value_words(self.after)}"


class TreeChange(Record):
    """A path that a layer says something about. ``size`` is bytes of contents."""

    path: str
    kind: ChangeKind
    what: str
    size: int = 0

    def __str__(self) -> str:
        size = f"  {self.size:,} B" if self.what == "file" else ""
        what = "" if self.what == "file" else f"  ({self.what})"
        return f"{self.kind.value} {self.path}{size}{what}"


# %% The nouns
class TreeHalf(Record):
    """What a step did to the tree.

    ``shown`` are the first changes; ``counts`` has all, by kind and by what they are.
    ``layer`` is None where the step brought none.
    """

    layer: Layer | None
    shown: tuple[TreeChange, ...] = ()
    counts: Mapping[tuple[ChangeKind, str], int] | None = None

    @property
    def total(self) -> int:
        """How many paths the layer says something about."""
        return sum((self.counts or {}).values())

    @property
    def whiteouts(self) -> int:
        """How many paths it hides."""
        counts = self.counts or {}
        return sum(n for (kind, _), n in counts.items() if kind is ChangeKind.DELETED)


class Both(Record):
    """Both halves of one step. ``number`` counts the lines of history from 1.

    ``json`` is None where the image of the step, or of the one before, is not here.
    """

    number: int
    id: str | None
    words: str
    json: tuple[JsonChange, ...] | None
    tree: TreeHalf
    why: str


# %% The left half
def json_changes(before: Any, after: Any, path: str = "") -> Iterator[JsonChange]:
    """Yield the values in which two JSON documents differ.

    >>> [str(c) for c in json_changes({"a": {"b": 1}}, {"a": {"b": 2, "c": [3]}})]
    ['~ a.b: 1 → 2', '+ a.c[0]: 3']
    """
    if before == after:
        return
    if isinstance(before or {}, dict) and isinstance(after or {}, dict):
        if before or after:
            yield from object_changes(before or {}, after or {}, path)
    elif isinstance(before or [], list) and isinstance(after or [], list):
        yield from list_changes(before or [], after or [], path)
    elif (before or None) != (after or None):
        yield JsonChange(path, before or None, after or None)


def object_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], path: str
) -> Iterator[JsonChange]:
    """Yield what differs in two objects; one that is wholly new and empty is named."""
    for key in [*after, *(key for key in before if key not in after)]:
        below = f"{path}.{key}" if path else key
        if after.get(key) == {} and key not in before and path:
            yield JsonChange(below, None, {})
        else:
            yield from json_changes(before.get(key), after.get(key), below)


# %% The left half
def list_changes(
    before: list[Any], after: list[Any], path: str
) -> Iterator[JsonChange]:
    """Yield what differs in two lists, element by element.

    A list of words that became another is one change: a command is read as a whole.
    """
    longer = after[: len(before)] == before
    if not longer and all(isinstance(one, str) for one in before + after):
        yield JsonChange(path, before or None, after or None)
        return
    for number in range(max(len(before), len(after))):
        old = before[number] if number < len(before) else None
        new = after[number] if number < len(after) else None
        below = f"{path}[{number}]"
        if (old is None) is not (new is None):
            yield JsonChange(below, old, new)
        else:
            yield from json_changes(old, new, below)


def value_words(value: Any) -> str:
    """Return a JSON value on one line, digests cut short, the time last.

    >>> value_words({"id": "sha256:" + "0" * 64})
    '{"id":"sha256:000000000000…"}'
    """
    if isinstance(value, str) and value.startswith("sha256:") and len(value) == 71:
        return f'"{value[:19]}…"'
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: item[0] == "created")
        pairs = (f"{json.dumps(key)}:{value_words(one)}" for key, one in items)
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(value_words, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


# %% The right half
KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo", stat.S_IFCHR: "device", stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}  # fmt: skip


def tree_changes(layers: LayerStore, layer: Layer) -> Iterator[TreeChange]:
    """Yield what a layer says of each path, sorted."""
    with layers.driver.opened(layer.cache_id) as tree:
        for change in layers.driver.changes(layer.cache_id):
            if change.kind is ChangeKind.DELETED:
                yield TreeChange(change.path, change.kind, "whiteout")
                continue
            st = os.lstat(tree + change.path)
            what = KINDS[stat.S_IFMT(st.st_mode)]
            size = st.st_size if what == "file" else 0
            yield TreeChange(change.path, change.kind, what, size)


def tree_half(layers: LayerStore, layer: Layer | None, limit: int) -> TreeHalf:
    """Return what a layer did to the tree; ``limit`` paths are shown.

    Directories that only carry what changed in them are the last to be shown.
    """
    if layer is None:
        return TreeHalf(None)
    shown: list[TreeChange] = []
    carriers: list[TreeChange] = []
    counts: Counter[tuple[ChangeKind, str]] = Counter()
    for change in tree_changes(layers, layer):
        counts[change.kind, change.what] += 1
        carrier = change.what == "directory" and change.kind is ChangeKind.MODIFIED
        chosen = carriers if carrier else shown
        if len(chosen) < limit:
            chosen.append(change)
    first = (shown + carriers)[:limit]
    return TreeHalf(layer, tuple(sorted(first, key=lambda c: c.path)), counts)


# %% Why it has this size
IN_JSON = frozenset(
    (
        "ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL",
        "MAINTAINER", "ONBUILD", "SHELL", "STOPSIGNAL", "USER", "VOLUME",
    )
)  # fmt: skip


def words_of(entry: HistoryEntry) -> str:
    """Return the instruction of a line of history, as it was written.

    >>> words_of(HistoryEntry(created_by="/bin/sh -c #(nop)  USER 1001"))
    'USER 1001'
    >>> words_of(HistoryEntry(created_by="/bin/sh -c make"))
    'RUN make'
    """
    text = entry.created_by.removesuffix(" # buildkit")
    shell = "/bin/sh -c "
    bare = text.removeprefix(shell)
    if bare.startswith("#(nop)"):
        bare = bare.removeprefix("#(nop)")
    elif bare != text:
        bare = f"RUN {bare}"
    return " ".join(bare.split()) or entry.comment or "(no words)"


def counted(half: TreeHalf, kind: ChangeKind) -> str:
    """Return how many of each thing have a kind: ``2 files, 1 directory``."""
    many = {"directory": "directories"}
    return ", ".join(
        f"{n} {what if n == 1 else many.get(what, what + 's')}"
        for (one, what), n in sorted((half.counts or {}).items(), key=str)
        if one is kind
    )


# %% Why it has this size
def reason(entry: HistoryEntry, half: TreeHalf, below: int) -> str:
    """Say why the layer of a step has its size; ``below`` layers lie under it."""
    layer = half.layer
    if layer is None:
        word = words_of(entry).partition(" ")[0]
        cause = f"{word} ran over an empty read-write layer and left it empty"
        if word in IN_JSON:
            cause = (
                f"{word} is written in the JSON only, the read-write layer stayed empty"
            )
        same = {0: "no layer", 1: "the same layer"}.get(
            below, f"the same {below} layers"
        )
        return f"0 B: {cause}. No layer was committed; the image has {same} as before."
    parts = [
        f"{verb} {words}"
        for verb, kind in (
            ("adds", ChangeKind.ADDED),
            ("changes", ChangeKind.MODIFIED),
            ("leaves", ChangeKind.DELETED),
        )
        if (words := counted(half, kind))
    ]
    text = f"{size_words(layer.size)}: {', '.join(parts) or 'nothing'}."
    if not layer.size:
        text += " Names, owners and links weigh nothing; only what is in files counts."
    if half.whiteouts:
        text += " What is hidden stays in the layers below and frees nothing."
    return text


# %% All steps
def images_by_step(images: ImageStore, id: str) -> dict[int, str]:
    """Return the image and its ancestors here, by the steps that they tell of."""
    found: dict[int, str] = {}
    family: str | None = id
    with suppress(NotFoundError):
        while family:
            count = len(images.get(family).history)
            if found and count >= min(found):
                break
            found[count] = family
            family = images.parent(family)
    return found


def both_halves(
    images: ImageStore, layers: LayerStore, id: str, limit: int = 12
) -> Iterator[Both]:
    """Yield both halves of each step of an image, the oldest first."""
    image, here = images.get(id), images_by_step(images, id)
    stack = layers.stack(image.diff_ids)
    below = 0
    for number, entry in enumerate(image.history, 1):
        layer = None
        if not entry.empty_layer and below < len(stack):
            layer, below = stack[below], below + 1
        half = tree_half(layers, layer, limit)
        yield Both(
            number,
            here.get(number),
            words_of(entry),
            json_half(images, here, number),
            half,
            reason(entry, half, below),
        )


# %% All steps
def json_half(
    images: ImageStore, here: Mapping[int, str], number: int
) -> tuple[JsonChange, ...] | None:
    """Return what a step changed in the JSON; the first step's is all that is in it."""
    if number not in here or (number > 1 and number - 1 not in here):
        return None
    before = json.loads(images.raw(here[number - 1])) if number > 1 else {}
    after = json.loads(images.raw(here[number]))
    order = {"config": 0, "rootfs": 1, "history": 2}
    changes = json_changes(before, after)
    return tuple(
        sorted(changes, key=lambda c: order.get(c.path.split(".")[0].split("[")[0], 3))
    )


# %% To be read
HERE_NOT = "(the image before or after this step is not on this machine)"
NO_LAYER = "(no layer)"


class Explanation:
    """Both halves of each step; Jupyter shows tables, elsewhere it is text.

    ``width`` is that of a column in characters.
    """

    def __init__(self, steps: list[Both], width: int = 60) -> None:
        self.steps, self.width = steps, width

    def __repr__(self) -> str:
        return "\n\n".join(map(self.step_text, self.steps))

    def step_text(self, step: Both) -> str:
        """Return one step in two columns, and why it has its size."""
        wide = self.width
        title = f"Step {step.number}/{len(self.steps)}  {step.words}"
        id = short_id(step.id) if step.id else "<missing>"
        lines = [f"{shortened(title, 2 * wide - 11).ljust(2 * wide - 9)}{id}"]
        left, right = json_lines(step), tree_lines(step)
        for number in range(max(len(left), len(right))):
            one = left[number] if number < len(left) else ""
            other = right[number] if number < len(right) else ""
            pair = f"{shortened(one, wide).ljust(wide)} │ {shortened(other, wide)}"
            lines.append(f"  {pair}".rstrip())
        return "\n".join([*lines, f"  {step.why}"])

    def _repr_html_(self) -> str:
        rows = []
        for step in self.steps:
            id = short_id(step.id) if step.id else "&lt;missing&gt;"
            title = f"{step.number}. {html.escape(step.words)} <small>{id}</small>"
            halves = html_half(json_lines(step)) + html_half(tree_lines(step))
            rows.append(
                f'<tr><th colspan="2">{title}</th></tr><tr>{halves}</tr>'
                f'<tr><td colspan="2"><em>{html.escape(step.why)}</em></td></tr>'
            )
        heads = "<tr><th>image JSON</th><th>tree</th></tr>"
        return f'<table class="explain">{heads}{"".join(rows)}</table>'

    def to_json(self) -> list[dict[str, Any]]:
        """Return the steps as a JSON document; every change of the JSON, whole."""
        return [step_document(step) for step in self.steps]


# %% To be read
def html_half(lines: list[str]) -> str:
    """Return a cell of a table with a line of code for each line."""
    cells = "<br>".join(f"<code>{html.escape(one)}</code>" for one in lines)
    return f'<td style="vertical-align: top; width: 50%">{cells}</td>'


def json_lines(step: Both) -> list[str]:
    """Return the lines of the left half."""
    return [HERE_NOT] if step.json is None else list(map(str, step.json))


def tree_lines(step: Both) -> list[str]:
    """Return the lines of the right half."""
    half = step.tree
    if half.layer is None:
        return [NO_LAYER]
    lines = [f"layer {short_id(half.layer.diff_id)}, {size_words(half.layer.size)}"]
    lines += map(str, half.shown)
    if half.total > len(half.shown):
        lines.append(f"... and {half.total - len(half.shown)} more")
    return lines


# %% To be read
def step_document(step: Both) -> dict[str, Any]:
    """Return one step as a JSON object."""
    layer = step.tree.layer
    changes = [
        {"Path": one.path, "Kind": one.kind.value, "Type": one.what, "Size": one.size}
        for one in step.tree.shown
    ]
    return {
        "Step": step.number,
        "Id": step.id,
        "CreatedBy": step.words,
        "Json": None
        if step.json is None
        else [
            {"Path": c.path, "Before": c.before, "After": c.after} for c in step.json
        ],
        "Layer": layer and {"DiffId": layer.diff_id, "Size": layer.size},
        "Tree": changes,
        "TreeTotal": step.tree.total,
        "Whiteouts": step.tree.whiteouts,
        "Why": step.why,
    }


def explain(
    images: ImageStore,
    layers: LayerStore,
    id: str,
    *,
    limit: int = 12,
    width: int = 60,
) -> Explanation:
    """Explain an image; ``limit`` paths of each layer are shown."""
    return Explanation(list(both_halves(images, layers, id, limit)), width)
