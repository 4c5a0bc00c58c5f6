# From book/612-tables.md. Edit there and tangle, or here and tangle --back.

# %% Tables: sizes, ages, columns
"""Sizes, ages and tables as Docker's command line writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Sizes
UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


def human_size(size: float, digits: int = 3) -> str:
    """Return bytes with a decimal unit and ``digits`` digits.

    >>> human_size(0), human_size(8866), human_size(1_993_028, 4)
    ('0B', '8.87kB', '1.993MB')
    """
    unit = 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.{digits}g}{UNITS[unit]}"


# %% Ages
SPANS = (
    (48, 1, "{} hours"), (14 * 24, 24, "{} days"), (60 * 24, 7 * 24, "{} weeks"),
    (730 * 24, 30 * 24, "{} months"),
)  # fmt: skip


def human_span(seconds: float) -> str:
    """Return a duration in Docker's words.

    >>> human_span(0.3), human_span(75), human_span(90_000), human_span(3e6)
    ('Less than a second', 'About a minute', '25 hours', '4 weeks')
    """
    if seconds < 1:
        return "Less than a second"
    if seconds < 60:
        return "1 second" if seconds < 2 else f"{int(seconds)} seconds"
    if seconds < 3600:
        return "About a minute" if seconds < 120 else f"{int(seconds / 60)} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    for end, unit, words in SPANS:
        if hours < end:
            return words.format(hours // unit)
    return f"{int(seconds / 3600) // 24 // 365} years"


# %% Ages
def days_since_1970(year: int, month: int, day: int) -> int:
    """Return the days from 1970-01-01 to a date of the Gregorian calendar.

    >>> days_since_1970(1970, 1, 1), days_since_1970(2000, 3, 1)
    (0, 11017)
    """
    year -= month <= 2  # a year begins in March: the leap day is its last
    days = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return days + 365 * year + year // 4 - year // 100 + year // 400 - 719468


def nanoseconds_of(created: str | None) -> int:
    """Return an RFC 3339 time as nanoseconds since 1970; 0 for what is none.

    >>> nanoseconds_of("1970-01-01T00:01:00.5Z")
    60500000000
    >>> nanoseconds_of("1970-01-01T02:00:00+02:00")
    0
    """
    text = created or ""
    try:
        date = [int(part) for part in text[:10].split("-")]
        clock = [int(part) for part in text[11:19].split(":")]
        rest = text[19:]
        ends = (at for at, letter in enumerate(rest) if letter in "Zz+-")
        end = next(ends, len(rest))
        fraction = int(rest[1:end][:9].ljust(9, "0")) if end > 1 else 0
        offset = offset_of(rest[end:])
        days = days_since_1970(date[0], date[1], date[2])
        seconds = days * 86400 + clock[0] * 3600 + clock[1] * 60 + clock[2] - offset
    except (ValueError, IndexError):
        return 0
    return seconds * 1_000_000_000 + fraction


# %% Ages
def offset_of(zone: str) -> int:
    """Return the seconds that a zone such as ``+02:00`` is ahead of UTC."""
    if zone[:1] not in ("+", "-"):
        return 0
    ahead = int(zone[1:3]) * 3600 + int(zone[4:6]) * 60
    return ahead if zone[0] == "+" else -ahead


def seconds_of(created: str | None) -> float:
    """Return an RFC 3339 time as seconds since 1970; 0 for none.

    >>> seconds_of("1970-01-01T00:01:00.5Z")
    60.5
    """
    return nanoseconds_of(created) / 1e9


# %% Ages
def ago(created: str | None, now: float | None = None) -> str:
    """Return how long ago a time was, in Docker's words."""
    moment = time.time() if now is None else now
    return f"{human_span(moment - seconds_of(created))} ago"


def local_time(seconds: float) -> str:
    """Return a time as Go prints it, which is Docker's ``CreatedAt``."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(seconds))


def rfc_time(seconds: float) -> str:
    """Return a time as RFC 3339 without fractions, in the local zone."""
    moment = time.localtime(seconds)
    zone = time.strftime("%z", moment)
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return time.strftime("%Y-%m-%dT%H:%M:%S", moment) + zone


def cut(text: str, width: int) -> str:
    """Cut a text to ``width`` characters, the last one an ellipsis.

    >>> cut("/bin/sh -c true", 8)
    '/bin/sh…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def short(digest: str) -> str:
    """Return the twelve digits of an id that tables show."""
    return digest.removeprefix("sha256:")[:12]


# %% Columns
def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns under their heads.

    >>> print(table(("NAME", "SIZE"), [("a", "0B")]))
    NAME      SIZE
    a         0B
    """
    lines = [heads, *rows]
    columns = list(zip(*lines, strict=True))
    form = "".join(
        f"%-{max(10, max(map(len, column)) + 3)}s" for column in columns[:-1]
    )
    return "\n".join([f"{form}%s" % tuple(line) for line in lines])


# %% Columns
class View(Record):
    """How a list is shown: the heads and the fields of the table, side by side.

    ``others`` are the heads of fields that only a template shows.
    """

    heads: tuple[str, ...]
    columns: tuple[str, ...]
    others: Mapping[str, str] | None = None

    def head(self, field: str) -> str:
        """Return the head of a field: as written down, or its name in capitals."""
        known = {
            **(self.others or {}),
            **dict(zip(self.columns, self.heads, strict=True)),
        }
        words = "".join(f" {c}" if c.isupper() else c for c in field).strip()
        return known.get(field) or words.upper()


def view_of(heads: Mapping[str, str], columns: tuple[str, ...]) -> View:
    """Return the view that shows ``columns``; ``heads`` has those of all fields."""
    return View(tuple(heads[name] for name in columns), columns, heads)


def formatted(view: View, rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Return rows as a table, as JSON lines, or by a template.

    Raises UsageError and MinidockerError as ``values.fill`` does.
    """
    if form in ("", "table"):
        cells = [[row[name] for name in view.columns] for row in rows]
        return table(view.heads, cells)
    if form == "json":
        form = "{{json .}}"
    template = form.replace(r"\t", "\t").replace(r"\n", "\n")
    if not template.startswith("table"):
        return "\n".join(filled(template, rows))
    template = template.removeprefix("table").strip(" ")
    fields = {**(view.others or {}), **dict.fromkeys(view.columns)}
    fields |= dict.fromkeys(name for row in rows for name in row)
    first = {**{name: view.head(name) for name in fields}, "Label": label_head}
    heads = filled(template, [first], plain=True)
    lines = [line.split("\t") for line in [*heads, *filled(template, rows)]]
    return table(lines[0], lines[1:])


# %% Columns
def label_in(labels: Mapping[str, str]) -> Callable[[str], str]:
    """Return the method ``.Label`` of a row: a label's value, or nothing."""
    return lambda name: labels.get(name, "")


def label_head(name: str) -> str:
    """Return the head above a label: the last word of its name.

    >>> label_head("com.example.made-by")
    'made by'
    """
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ")


def filled(
    template: str, rows: Iterable[Mapping[str, Any]], *, plain: bool = False
) -> list[str]:
    """Return a template filled for each row; ``plain``: its functions do nothing."""
    from minidocker.values import FUNCTIONS, Struct, fill

    functions = FUNCTIONS
    if plain:
        same = ("json", "title", "lower", "upper", "truncate")
        functions = FUNCTIONS | dict.fromkeys(same, lambda value, *_: value)
    found = []
    for row in rows:
        told = {name: one for name, one in sorted(row.items()) if not callable(one)}
        found.append(fill(template, Struct(told, dict(row)), functions))
    return found
