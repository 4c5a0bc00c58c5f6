# From book/604-values.md. Edit there and tangle, or here and tangle --back.

# %% Values: what Go prints for a value
"""Fill Go's templates over a JSON document, and print values as Go prints them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote_plus

from minidocker.errors import MinidockerError
from minidocker.go_words import go_quote, go_rune
from minidocker.oci import CONFIG_FIELDS, ContainerConfig
from minidocker.records import Enum, Record
from minidocker.templates import (
    Control,
    Jump,
    Node,
    Operand,
    Pipeline,
    Sort,
    broken,
    parse_template,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% What JSON has forgotten
class Nil(Enum):
    """What is null in JSON, by what Go prints for it."""

    LIST = "[]"
    MAP = "map[]"
    POINTER = "<nil>"


class Struct(Record):
    """A JSON object that is a struct in Go: ``written`` in JSON, and all its fields."""

    written: Mapping[str, Any]
    fields: Mapping[str, Any]


MAPS = frozenset(
    (
        "Labels", "Volumes", "ExposedPorts", "Data", "Ports", "PortBindings",
        "Networks", "Annotations", "Sysctls", "StorageOpt", "Tmpfs", "Options",
        "Containers", "AuxiliaryAddresses", "Attributes", "DriverOpts",
    )
)  # fmt: skip
POINTERS = frozenset(
    (
        "Healthcheck", "Health", "StopTimeout", "Init", "PidsLimit", "SizeRw",
        "SizeRootFs", "MemorySwappiness", "IPAMConfig", "OomKillDisable",
    )
)  # fmt: skip
NOTHING = ContainerConfig()
CONFIG = {field.key: getattr(NOTHING, field.attribute) for field in CONFIG_FIELDS}
MOUNT = {"Type": "", "Name": "", "Source": "", "Destination": "", "Driver": ""}
MOUNT |= {"Mode": "", "RW": False, "Propagation": ""}  # type: ignore[dict-item]
WHOLE = {"Config": CONFIG, "ContainerConfig": CONFIG, "Mounts": MOUNT}
LAST: dict[str, dict[str, Any]] = {
    "RootFS": {"BaseLayer": ""},
    "State": {"Health": None},
    "HostConfig": dict.fromkeys(("StorageOpt", "Tmpfs", "Mounts", "Sysctls", "Init")),
}  # left out of the JSON when empty
RENAMED = {"LogConfig": {"Config": "Options"}}  # a map, where another is a struct
SIZES = {"SizeRw": None, "SizeRootFs": None}


# %% What JSON has forgotten
def typed(value: Any, key: str = "") -> Any:
    """Return a JSON document with Go's kinds; ``key`` is the name of ``value``."""
    if value is None:
        if key in MAPS:
            return Nil.MAP
        return Nil.POINTER if key in POINTERS else Nil.LIST
    if isinstance(value, list | tuple):
        return [typed(one, key) for one in value]
    if not isinstance(value, Mapping):
        return value
    if key in MAPS:
        return {name: typed(one) for name, one in value.items()}
    names = RENAMED.get(key, {})
    last = LAST.get(key, SIZES if "HostConfig" in value else {})
    last = {name: one for name, one in last.items() if name not in value}
    fields = {**WHOLE.get(key, {}), **value, **last}
    inner = {n: typed(one, names.get(n, n)) for n, one in fields.items()}
    return Struct(value, inner)


def written(value: Any) -> Any:
    """Return the JSON document of a value."""
    if isinstance(value, Struct):
        return value.written
    if isinstance(value, Mapping):
        return {name: written(one) for name, one in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [written(one) for one in value]
    return None if isinstance(value, Nil) else value


# %% What JSON has forgotten
class Missing:
    """The value of a key that a map does not have."""


MISSING = Missing()


def shown(value: Any) -> str:
    """Return what Go prints for a value.

    >>> shown(["a", True, None]), shown({"b": 1, "a": {}}), shown(typed({"A": 1}))
    ('[a true <nil>]', 'map[a:map[] b:1]', '{1}')
    """
    if value is None:
        return "<nil>"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, Missing):
        return "<no value>"
    if isinstance(value, Nil):
        return value.value
    if isinstance(value, Struct):
        return "{" + " ".join(map(shown, value.fields.values())) + "}"
    if isinstance(value, Mapping):
        pairs = (f"{name}:{shown(one)}" for name, one in sorted(value.items()))
        return f"map[{' '.join(pairs)}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(shown, value))}]"
    return f"{value:.17g}" if isinstance(value, float) else str(value)


