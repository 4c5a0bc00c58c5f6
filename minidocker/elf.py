# From book/120-elf.md. Edit there and tangle, or here and tangle --back.

# %% ELF: what a program needs to start
"""Read ELF files: the loader, the libraries, the closure of both; write a small one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator

from minidocker.errors import NotFoundError
from minidocker.records import Record
from minidocker.springboard import MACHINES, elf_file, machine_code, sealed


TYPE_CHECKING = False
if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile


# %% The nouns
class Elf(Record):
    """What a program or library asks for: its loader, libraries, and where to look.

    ``interpreter`` is None for a library and for a static program.
    """

    interpreter: str | None
    needed: tuple[str, ...] = ()
    runpaths: tuple[str, ...] = ()
    machine: str = ""


def read_elf(path: str) -> Elf | None:
    """Return what an ELF file asks for, or None when it is no ELF file."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return None
        try:
            return asked_for(ELFFile(file))
        except ELFError:
            return None


# %% The nouns
TEXT_OF = {"DT_NEEDED": "needed", "DT_RUNPATH": "runpath", "DT_RPATH": "rpath"}


def asked_for(elf: ELFFile) -> Elf:
    """Return what an open ELF file asks for, from its segments."""
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.segments import InterpSegment

    interpreter = None
    needed: list[str] = []
    runpaths: list[str] = []
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name()
        elif isinstance(segment, DynamicSegment):
            for tag in segment.iter_tags():
                text = getattr(tag, TEXT_OF.get(tag.entry.d_tag, ""), "")
                if tag.entry.d_tag == "DT_NEEDED":
                    needed.append(text)
                elif text:
                    runpaths += text.split(":")
    machine = elf["e_machine"]
    return Elf(interpreter, tuple(needed), tuple(filter(None, runpaths)), machine)


def is_static(path: str) -> bool:
    """Whether a file is a program that needs no other file to start."""
    found = read_elf(path)
    return found is not None and not found.interpreter and not found.needed


# %% Where the loader looks
STANDARD = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")


def configured(path: str, root: str = "") -> Iterator[str]:
    """Yield the directories that an ``ld.so.conf`` names, includes followed."""
    try:
        with open(root + path, encoding="utf-8", errors="replace") as file:
            lines = [line.partition("#")[0].split() for line in file]
    except OSError:
        return
    for words in filter(None, lines):
        if words[0] != "include":
            yield words[0]
            continue
        pattern = os.path.join(os.path.dirname(path), words[1])
        for one in sorted(glob.glob(root + pattern)):
            yield from configured(one.removeprefix(root), root)


def search_path(elf: Elf, path: str, root: str = "") -> list[str]:
    """Return the directories in which the libraries of the file ``path`` are sought."""
    origin = os.path.dirname(path)
    own = [
        p.replace("${ORIGIN}", origin).replace("$ORIGIN", origin) for p in elf.runpaths
    ]
    return [*own, *configured("/etc/ld.so.conf", root), *STANDARD]


def find_library(name: str, elf: Elf, path: str, root: str = "") -> str:
    """Return the path of a library that the file ``path`` needs.

    Raises NotFoundError when no directory has one for the same machine.
    """
    for directory in search_path(elf, path, root):
        candidate = os.path.normpath(f"{directory}/{name}")
        if os.path.isfile(root + candidate):
            found = read_elf(root + candidate)
            if found and found.machine == elf.machine:
                return candidate
    raise NotFoundError(f'no library "{name}"', where=path)


# %% The closure
def closure(programs: Iterable[str], root: str = "") -> list[str]:
    """Return every file that programs need to start, themselves included, sorted.

    Paths are absolute below ``root``. Libraries of the loader's own name are left as
    they are named: a link stays the link's path.
    """
    found: set[str] = set()
    todo = list(programs)
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        elf = read_elf(root + path)
        if elf is None:
            continue
        todo += [elf.interpreter] if elf.interpreter else []
        todo += [find_library(name, elf, path, root) for name in elf.needed]
    return sorted(found)


