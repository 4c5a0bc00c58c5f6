# From book/418-last-call.md. Edit there and tangle, or here and tangle --back.

# %% The last call: execve, and what it may find
"""Become the program: find it, look at it, execute it, or say why not."""

from __future__ import annotations

import errno
import os

from minidocker.destinations import open_in_root
from minidocker.errors import (
    CommandNotFoundError,
    NotExecutableError,
    RuntimeFault,
)
from minidocker.program import DEFAULT_PATH
from minidocker.springboard import MACHINES, sealed, springboard


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


# %% To find it, and not to be found
def candidates(program: str, path: str) -> list[str]:
    """Return the paths that a program's name may mean.

    >>> candidates("sh", "/bin:/usr/bin"), candidates("./run", "/bin")
    (['/bin/sh', '/usr/bin/sh'], ['./run'])
    """
    if "/" in program:
        return [program]
    return [f"{place or '.'}/{program}" for place in path.split(":")]


def execute(
    root: int,
    argv: tuple[str, ...],
    env: dict[str, str],
    init: int = -1,
    *,
    alone: bool = True,
) -> NoReturn:
    """Replace this process by the program, or raise what Docker would say.

    With ``init``, the descriptor of one, that is executed, and executes the program.
    ``alone``: no other process is in the container that could change the program
    between our look and the kernel's.
    """
    program = argv[0]
    for path in candidates(program, env.get("PATH", DEFAULT_PATH)):
        try:
            inside = os.path.join(os.getcwd(), path)
            head = first_bytes(root, inside)
            if init >= 0:
                if not os.access(path, os.X_OK) or os.path.isdir(path):
                    raise PermissionError(errno.EACCES, "not executable")
                os.execve(init, ("init", path, *argv), env)  # noqa: S606
            if head[:2] == b"#!":
                check_interpreter(root, head)
            if head[:2] == b"#!" or (not alone and head[:4] in (b"\x7fELF", b"")):
                jump(path, argv, env)
            os.execve(path, argv, env)  # noqa: S606
        except OSError as why:
            missing = why.errno in (errno.ENOENT, errno.ENOTDIR)
            if "/" in program or not (missing or why.errno == errno.EACCES):
                raise refusal(program, inside, why.errno or 0, missing) from why
    raise CommandNotFoundError(f'exec: "{program}": executable file not found in $PATH')


def first_bytes(root: int, path: str) -> bytes:
    """Return how a program begins; nothing for what is no file, or not for reading.

    Raises OSError where there is nothing, or where the way leads out of the container.
    """
    os.close(open_in_root(root, path))
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = open_in_root(root, path, flags)
    except OSError:
        return b""
    with open(handle, "rb", buffering=0) as file:
        try:
            return file.read(256)
        except OSError:  # a directory
            return b""


def check_interpreter(root: int, head: bytes) -> None:
    """Raise OSError where a script's interpreter is not there, or not inside."""
    words = head[2:].partition(b"\n")[0].split(None, 1)
    path = os.path.join(os.getcwd(), os.fsdecode(words[0]) if words else "")
    os.close(open_in_root(root, path))


def jump(path: str, argv: tuple[str, ...], env: dict[str, str]) -> None:
    """Execute the program from the springboard: what it finds out about us is that.

    Raises PermissionError for what is not executable; it returns on other machines.
    """
    if not os.access(path, os.X_OK) or os.path.isdir(path):
        raise PermissionError(errno.EACCES, "not executable")
    machine = os.uname().machine
    if machine in MACHINES:
        board = sealed("springboard", springboard(machine))
        os.execve(board, (path, *argv), env)  # noqa: S606


def refusal(program: str, path: str, number: int, missing: bool) -> RuntimeFault:
    """Phrase why a program that was named by a path cannot be executed."""
    there = os.path.exists(path)
    if number == errno.EACCES and os.path.isdir(path):
        number = errno.EISDIR
    said = os.strerror(number).lower()
    text = f'exec: "{program}": {said if there else f"stat {program}: {said}"}'
    if number == errno.EXDEV:
        hint = "it is a link of /proc that leads out of the container"
        return NotExecutableError(f'exec: "{program}": permission denied', hint=hint)
    if not missing:
        return NotExecutableError(text)
    hint = "the file is there; the interpreter that it names is not in the image"
    return CommandNotFoundError(text, hint=hint if there else None)
