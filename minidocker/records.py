# From book/020-records.md. Edit there and tangle, or here and tangle --back.

# %% Records: values that cost nothing to declare
"""Frozen, slotted records: dataclasses that start quickly; and enums that do.

``from minidocker.records import Record`` and subclass it as one would decorate with
``@dataclass(frozen=True, slots=True)``. A type checker sees exactly that.
"""

from __future__ import annotations

from collections.abc import Iterator


__all__ = [
    "Enum", "IntEnum", "IntFlag", "Record", "json_text", "parse_json", "plain",
]  # fmt: skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum, IntEnum, IntFlag
    from typing import Any, ClassVar, Self, dataclass_transform
else:

    def dataclass_transform(**_):
        """Stand in for typing's, which only a type checker needs."""
        return lambda cls: cls


# %% A class body, before it is a class
def annotations_of(space: dict[str, Any]) -> list[str]:
    """Return the names of the fields that a class body declares, in order."""
    notes = space.get("__annotations__", {})
    return [n for n, kind in notes.items() if not str(kind).startswith("ClassVar")]


class RecordType(type):
    """Turn the annotations of a class body into slots, before the class exists."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], space: dict[str, Any]
    ) -> RecordType:
        """Make the class; a field's value in the body becomes its default."""
        own = annotations_of(space)
        fields: tuple[str, ...] = ()
        defaults: dict[str, Any] = {}
        for base in reversed(bases):
            fields += tuple(getattr(base, "__match_args__", ()))
            defaults |= getattr(base, "_defaults", {})
        defaults |= {n: space.pop(n) for n in own if n in space}
        space["__slots__"] = [n for n in own if n not in fields]
        space["__match_args__"] = fields + tuple(space["__slots__"])
        space["_defaults"] = defaults
        space["_puts"] = ()
        return super().__new__(cls, name, bases, space)

    def learn(cls) -> tuple[Any, ...]:
        """Return the functions that set each field; found when the first is made."""
        made: Any = cls
        made._puts = tuple(getattr(cls, n).__set__ for n in made.__match_args__)
        return made._puts  # type: ignore[no-any-return]


# %% The record
@dataclass_transform(frozen_default=True)
class Record(metaclass=RecordType):
    """A value: fields by position or name, equal and hashed by content, frozen.

    >>> class Point(Record):
    ...     x: int
    ...     y: int = 0
    >>> Point(1), Point(1) == Point(1, 0), Point(1).replace(y=2)
    (Point(x=1, y=0), True, Point(x=1, y=2))
    """

    __match_args__: ClassVar[tuple[str, ...]]
    _defaults: ClassVar[dict[str, Any]]
    _puts: ClassVar[tuple[Any, ...]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        fields, puts = self.__match_args__, self._puts or type(self).learn()
        if len(args) == len(fields) and not kwargs:
            for put, value in zip(puts, args):  # noqa: B905
                put(self, value)
            return
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} takes {len(fields)} fields")
        given = dict(zip(fields, args, strict=False))
        if extra := kwargs.keys() - set(fields[len(args) :]):
            raise TypeError(f"{type(self).__name__} has no free field {min(extra)!r}")
        values = self._defaults | given | kwargs
        for put, name in zip(puts, fields):  # noqa: B905
            if name not in values:
                raise TypeError(f"{type(self).__name__} needs {name!r}")
            put(self, values[name])

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: cannot delete {name!r}")

    def _items(self) -> Iterator[tuple[str, Any]]:
        return ((name, getattr(self, name)) for name in self.__match_args__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return tuple(self._items()) == tuple(other._items())

    def __hash__(self) -> int:
        return hash((type(self), *self._items()))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self._items())
        return f"{type(self).__name__}({inside})"

    def replace(self, **changes: Any) -> Self:
        """Return a copy with ``changes`` made.

        >>> class Point(Record):
        ...     x: int
        >>> Point(1).replace(x=3)
        Point(x=3)
        """
        values = dict(self._items()) | changes
        if len(values) == len(self.__match_args__):
            return type(self)(*values.values())
        return type(self)(**values)  # which says what is wrong


