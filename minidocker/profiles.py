# From book/413-profiles.md. Edit there and tangle, or here and tangle --back.

# %% Profiles: a list of calls that somebody else wrote
"""Read a profile of system calls in Docker's form, or in that of an OCI bundle."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from minidocker.errors import RuntimeFault
from minidocker.linux import Capability
from minidocker.records import parse_json
from minidocker.seccomp import (
    ACTIONS,
    ERRNO,
    TRACE,
    Compare,
    Machine,
    Op,
    Profile,
    Rule,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Actions and tests
def wrong(what: str) -> RuntimeFault:
    """Phrase what is wrong with a profile."""
    return RuntimeFault(f"decoding seccomp profile failed: {what}")


def action_of(text: object, number: object) -> int:
    """Return an action by its name in a profile; ``number`` is its errno, or None."""
    found = ACTIONS.get(str(text).removeprefix("SCMP_ACT_"))
    if found is None:
        raise wrong(f'unknown action "{text}"')
    if found not in (ERRNO, TRACE):
        return found
    value = errno.EPERM if number is None else number
    if not isinstance(value, int) or not 0 <= value <= 4095:
        raise wrong(f'invalid errnoRet "{value}"')
    return found | value


def compare_of(found: dict[str, Any]) -> Compare:
    """Return a test from its JSON."""
    op = str(found.get("op")).removeprefix("SCMP_CMP_")
    numbers = [found.get(key, 0) for key in ("index", "value", "valueTwo")]
    if op not in Op.__members__ or not all(isinstance(n, int) for n in numbers):
        raise wrong(f"invalid argument {found}")
    index, value, wanted = numbers
    if not 0 <= index <= 5 or not 0 <= value < 1 << 64 or not 0 <= wanted < 1 << 64:
        raise wrong(f"invalid argument {found}")
    return Compare(index, Op[op], value, wanted)


# %% Which rules
def has_capability(mask: int, name: str) -> bool:
    """Say whether a mask holds a capability that is given by its whole name."""
    bit = Capability.__members__.get(name.upper().removeprefix("CAP_"))
    return bit is not None and bool(mask >> bit & 1)


def kernel_at_least(text: str) -> bool:
    """Say whether this kernel is as new as ``MAJOR.MINOR``."""
    here = os.uname().release.split("-")[0].split(".")[:2]
    try:
        return [int(n) for n in here] >= [int(n) for n in text.split(".")[:2]]
    except ValueError:
        raise wrong(f'invalid minKernel "{text}"') from None


def applies(rule: dict[str, Any], capabilities: int, machine: Machine) -> bool:
    """Say whether a rule is there for this container, on this machine."""
    wants, bars = rule.get("includes") or {}, rule.get("excludes") or {}
    arches = wants.get("arches") or [machine.name]
    kernel, too_new = wants.get("minKernel"), bars.get("minKernel")
    return (
        machine.name in arches
        and machine.name not in (bars.get("arches") or ())
        and all(has_capability(capabilities, c) for c in wants.get("caps") or ())
        and not any(has_capability(capabilities, c) for c in bars.get("caps") or ())
        and (not kernel or kernel_at_least(kernel))
        and not (too_new and kernel_at_least(too_new))
    )


# %% Which rules
def rules_of(found: dict[str, Any]) -> Iterable[Rule]:
    """Yield the rules of one entry: two tests of one argument are joined by or.

    That is runc's reading of the format, and profiles count on it.
    """
    names = found.get("names") or [found.get("name")]
    if found.get("names") and found.get("name"):
        raise wrong("'name' and 'names' were specified, use either")
    if not all(isinstance(name, str) for name in names):
        raise wrong(f"a rule without names: {found}")
    action = action_of(found.get("action"), found.get("errnoRet"))
    args = tuple(compare_of(arg) for arg in found.get("args") or ())
    if len({arg.index for arg in args}) == len(args):
        yield Rule(tuple(names), action, args)
    else:
        yield from (Rule(tuple(names), action, (arg,)) for arg in args)


def read_profile(text: str, capabilities: int, machine: Machine) -> Profile:
    """Return a profile from Docker's JSON, for a mask of capabilities.

    Raises RuntimeFault for what is no JSON, and for what is none of Docker's.
    """
    try:
        found = parse_json(text)
        fallback = found.get("defaultErrnoRet")
        entries = [r for r in found.get("syscalls") or () if isinstance(r, dict)]
        chosen = [r for r in entries if applies(r, capabilities, machine)]
        default = action_of(found.get("defaultAction"), fallback)
        return Profile(default, tuple(rule for r in chosen for rule in rules_of(r)))
    except (ValueError, AttributeError, TypeError) as why:
        raise wrong(str(why)) from why


# %% For which machines
WORDS = {
    f"SCMP_ARCH_{name}"
    for name in (
        "X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32",
        "MIPSEL", "MIPSEL64", "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "RISCV64",
        "S390", "S390X", "PARISC", "PARISC64", "LOONGARCH64",
    )
}  # fmt: skip


def words_for(found: dict[str, Any], machine: Machine) -> set[str]:
    """Return the machines that a profile names for use on this one.

    >>> from minidocker.seccomp import MACHINES
    >>> here = MACHINES["x86_64"]
    >>> sub = {"architecture": here.word, "subArchitectures": ["SCMP_ARCH_X86"]}
    >>> words_for({"archMap": [sub]}, here)
    {'SCMP_ARCH_X86'}
    """
    words = set(found.get("architectures") or ())
    for entry in found.get("archMap") or ():
        if entry.get("architecture") == machine.word:
            words.update(entry.get("subArchitectures") or ())
    return words


def machines_of(text: str, machine: Machine) -> tuple[Machine, ...]:
    """Return the machines that a profile's JSON speaks for, this one first.

    Raises RuntimeFault for one that nobody knows.
    """
    try:
        words = words_for(parse_json(text), machine)
        if unknown := sorted(words - WORDS):
            raise wrong(f'unknown architecture "{unknown[0]}"')
    except (ValueError, AttributeError, TypeError) as why:
        raise wrong(str(why)) from why
    return (machine, *(one for one in machine.others if one.word in words))