def truth(value: Any) -> bool:
    """Whether Go takes a value as true: not nil, not 0, not empty."""
    if isinstance(value, Nil | Missing):
        return False
    return True if isinstance(value, Struct) else bool(value)


# %% The functions
def fault(what: str) -> MinidockerError:
    """Return the error for a template that cannot be filled."""
    return MinidockerError(
        f'template parsing error: template: :1: executing "": {what}'
    )


def go_text(value: Any) -> str:
    """Return a value as JSON, as Docker's ``json`` gives it: ``<`` stays."""
    return json.dumps(written(value), ensure_ascii=False, separators=(",", ":"))


def index(found: Any, *keys: Any) -> Any:
    """Return ``found[key][key]...``; of a map without the key, its empty value."""
    for key in keys:
        if isinstance(found, Mapping):
            found = found.get(key, "")
        elif isinstance(found, Nil):
            if found is not Nil.MAP:
                raise fault(f"error calling index: index out of range: {key}")
            found = ""
        elif isinstance(found, list | tuple | str) and isinstance(key, int):
            if not 0 <= key < len(found):
                raise fault(f"error calling index: index out of range: {key}")
            found = ord(found[key]) if isinstance(found, str) else found[key]
        else:
            raise fault(f"error calling index: can't index {shown(found)}")
    return found


def slice_of(found: Any, *ends: int) -> Any:
    """Return ``found[begin:end]``."""
    begin, end = (*ends, len(found))[:2] if ends else (0, len(found))
    if not 0 <= begin <= end <= len(found):
        raise fault(f"error calling slice: index out of range: {end}")
    return found[begin:end]


# %% The functions
def length(value: Any) -> int:
    """Return how many elements a value has."""
    if isinstance(value, Nil) and value is not Nil.POINTER:
        return 0
    if not isinstance(value, list | tuple | str | Mapping):
        raise fault(f"error calling len: len of {shown(value)}")
    return len(value.encode()) if isinstance(value, str) else len(value)


