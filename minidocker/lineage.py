# From book/240-lineage.md. Edit there and tangle, or here and tangle --back.

# %% Lineage: layers and images, drawn
"""Draw the family of an image and its layers; put two image JSONs side by side."""

from __future__ import annotations

import difflib
import html
import json
from collections.abc import Iterator

from minidocker.errors import UnsupportedError
from minidocker.images import ImageStore
from minidocker.layers import Layer, LayerStore
from minidocker.oci import ImageConfig, short_id
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class Step(Record):
    """One image of a family. ``layer`` is the top of its stack, or None."""

    id: str
    tags: tuple[str, ...]
    word: str
    layer: Layer | None
    brings: bool


# %% The nouns
def family(images: ImageStore, layers: LayerStore, id: str) -> list[Step]:
    """Return an image and its ancestors on this machine, the oldest first."""
    steps: list[Step] = []
    next_id: str | None = id
    while next_id:
        image = images.get(next_id)
        stack = layers.stack(image.diff_ids)
        steps.append(
            Step(
                next_id,
                tuple(images.tags_of(next_id)),
                instruction(image),
                stack[-1] if stack else None,
                bool(image.history) and not image.history[-1].empty_layer,
            )
        )
        next_id = images.parent(next_id)
    return steps[::-1]


def instruction(image: ImageConfig) -> str:
    """Return what made an image, in a few words."""
    if not image.history:
        return ""
    last = image.history[-1]
    text = last.created_by or last.comment
    text = text.removeprefix("/bin/sh -c ").removeprefix("#(nop)").strip()
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:39] + "…"


# %% The nouns
def stack_of(images: ImageStore, layers: LayerStore, id: str) -> list[Layer]:
    """Return the layers of an image, bottom-first."""
    return layers.stack(images.get(id).diff_ids)


def size_words(size: int) -> str:
    """Return bytes in words for a label.

    >>> size_words(8866), size_words(1_993_028)
    ('8,866 bytes', '1,993,028 bytes')
    """
    return f"{size:,} bytes" if size != 1 else "1 byte"


# %% A long family
SCREEN = 20


class Fold(Record):
    """Steps that follow each other without layer and name, as one."""

    steps: tuple[Step, ...]

    @property
    def words(self) -> str:
        """How many there are, and which instructions."""
        kinds = dict.fromkeys(step.word.partition(" ")[0] for step in self.steps)
        text = f"{len(self.steps)} steps: {', '.join(kinds)}"
        return text if len(text) <= 40 else text[:39] + "…"


def folded(steps: list[Step], most: int = SCREEN) -> list[Step | Fold]:
    """Return a family with its quiet steps folded, if it has more than ``most``."""
    found: list[Step | Fold] = []
    quiet: list[Step] = []
    for number, step in enumerate(steps):
        if len(steps) > most and 0 < number < len(steps) - 1 and is_quiet(step):
            quiet.append(step)
            continue
        found += fold_of(quiet)
        found.append(step)
        quiet = []
    return found


def is_quiet(step: Step) -> bool:
    """Whether a step has no name and brought no layer."""
    return not step.tags and not step.brings


def fold_of(quiet: list[Step]) -> list[Step | Fold]:
    """Return quiet steps as one, if they are several."""
    return [Fold(tuple(quiet))] if len(quiet) > 1 else list(quiet)


# %% The picture
def quoted(text: str) -> str:
    r"""Return a text as a DOT string that shows exactly it.

    >>> quoted('say "\\N"')
    '"say \\"\\\\N\\""'
    """
    clean = "".join(c if c.isprintable() else " " for c in text)
    return '"' + clean.replace("\\", "\\\\").replace('"', '\\"') + '"'


def label(*lines: str) -> str:
    """Return the lines of a label as one DOT string."""
    return '"' + "\\n".join(quoted(line)[1:-1] for line in lines if line) + '"'


# %% The picture
def lineage_dot(images: ImageStore, layers: LayerStore, id: str) -> str:
    """Return the DOT text of an image's family and the layers below it.

    Images are boxes, each above its parent; layers are drawn as a stack. An arrow goes
    from an image to the layer that it brought, dotted to the one that it only uses.
    """
    steps = family(images, layers, id)
    lines = [
        "digraph lineage {",
        '  rankdir="BT"; node [fontname="monospace", fontsize=11];',
        *layer_nodes(stack_of(images, layers, id)),
        *image_nodes(folded(steps)),
        "}",
    ]
    return "\n".join(lines)


def layer_nodes(stack: list[Layer]) -> Iterator[str]:
    """Yield the DOT lines of a stack of layers."""
    below = ""
    for layer in stack:
        name = f"layer_{short_id(layer.chain_id)}"
        text = label(f"layer {short_id(layer.diff_id)}", size_words(layer.size))
        style = 'shape="box3d", style="filled", fillcolor="#dbe9f6"'
        yield f"  {name} [{style}, label={text}];"
        if below:
            yield f'  {name} -> {below} [color="#4878a8"];'
        below = name


