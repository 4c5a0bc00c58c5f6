"""A small tree for the model of a union, a stack of branches, and what is refused."""

import errno
from collections.abc import Callable

from minidocker.union import BranchKind, MemoryBranch, Node, file, link_to, symlink_to


BASE: dict[str, Node] = {
    "etc/hosts": file("localhost"),
    "etc/motd": file("welcome", 0o600),
    "usr/bin/ls": file("ELF", 0o755),
    "usr/bin/dir": link_to("usr/bin/ls"),
    "bin": symlink_to("usr/bin"),
}


def stack(
    *lowers: dict[str, Node], kind: BranchKind = BranchKind.WHITEOUT_ABLE
) -> list[MemoryBranch]:
    """An empty branch over lower ones, top-first."""
    top = MemoryBranch("top", BranchKind.READ_WRITE)
    return [top, *(MemoryBranch("low", kind, tree) for tree in lowers)]


def refusal(work: Callable[[], object]) -> str:
    """The name of the error that some work ends with."""
    try:
        work()
    except OSError as why:
        return errno.errorcode[why.errno or 0]
    return "nothing"
