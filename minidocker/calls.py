# From book/102-calls.md. Edit there and tangle, or here and tangle --back.

# %% Calls: how Python asks the kernel
"""System calls by the core of ctypes, errors that read like strace, flags by name."""

from __future__ import annotations

import errno
import os
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    dlopen,
    dlsym,
    get_errno,
)

from minidocker.records import IntEnum, IntFlag


TYPE_CHECKING = False
if not TYPE_CHECKING:
    import _signal as signal
else:
    import ctypes
    import signal as signal  # noqa: PLC0414  handed on
    from _ctypes import Array
    from typing import Any

    Byte = ctypes.c_char
    Int = ctypes.c_int
    Long = ctypes.c_long
    Word = ctypes.c_ulong


# %% A failure reads like strace
class SysError(OSError):
    """A system call failed; ``errno`` as usual, and the text is strace's line."""

    def __init__(self, code: int, call: str, *words: object) -> None:
        super().__init__(code, os.strerror(code))
        self.call, self.words = call, words

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, str(self.errno))
        words = ", ".join(map(shown, self.words))
        return f"{self.call}({words}) = -1 {name} ({self.strerror})"


class Raw(str):
    """An argument, such as a structure, that is text already."""

    __slots__ = ()


def shown(value: object) -> str:
    """Return an argument of a system call as strace prints it.

    >>> shown(b"/proc"), shown(None), shown(3)
    ('"/proc"', 'NULL', '3')
    """
    if value is None:
        return "NULL"
    if isinstance(value, Flags | Constants):
        return value.strace()
    if isinstance(value, Raw):
        return value
    if callable(value):
        return str(value())
    if isinstance(value, bytes | str):
        return '"' + os.fsdecode(value).replace('"', '\\"') + '"'
    return str(value)


# %% Flags that print by name
class Flags(IntFlag):
    """Flags of one family; ``prefix`` is what their names begin with in C."""

    prefix: str

    def __init_subclass__(cls, prefix: str = "") -> None:
        super().__init_subclass__()
        cls.prefix = prefix

    def strace(self) -> str:
        """Return the flags as strace prints them: ``MS_RDONLY|MS_NOSUID``."""
        names = [f"{self.prefix}{member.name}" for member in self]
        rest = int(self) & ~sum(member.value for member in type(self))
        return "|".join(names + [hex(rest)] * bool(rest)) or "0"


class Constants(IntEnum):
    """Named numbers of one family, of which one is given."""

    prefix: str

    def __init_subclass__(cls, prefix: str = "") -> None:
        super().__init_subclass__()
        cls.prefix = prefix

    def strace(self) -> str:
        """Return the constant as strace prints it: ``PR_SET_NAME``."""
        return self.prefix + self.name


# %% Numbers, bytes and functions
if not TYPE_CHECKING:

    class Int(_SimpleCData):
        """What most functions of the C library return."""

        _type_ = "i"

    class Long(_SimpleCData):
        """What syscall(2) returns."""

        _type_ = "l"

    class Word(_SimpleCData):
        """A machine word, which is what every argument of a system call is."""

        _type_ = "L"

    class Byte(_SimpleCData):
        """What structures are made of."""

        _type_ = "c"


# %% Numbers, bytes and functions
def room(contents: int | bytes) -> Array[Byte]:
    """Return memory with an address: that many bytes of zero, or a copy of some.

    >>> room(b"ab").raw, room(2).raw
    (b'ab', b'\x00\x00')
    """
    raw = bytes(contents)
    return (Byte * len(raw)).from_buffer_copy(raw)


# %% Numbers, bytes and functions
class Function(CFuncPtr):
    """A function in C, during which other threads of Python run."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = Int


class Locked(CFuncPtr):
    """A function in C, during which no other thread of Python runs."""

    _flags_ = Function._flags_ | FUNCFLAG_PYTHONAPI
    _restype_ = Int


class Library:
    """The functions that this process has loaded; each is found when it is used."""

    def __init__(self, kind: type[CFuncPtr]) -> None:
        self.kind, self.handle = kind, dlopen(None, 0)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        found = self.kind(dlsym(self.handle, name))
        if name == "syscall":
            found.restype = Long
        setattr(self, name, found)
        return found


LIBC, PYTHON = Library(Function), Library(Locked)


# %% Numbers, bytes and functions
def check(call: str, result: int, *args: object) -> int:
    """Return ``result``; raise SysError from ctypes' errno where it is negative."""
    if result < 0:
        raise SysError(get_errno(), call, *args)
    return result


# %% The door: syscall(2)
OLD_NUMBERS = {
    "x86_64": {
        "pivot_root": 155,
        "capget": 125,
        "capset": 126,
        "statx": 332,
        "bpf": 321,
    },
    "aarch64": {
        "pivot_root": 41,
        "capget": 90,
        "capset": 91,
        "statx": 291,
        "bpf": 280,
        "ioprio_set": 30,
        "keyctl": 219,
    },
}
NUMBERS = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}


# %% The door: syscall(2)
def number(call: str) -> int:
    """Return the number of a system call on this machine; ENOSYS if it is not known."""
    found = NUMBERS.get(call) or OLD_NUMBERS.get(os.uname().machine, {}).get(call)
    if found is None:
        raise SysError(errno.ENOSYS, call)
    return found


def word(value: object) -> object:
    """Return an argument for syscall(2): integers as machine words, text as bytes."""
    if isinstance(value, int):
        return Word(value)
    return os.fsencode(value) if isinstance(value, str) else value


def syscall(call: str, *args: object, show: tuple[object, ...] | None = None) -> int:
    """Make a system call by name; an error prints ``show`` instead of ``args``."""
    result = LIBC.syscall(number(call), *map(word, args))
    return check(call, result, *(args if show is None else show))
