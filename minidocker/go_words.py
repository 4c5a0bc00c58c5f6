# From book/316-go-words.md. Edit there and tangle, or here and tangle --back.

# %% Words that Go prints
"""Texts, lists and durations as Go prints them."""

from __future__ import annotations


# %% Texts and lists
GO_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
    "\v": "\\v", "\\": "\\\\", '"': '\\"',
}  # fmt: skip


def go_quote(text: str) -> str:
    """Quote a text as Go's ``strconv.Quote``.

    >>> print(go_quote('say "hi"\\n'))
    "say \\"hi\\"\\n"
    """

    def one(char: str) -> str:
        if char in GO_ESCAPES or char.isprintable():
            return GO_ESCAPES.get(char, char)
        code = ord(char)
        if code < 0x80:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(one, text)) + '"'


def go_rune(number: int) -> str:
    """Write a number as Go's %q does, as the character that it is the code of.

    >>> go_rune(3), go_rune(65)
    ("'\\\\x03'", "'A'")
    """
    return "'" + go_quote(chr(number))[1:-1].replace('\\"', '"') + "'"


def quoted_list(words: tuple[str, ...]) -> str:
    """Return ``["a" "b"]``, Go's %q of a list."""
    return "[" + " ".join(map(go_quote, words)) + "]"


def bare_list(words: tuple[str, ...]) -> str:
    """Return ``[a b]``, Go's %v of a list."""
    return "[" + " ".join(words) + "]"


# %% Durations
PARTS = (("h", 3600 * 10**9), ("m", 60 * 10**9))


def go_duration(nanoseconds: int) -> str:
    """Write a duration as Go does.

    >>> go_duration(90 * 10**9), go_duration(1_500_000), go_duration(0)
    ('1m30s', '1.5ms', '0s')
    """
    if 0 < nanoseconds < 10**9:
        unit, size = ("ms", 10**6) if nanoseconds >= 10**6 else ("µs", 10**3)
        return f"{nanoseconds / size:f}".rstrip("0").rstrip(".") + unit
    text, rest = "", nanoseconds
    for unit, size in PARTS:
        if rest >= size or text:
            text += f"{rest // size}{unit}"
            rest %= size
    return f"{text}{rest / 10**9:f}".rstrip("0").rstrip(".") + "s"
