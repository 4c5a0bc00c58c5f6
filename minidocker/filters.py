# From book/613-filters.md. Edit there and tangle, or here and tangle --back.

# %% Filters: which of them
"""Filters as commands take them: names and values, labels, patterns, moments."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from minidocker.errors import MinidockerError, UsageError, WordFault
from minidocker.tables import nanoseconds_of


# %% Names and values
Filters = dict[str, list[str]]


def parse_filters(given: Iterable[str], known: tuple[str, ...]) -> Filters:
    """Return ``NAME=VALUE`` filters by name.

    Raises UsageError for another form, MinidockerError for a name not in ``known``.

    >>> parse_filters(["label=a", "label=b=c"], ("label",))
    {'label': ['a', 'b=c']}
    """
    found: Filters = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            what = f'invalid argument "{text}" for "-f, --filter" flag'
            hint = f"NAME=VALUE, such as {known[0]}=..."
            raise UsageError(f"{what}: bad format of filter", hint=hint)
        name = name.strip().lower()
        if name not in known:
            what = f"invalid filter '{name}'"
            raise MinidockerError(what, hint=f"filters: {', '.join(known)}")
        found.setdefault(name, []).append(value.strip())
    for text in found.get("until", ()):
        moment_of(text, 0)  # before anything is removed
    return found


# %% Names and values
def truth_of(filters: Filters, name: str) -> bool | None:
    """Return what a filter such as ``dangling=true`` says; None where there is none."""
    words = {"true": True, "1": True, "false": False, "0": False}
    values = {words.get(value) for value in filters.get(name, ())}
    if None in values or len(values) > 1:
        raise MinidockerError(f"invalid filter '{name}={filters[name][-1]}'")
    return values.pop() if values else None


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether labels have ``KEY`` or ``KEY=VALUE``."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def all_labels_match(labels: Mapping[str, str], filters: Filters) -> bool:
    """Whether all ``label`` filters, and no ``label!`` filter, match labels."""
    wanted, unwanted = filters.get("label", ()), filters.get("label!", ())
    return all(has_label(labels, one) for one in wanted) and not any(
        has_label(labels, one) for one in unwanted
    )


# %% Patterns
def pattern_of(pattern: str) -> Callable[[str], bool]:
    """Return the test of a pattern. Raises MinidockerError for what is none.

    >>> [pattern_of(p)("web/tool") for p in ("*", "web/*", "w?b/t[a-p]ol", "web")]
    [False, True, True, False]
    """
    import re

    simple = {"*": "[^/]*", "?": "[^/]"}
    form = re.compile(r"\\(.)|\[(\^?)((?:\\.|[^\]\\])+)\]|([^\\\[])", re.DOTALL)
    text, at = "", 0
    while at < len(pattern):
        match = form.match(pattern, at)
        if match is None:
            raise MinidockerError(f'syntax error in pattern "{pattern}"')
        escaped, negated, chosen, letter = match.groups()
        if chosen:
            text += f"[{negated}{chosen.replace('[', chr(92) + '[')}]"
        else:
            text += simple.get(letter) or re.escape(escaped or letter)
        at = match.end()
    try:
        test = re.compile(text, re.DOTALL)
    except re.error as why:
        raise MinidockerError(f'syntax error in pattern "{pattern}"') from why
    return lambda name: test.fullmatch(name) is not None


# %% Moments
def moment_of(text: str, now: int) -> int:
    """Return the nanoseconds of ``24h``, ``1h30m``, a date, a time or Unix seconds.

    A duration counts back from ``now`` (nanoseconds), one with a minus on from it.
    A time without a zone is local. Raises WordFault.

    >>> moment_of("1h30m", 7200 * 10**9) // 10**9, moment_of("-5s", 0) // 10**9
    (1800, 5)
    """
    import re

    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)", text)
    if parts and "".join(number + unit for number, unit in parts) == text.lstrip("-+"):
        span = int(sum(float(n) * units[unit] for n, unit in parts) * 1e9)
        return now + span if text.startswith("-") else now - span
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return int(float(text) * 1e9)
    whole = re.sub(r"^(\d+-\d+-\d+)$", r"\1T00:00", text)
    whole = re.sub(r"T(\d\d:\d\d)(?!:)", r"T\1:00", whole)
    zoned = re.search(r"(Z|[+-]\d\d:\d\d)$", whole)
    found = nanoseconds_of(whole if zoned else f"{whole}Z")
    if found or whole.startswith("1970-01-01T00:00:00"):
        return found if zoned else found - zone_at(found)
    hint = "24h, 2018-02-05, 2018-02-05T08:00:00Z, or seconds since 1970"
    raise WordFault(f'cannot read the time "{text}"', hint=hint)


def zone_at(clock: int) -> int:
    """Return how far (nanoseconds) our zone is ahead when its clock shows a time."""
    seconds = clock // 10**9
    seconds -= time.localtime(seconds).tm_gmtoff  # about
    return time.localtime(seconds).tm_gmtoff * 10**9


def moment_said(text: str, flag: str) -> int | None:
    """Return what a flag names, such as ``since``; None for "". Raises WordFault."""
    try:
        return moment_of(text, time.time_ns()) if text else None
    except UsageError as why:
        what = f'invalid value for "{flag}": {why.what}'
        raise WordFault(what, hint=why.hint) from why