def compared(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Return a comparison of two values of one kind; another is an error."""

    def compare(one: Any, other: Any) -> bool:
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        if isinstance(one, bool) != isinstance(other, bool):
            numbers = False
        if not numbers and type(one) is not type(other):
            raise fault("error calling comparison: incompatible types for comparison")
        return test(one, other)

    return compare


def equals(one: Any, *others: Any) -> bool:
    """Whether a value equals one of the others."""
    same = compared(lambda a, b: bool(a == b))
    answers = [same(one, other) for other in others]  # all, so that kinds are checked
    return any(answers)


# %% The functions
VERB = re.compile(r"%([-+# 0]*)(\d+)?(?:\.(\d+))?([%a-zA-Z])")


def printf(form: str, *values: Any) -> str:
    """Return Go's Sprintf for ``%s %v %q %d %x %t %f %c %T``, with flags and width.

    >>> printf("%-4s|%03d|%q", "a", 7, "b")
    'a   |007|"b"'
    """
    rest = list(values)

    def one(match: re.Match[str]) -> str:
        flags, width, places, verb = match.groups()
        if verb == "%":
            return "%"
        if not rest:
            return f"%!{verb}(MISSING)"
        text = verb_text(verb, rest.pop(0), places)
        fill = "0" if "0" in flags and "-" not in flags else " "
        wide = int(width or 0)
        return text.ljust(wide) if "-" in flags else text.rjust(wide, fill)

    text = VERB.sub(one, form)
    extra = ", ".join(f"{kind_of(one)}={shown(one)}" for one in rest)
    return text + (f"%!(EXTRA {extra})" if rest else "")


def kind_of(value: Any) -> str:
    """Return Go's name for the type of a simple value."""
    names = {bool: "bool", int: "int", float: "float64", str: "string"}
    return names.get(type(value), "interface {}")


def verb_text(verb: str, value: Any, places: str | None) -> str:
    """Return one value as a verb of ``printf`` asks for it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if verb == "T":
        return kind_of(value)
    if value is None:
        return "<nil>" if verb == "v" else f"%!{verb}(<nil>)"
    if verb == "q":
        if isinstance(value, list | tuple):
            return "[" + " ".join(verb_text(verb, one, places) for one in value) + "]"
        return go_rune(value) if type(value) is int else go_quote(shown(value))
    if verb == "x" and isinstance(value, str):
        return value.encode().hex()
    if verb in "dxX" and isinstance(value, int) and number:
        return format(value, verb)
    if verb in "fge" and isinstance(value, float):
        return format(value, f".{places or 6}{verb}")
    if verb == "c" and isinstance(value, int):
        return chr(value)
    if verb in "vs" and not (verb == "s" and number):
        text = shown(value)
        return text[: int(places)] if places and verb == "s" else text
    if (verb, type(value)) in (("t", bool), ("v", int)):
        return shown(value)
    return f"%!{verb}({kind_of(value)}={shown(value)})"


def sprint(*values: Any) -> str:
    """Return Go's Sprint: a space between two values neither of which is a text."""
    text, before = "", ""
    for value in values:
        both = not isinstance(value, str) and not isinstance(before, str)
        text += (" " if both else "") + shown(value)
        before = value
    return text


# %% The functions
def joined(parts: Any, by: str) -> str:
    """Return texts joined."""
    return by.join(() if isinstance(parts, Nil) else parts)


def either(*values: Any) -> Any:
    """Return the first value that is true, or the last."""
    return next((one for one in values if truth(one)), values[-1])


def all_of(*values: Any) -> Any:
    """Return the first value that is not true, or the last."""
    return next((one for one in values if not truth(one)), values[-1])


def escaped_js(*values: Any) -> str:
    """Return values as they may stand in a string of JavaScript."""
    text = sprint(*values)
    for letter in "\\'\"":
        text = text.replace(letter, f"\\{letter}")
    unsafe = re.compile(r"[<>&=\x00-\x1f]")
    return unsafe.sub(lambda match: f"\\u{ord(match[0]):04X}", text)


def escaped_html(*values: Any) -> str:
    """Return values with the letters escaped that mean something in HTML."""
    pairs = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"))
    text = sprint(*values)
    for letter, escape in (*pairs, ('"', "&#34;")):
        text = text.replace(letter, escape)
    return text


# %% The functions
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": all_of,
    "or": either,
    "not": lambda value: not truth(value),
    "eq": equals,
    "ne": compared(lambda one, other: bool(one != other)),
    "lt": compared(lambda one, other: bool(one < other)),
    "le": compared(lambda one, other: bool(one <= other)),
    "gt": compared(lambda one, other: bool(one > other)),
    "ge": compared(lambda one, other: bool(one >= other)),
    "len": length,
    "index": index,
    "slice": slice_of,
    "print": sprint,
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "printf": printf,
    "html": escaped_html,
    "js": escaped_js,
    "urlquery": lambda *values: quote_plus(sprint(*values)),
    "json": go_text,
    "join": joined,
    "split": lambda text, by: text.split(by),
    "lower": str.lower,
    "upper": str.upper,
    "title": lambda text: re.sub(r"\b\w", lambda m: m[0].upper(), text),
    "pad": lambda text, before, after: text and " " * before + text + " " * after,
    "truncate": lambda text, size: text[:size],
}