# %% The other way: a program written by hand
INIT_X86_64 = """
; rbx = argc; r12 = argv + 1; r13 = envp
488b1c24 4c8d642410 4c8d6cdc10
; two words on the stack: a status, and a mask of all signals
6a00 6aff
; sigprocmask(SIG_SETMASK, mask, NULL, 8): all wait
6a02 5f 4889e6 31d2 6a08 415a 6a0e 58 0f05
; fork()
6a39 58 0f05
; the child goes on at the line "setpgid"
85c0 7463
; r14 = its number
4189c6
; wait: sigtimedwait(mask, NULL, NULL, 8)
4889e7 31f6 31d2 6a08 415a b880000000 0f05
; SIGCHLD: to "reap"
83f811 7410
; an error: to "wait"
85c0 7ee5
; kill(r14, the signal)
4489f7 89c6 6a3e 58 0f05
; to "wait"
ebd9
; reap: wait4(-1, &status, WNOHANG, NULL)
6aff 5f 488d742408 6a01 5a 4531d2 6a3d 58 0f05
; nobody: to "wait"
85c0 7ec2
; somebody else: to "reap"
4439f0 75e4
; eax = status & 127; 0: to "exited"
8b7c2408 89f8 83e07f 7408
; 128 + the signal's number; to "exit"
8db880000000 eb03
; exited: edi = status >> 8
c1ef08
; exit: exit_group(edi)
b8e7000000 0f05
; setpgid(0, 0)
31ff 31f6 6a6d 58 0f05
; getpid()
6a27 58 0f05
; keep it where the status was
89442408
; ioctl(0, TIOCSPGRP, &it): the terminal is ours
31ff be10540000 488d542408 6a10 58 0f05
; the mask is empty now
4883242400
; sigprocmask(SIG_SETMASK, mask, NULL, 8)
6a02 5f 4889e6 31d2 6a08 415a 6a0e 58 0f05
; execve(argv[1], argv + 2, envp)
498b3c24 498d742408 4c89ea 6a3b 58 0f05
; back here: 127 for ENOENT, else 126; to "exit"
83f8fe 6a7f 5f 74a7 ffcf eba3
"""


# %% The other way: a program written by hand
INIT_AARCH64 = """
; x19 = argc; x20 = argv + 1; x21 = envp
f94003f3 910043f4 8b130e95
; on the stack: a mask of all signals, and a status
92800000 a9bf7fe0
; sigprocmask(SIG_SETMASK, mask, NULL, 8): all wait
d2800040 910003e1 d2800002 d2800103 d28010e8 d4000001
; clone(SIGCHLD, 0, 0, 0, 0)
d2800220 d2800001 d2800002 d2800003 d2800004 d2801b88 d4000001
; the child goes on at "setpgid"; x22 = its number
b4000460 aa0003f6
; wait: sigtimedwait(mask, NULL, NULL, 8)
910003e0 d2800001 d2800002 d2800103 d2801128 d4000001
; SIGCHLD: to "reap"
f100441f 54000100
; an error: to "wait"
f100001f 54fffeed
; kill(x22, the signal); to "wait"
aa0003e1 aa1603e0 d2801028 d4000001 17fffff2
; reap: wait4(-1, &status, WNOHANG, NULL)
92800000 910023e1 d2800022 d2800003 d2802088 d4000001
; nobody: to "wait"
f100001f 54fffd4d
; somebody else: to "reap"
eb16001f 54fffee1
; w1 = status & 127; 0: to "exited"
b9400be0 72001801 54000060
; 128 + the signal's number; to "exit"
11020020 14000002
; exited: w0 = status >> 8
53087c00
; exit: exit_group(w0)
d2800bc8 d4000001
; setpgid(0, 0)
d2800000 d2800001 d2801348 d4000001
; getpid()
d2801588 d4000001
; keep it where the status was
b9000be0
; ioctl(0, TIOCSPGRP, &it): the terminal is ours
d2800000 d28a8201 910023e2 d28003a8 d4000001
; the mask is empty now
f90003ff
; sigprocmask(SIG_SETMASK, mask, NULL, 8)
d2800040 910003e1 d2800002 d2800103 d28010e8 d4000001
; execve(argv[1], argv + 2, envp)
f9400280 91002281 aa1503e2 d2801ba8 d4000001
; back here: 127 for ENOENT, else 126; to "exit"
b100081f 52800fe0 54fffc80 52800fc0 17ffffe2
"""


# %% The other way: a program written by hand
def init_program(machine: str) -> bytes:
    """Return the first process of a container, for ``x86_64`` or ``aarch64``."""
    arm = machine == "aarch64"
    listing = INIT_AARCH64 if arm else INIT_X86_64
    return elf_file(machine, machine_code(listing, words=arm))


# %% The other way: a program written by hand
def init_file() -> int:
    """Return a descriptor of this machine's init: in memory, and sealed for ever.

    It has no name in any file system, and nobody can write to it, not by
    /proc/1/exe either. The caller closes it. Raises NotFoundError on other machines.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise NotFoundError(f"no init for {machine}", hint="leave out --init")
    return sealed("init", init_program(machine))
