# From book/06-elf.md. Edit there and tangle, or here and tangle --back.

# %% ELF: what a program needs to start
"""Read ELF files: the loader, the libraries, and the closure of both."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator

from minidocker.errors import NotFoundError
from minidocker.records import Record


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