# %% Walking the tree
class Walker:
    """Walks the nodes of a template over ``data``; ``out`` is what was printed."""

    def __init__(self, data: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.variables: list[tuple[str, Any]] = [("$", data)]
        self.out: list[str] = []
        self.functions = functions

    def walk(self, nodes: tuple[Node, ...], dot: Any) -> str:
        """Print nodes; the variables that they make end here.

        Return ``break`` or ``continue`` where one of these words ended it early.
        """
        mark, ended = len(self.variables), ""
        for node in nodes:
            if isinstance(node, str):
                self.out.append(node)
            elif isinstance(node, Jump):
                ended = node.word
            elif isinstance(node, Control):
                ended = self.control(node, dot)
            else:
                value = self.pipeline(node, dot)
                if not node.names:
                    value = MISSING if value is None else value
                    self.out.append(shown(value))
            if ended:
                break
        del self.variables[mark:]
        return ended

    def control(self, node: Control, dot: Any) -> str:
        """Print a block as often as it is to be printed; return what ``walk`` does."""
        mark = len(self.variables)
        value = self.pipeline(node.pipeline, dot)
        ended = ""
        if node.word == "range" and (pairs := elements(value)):
            for key, one in pairs:
                self.loop_variables(node.pipeline.names, key, one)
                if self.walk(node.body, one) == "break":
                    break
        elif node.word != "range" and truth(value):
            ended = self.walk(node.body, value if node.word == "with" else dot)
        else:
            ended = self.walk(node.other, dot)
        del self.variables[mark:]
        return ended

    def loop_variables(self, names: tuple[str, ...], key: Any, one: Any) -> None:
        """Set the variables of a ``range``: the element, or the key and the element."""
        values = (one,) if len(names) == 1 else (key, one)
        for name, value in zip(names, values, strict=False):
            self.assign(name, value)

    def pipeline(self, pipeline: Pipeline, dot: Any) -> Any:
        """Return the value of a pipeline, and let its variables have it."""
        value: Any = None
        last: tuple[Any, ...] = ()
        for command in pipeline.commands:
            value = self.command(command, dot, last)
            last = (value,)
        if len(pipeline.names) == 1:
            declare = pipeline.declares
            self.assign(pipeline.names[0], value, declare=declare)
        return value

    def assign(self, name: str, value: Any, *, declare: bool = True) -> None:
        """Make a variable, or give one that is there another value."""
        if declare:
            self.variables.append((name, value))
            return
        for at in reversed(range(len(self.variables))):
            if self.variables[at][0] == name:
                self.variables[at] = (name, value)
                return
        raise fault(f'undefined variable "{name}"')

    def command(
        self, operands: tuple[Operand, ...], dot: Any, last: tuple[Any, ...]
    ) -> Any:
        """Return the value of one command; ``last`` is what was piped into it."""
        first, *rest = operands
        values = (*(self.value(one, dot) for one in rest), *last)
        arguments = [None if one is MISSING else one for one in values]
        if first.kind is Sort.FUNCTION:
            called, name = self.functions[first.value], first.value
        else:
            called, name = self.value(first, dot), ".".join(("", *first.fields))
            if not callable(called):
                if arguments:
                    raise fault("can't give argument to non-function")
                return called
        try:
            return called(*arguments)
        except (TypeError, AttributeError, ValueError, IndexError) as why:
            raise fault(f"wrong arguments for {name}") from why

    def value(self, operand: Operand, dot: Any) -> Any:
        """Return the value of an operand, its fields looked up."""
        if operand.kind is Sort.DOT:
            found = dot
        elif operand.kind is Sort.VARIABLE:
            known = dict(self.variables)
            if operand.value not in known:
                raise broken(f'undefined variable "{operand.value}"')
            found = known[operand.value]
        elif operand.kind is Sort.PIPELINE:
            found = self.pipeline(operand.value, dot)
        elif operand.kind is Sort.FUNCTION:
            found = self.command((operand,), dot, ())
        else:
            found = operand.value
        for name in operand.fields:
            found = field(found, name)
        return found


# %% Walking the tree
def elements(value: Any) -> list[tuple[Any, Any]]:
    """Return the keys and elements that ``range`` goes over."""
    if isinstance(value, Nil | Missing) or value is None:
        return []
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    raise fault(f"range can't iterate over {shown(value)}")


def field(found: Any, name: str) -> Any:
    """Return ``.name`` of a value. A struct must have it; a map may.

    What a map has not has no fields either, and that is no fault.
    """
    if isinstance(found, Struct):
        if name not in found.fields:
            known = ", ".join(found.fields)
            what = f'<.{name}>: map has no entry for key "{name}"'
            raise fault_with(what, f"fields: {known}" if known else None)
        return found.fields[name]
    if isinstance(found, Mapping):
        return found.get(name, MISSING)
    if found is Nil.MAP or found is MISSING:
        return MISSING
    raise fault(f"<.{name}>: can't evaluate field {name} in {shown(found)}")


def fault_with(what: str, hint: str | None) -> MinidockerError:
    """Return the error for a field that is not there."""
    error = fault(f"at {what}")
    error.hint = hint
    return error


# %% Walking the tree
def fill(
    template: str,
    data: Any,
    functions: Mapping[str, Callable[..., Any]] = FUNCTIONS,
) -> str:
    """Return a template filled. ``data`` is a JSON document, or a value of ``typed``.

    Raises UsageError for a template that cannot be read, MinidockerError for one that
    asks for what is not there.

    >>> fill("{{range $n, $e := .Env}}{{$n}}={{$e}} {{end}}", {"Env": ["A", "B"]})
    '0=A 1=B '
    """
    nodes = parse_template(template, functions)
    value = typed(data) if isinstance(data, dict) else data
    walker = Walker(value, functions)
    walker.walk(nodes, value)
    return "".join(walker.out)