# %% Closed sets
class EnumType(type):
    """Make the plain values of a class body members of the class, one by one."""

    _values: dict[str, Any]

    def __new__(
        cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **options: Any
    ) -> EnumType:
        """Make the class; no two of its values are equal."""
        own = [n for n in space if n[0] != "_" and not hasattr(space[n], "__get__")]
        space["_values"] = {n: space.pop(n) for n in own}
        return super().__new__(cls, name, bases, space, **options)

    def __getattr__(cls, name: str) -> Any:
        """Make a member that is asked for the first time."""
        if name not in cls._values:
            raise AttributeError(f"{cls.__name__} has no {name!r}")
        value = cls._values[name]
        made: Any = cls
        member = (
            int.__new__(made, value) if issubclass(cls, int) else object.__new__(made)
        )
        member.name, member.value = name, value
        setattr(cls, name, member)
        return member

    def __iter__(cls) -> Iterator[Any]:
        return (getattr(cls, name) for name in cls._values)

    @property
    def __members__(cls) -> dict[str, Any]:
        return {name: getattr(cls, name) for name in cls._values}

    def __getitem__(cls, name: str) -> Any:
        return cls.__members__[name]


# %% Closed sets
if not TYPE_CHECKING:

    class Enum(metaclass=EnumType):
        """A member of a closed set; ``Enum(value)`` finds it, or raises ValueError."""

        def __new__(cls, value):
            for name, one in cls._values.items():
                if one == value:
                    return getattr(cls, name)
            raise ValueError(f"{value!r} is not a valid {cls.__name__}")

        def __reduce__(self):
            return type(self), (self.value,)

        def __repr__(self):
            return f"<{self}: {self.value!r}>"

        def __str__(self):
            return f"{type(self).__name__}.{self.name}"


# %% Closed sets
if not TYPE_CHECKING:

    class IntEnum(Enum, int):
        """A member that is a number."""

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {int(self)}>"

        __str__ = int.__repr__

    class IntFlag(int, metaclass=EnumType):
        """A set of bits; those that are members have a name."""

        def __repr__(self):
            names = "|".join(bit.name for bit in self)
            return f"<{type(self).__name__}{names and '.'}{names}: {int(self)}>"

        __str__ = int.__repr__

        def __or__(self, other):
            return type(self)(int.__or__(self, other))

        def __and__(self, other):
            return type(self)(int.__and__(self, other))

        def __invert__(self):
            return type(self)(int.__invert__(self))

        __ror__, __rand__ = __or__, __and__

        def __contains__(self, other):
            return int.__and__(self, other) == other

        def __iter__(self):
            return (bit for bit in type(self) if bit and bit in self)


# %% JSON without the module
BLANKS = " \t\n\r"


def no_constant(text: str) -> None:
    """Refuse NaN and Infinity, which Python's JSON has and JSON has not."""
    raise ValueError(f"{text} is no JSON")


class Grammar:
    """How the scanner reads: as ``json.loads`` does, but for ``no_constant``."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, no_constant


def parse_json(text: str) -> Any:
    """Return the value that a JSON text describes. Raises ValueError.

    >>> parse_json(' {"a": [1, null]} ')
    {'a': [1, None]}
    """
    from _json import make_scanner

    try:
        start = len(text) - len(text.lstrip(BLANKS))
        value, end = make_scanner(Grammar)(text, start)  # type: ignore[arg-type]
    except StopIteration as why:
        raise ValueError(f"no JSON value at character {why.value}") from None
    except SystemError:  # its error is json.decoder's, which it does not import
        raise ValueError("no whole JSON value") from None
    if text[end:].strip(BLANKS):
        raise ValueError(f"more than one JSON value: character {end}")
    return value


# %% JSON without the module
def json_text(value: Any) -> str:
    """Return a value as JSON without blanks; only what JSON needs is escaped.

    >>> json_text({"a": ["\u00e9", None, 1.5]})
    '{"a":["\u00e9",null,1.5]}'
    """
    from _json import encode_basestring, make_encoder

    def refuse(found: object) -> None:
        raise TypeError(f"no JSON value: {found!r}")

    encode = make_encoder(
        None, refuse, encode_basestring, None, ":", ",", False, False, False
    )
    return "".join(encode(value, 0))


# %% JSON without the module
def plain(value: Any) -> Any:
    """Return a record, and what is in it, as JSON knows it.

    >>> class Point(Record):
    ...     x: int
    ...     near: tuple[int, ...] = (1, 2)
    >>> json_text(plain(Point(0)))
    '{"x":0,"near":[1,2]}'
    """
    if isinstance(value, Record):
        return {name: plain(getattr(value, name)) for name in value.__match_args__}
    return [plain(each) for each in value] if isinstance(value, tuple) else value