def image_nodes(steps: list[Step | Fold]) -> Iterator[str]:
    """Yield the DOT lines of a family of images."""
    below = ""
    for step in steps:
        last = step.steps[-1] if isinstance(step, Fold) else step
        name = f"image_{short_id(last.id)}"
        if isinstance(step, Fold):
            yield f'  {name} [shape="note", label={label(step.words)}];'
        else:
            text = label(step.word, short_id(step.id), ", ".join(step.tags))
            yield f'  {name} [shape="box", label={text}];'
        if below:
            yield f"  {name} -> {below};"
        if last.layer:
            style = "solid" if last.brings else "dotted"
            layer = f"layer_{short_id(last.layer.chain_id)}"
            yield f'  {name} -> {layer} [style="{style}", constraint=false];'
        below = name


def lineage_svg(dot: str) -> str:
    """Return the picture as SVG. Raises UnsupportedError where ``dot`` is absent."""
    import graphviz

    try:
        return str(graphviz.Source(dot).pipe(format="svg", encoding="utf-8"))
    except graphviz.ExecutableNotFound as why:
        hint = "install graphviz"
        raise UnsupportedError("the program dot is not installed", hint=hint) from why


# %% The picture
def lineage_text(images: ImageStore, layers: LayerStore, id: str) -> str:
    """Return the family of an image as text, the oldest first."""
    lines = []
    steps = folded(family(images, layers, id))
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        mark = "" if not number else "└─ " if last else "├─ "
        rail = "   " if last and number else "│  "
        if isinstance(step, Fold):
            lines.append(f"{mark}... {step.words}")
            continue
        names = f" ({', '.join(step.tags)})" if step.tags else ""
        lines.append(f"{mark}{short_id(step.id)}{names}  {step.word}")
        if step.brings and step.layer:
            size = size_words(step.layer.size)
            lines.append(f"{rail}     layer {short_id(step.layer.diff_id)}, {size}")
    return "\n".join(lines)


# %% The picture
class Lineage:
    """The family of an image; Jupyter draws it, elsewhere it is text."""

    def __init__(self, images: ImageStore, layers: LayerStore, id: str) -> None:
        self.dot = lineage_dot(images, layers, id)
        self.text = lineage_text(images, layers, id)

    def __repr__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        try:
            return {"image/svg+xml": lineage_svg(self.dot), "text/plain": self.text}
        except UnsupportedError:
            return {"text/plain": self.text}


# %% Side by side
class Pair(Record):
    """A line of each JSON, side by side; None where one has no such line."""

    before: str | None
    after: str | None

    @property
    def mark(self) -> str:
        """``<`` only left, ``>`` only right, ``|`` different, blank the same."""
        if self.before is None:
            return ">"
        if self.after is None:
            return "<"
        return " " if self.before == self.after else "|"


def pretty_lines(text: bytes) -> list[str]:
    """Return JSON as lines, one value each."""
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False).splitlines()


def pairs_of(before: list[str], after: list[str]) -> Iterator[Pair]:
    """Yield the lines of both, aligned."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        left, right = before[a:b], after[c:d]
        for number in range(max(len(left), len(right))):
            yield Pair(
                left[number] if number < len(left) else None,
                right[number] if number < len(right) else None,
            )


def with_context(pairs: list[Pair], context: int) -> list[Pair]:
    """Leave out what is the same and far from any difference."""
    changed = [number for number, pair in enumerate(pairs) if pair.mark != " "]
    near = {n for one in changed for n in range(one - context, one + context + 1)}
    return [pair for number, pair in enumerate(pairs) if number in near]


# %% Side by side
class SideBySide:
    """Two JSONs in two columns; Jupyter shows a table, elsewhere it is text."""

    def __init__(self, pairs: list[Pair], titles: tuple[str, str], width: int) -> None:
        self.pairs, self.titles, self.width = pairs, titles, width

    def __str__(self) -> str:
        wide = self.width
        rows = [self.titles[0].ljust(wide) + "   " + self.titles[1]]
        for pair in self.pairs:
            left = shortened(pair.before or "", wide).ljust(wide)
            right = shortened(pair.after or "", wide)
            rows.append(f"{left} {pair.mark} {right}".rstrip())
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{cell(pair.before, pair.mark)}</td>"
            f"<td>{cell(pair.after, pair.mark)}</td></tr>"
            for pair in self.pairs
        )
        heads = "".join(f"<th>{html.escape(title)}</th>" for title in self.titles)
        return f'<table class="side-by-side"><tr>{heads}</tr>{rows}</table>'


# %% Side by side
def shortened(text: str, width: int) -> str:
    """Cut a line to ``width`` characters.

    >>> shortened("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def cell(text: str | None, mark: str) -> str:
    """Return a table cell's contents: escaped, breakable, marked if it differs."""
    if text is None:
        return ""
    indent = len(text) - len(text.lstrip())
    safe = "&nbsp;" * indent + html.escape(text.strip()).replace(":", ":<wbr>")
    return (
        f"<code>{safe}</code>" if mark == " " else f"<mark><code>{safe}</code></mark>"
    )


def side_by_side(
    before: bytes,
    after: bytes,
    titles: tuple[str, str] = ("before", "after"),
    *,
    context: int = 1,
    width: int = 56,
) -> SideBySide:
    """Put two JSONs side by side: what differs, and ``context`` lines around it."""
    pairs = list(pairs_of(pretty_lines(before), pretty_lines(after)))
    return SideBySide(with_context(pairs, context), titles, width)
