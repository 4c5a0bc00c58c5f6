# From book/317-forms.md. Edit there and tangle, or here and tangle --back.

# %% Forms: how arguments are written
"""The forms in which arguments are written: words, pairs, one text, or JSON."""

from __future__ import annotations

from collections.abc import Callable

from minidocker.errors import DockerfileError, did_you_mean
from minidocker.lines import SEPARATOR, json_list, split_words


# %% Words
Args = tuple[tuple[str, ...], bool]
Form = Callable[[str, str], Args]


def one_text(rest: str, escape: str) -> Args:
    """Read all of the rest as one argument."""
    return ((rest,) if rest else ()), False


def plain_words(rest: str, escape: str) -> Args:
    """Read words between blanks; quotes mean nothing."""
    return tuple(word for word in SEPARATOR.split(rest) if word), False


def quoted_words(rest: str, escape: str) -> Args:
    """Read words that may hold quoted blanks."""
    return split_words(rest, escape), False


# %% Pairs
def pairs(rest: str, escape: str) -> Args:
    """Read ``name=value name=value``, or the old form ``name value with blanks``."""
    words = split_words(rest, escape)
    if words and "=" not in words[0]:
        name, *value = SEPARATOR.split(rest, maxsplit=1)
        if not value:
            hint = "write NAME=VALUE"
            raise DockerfileError(f'no value for "{name}"', hint=hint, word=name)
        return (name, *value), False
    flat: list[str] = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            what = f'"{word}" is not of the form NAME=VALUE'
            raise DockerfileError(what, word=word)
        flat += [name, text]
    return tuple(flat), False


# %% JSON, or not
def json_or_words(rest: str, escape: str) -> Args:
    """Read a JSON list, or words between blanks."""
    found = json_list(rest)
    return plain_words(rest, escape) if found is None else (found, True)


def json_or_text(rest: str, escape: str) -> Args:
    """Read a JSON list (the exec form), or one text (the shell form)."""
    found = json_list(rest)
    return one_text(rest, escape) if found is None else (found, True)


def only_json(rest: str, escape: str) -> Args:
    """Read a JSON list, and nothing else: the form of SHELL."""
    found = json_list(rest)
    if found is None:
        hint = 'such as ["/bin/bash", "-c"]'
        raise DockerfileError("SHELL needs a JSON list", hint=hint, word=rest)
    return found, True


def health(rest: str, escape: str) -> Args:
    """Read ``NONE``, or ``CMD`` and what CMD takes."""
    if not rest:
        return (), False
    kind, *tail = SEPARATOR.split(rest, maxsplit=1)
    if kind.upper() not in {"CMD", "NONE"}:
        hint = did_you_mean(kind.upper(), ["CMD", "NONE"], other="CMD or NONE")
        raise DockerfileError(f'unknown type "{kind}"', hint=hint, word=kind)
    args, is_json = json_or_text(tail[0] if tail else "", escape)
    if bool(args) != (kind.upper() == "CMD"):
        raise DockerfileError(
            "NONE takes no arguments" if args else "CMD needs a command", word=kind
        )
    return (kind.upper(), *args), is_json
