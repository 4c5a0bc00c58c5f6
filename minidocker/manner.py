# From book/308-manner.md. Edit there and tangle, or here and tangle --back.

# %% Manner: with which owner, mode and time
"""Decide and give what files arrive with: owner, mode, time."""

from __future__ import annotations

import errno
import os
import re

from minidocker.errors import BuildError, DockerfileError
from minidocker.records import Record


# %% The nouns
class Manner(Record):
    """How files arrive: with which owner and mode, and what ADD unpacks.

    ``owner`` is (uid, gid), or None to keep each file's own. ``mode`` is a mode for
    all files and directories, as a number or in chmod(1)'s words, or None to keep.
    ``ignore_owner`` gives an archive's files to us, where there are no other users.
    ``link`` says that nothing in the image may decide where a file goes.
    """

    owner: tuple[int, int] | None = (0, 0)
    mode: int | str | None = None
    unpacks: bool = False
    ignore_owner: bool = False
    link: bool = False

    def new_mode(self, mode: int, *, is_directory: bool = False) -> int:
        """Return the mode that a file of ``mode`` arrives with."""
        if self.mode is None:
            return mode
        if isinstance(self.mode, int):
            return self.mode
        return symbolic_mode(self.mode, mode, is_directory=is_directory)


# %% The words of chmod
CLAUSE = r"([ugoa]*)([-+=])([rwxXst]*)"
WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}


def symbolic_mode(text: str, mode: int, *, is_directory: bool = False) -> int:
    """Apply the words of chmod(1) to a mode. Raises DockerfileError.

    >>> oct(symbolic_mode("u=rwX,go=rX", 0o600)), oct(symbolic_mode("+x", 0o644))
    ('0o644', '0o755')
    """
    for clause in text.split(","):
        found = re.fullmatch(CLAUSE, clause)
        if not found:
            raise DockerfileError(
                f'bad mode "{text}"', hint="such as 0755 or u=rwX,go=rX"
            )
        who, how, what = found.groups()
        reach = sum(WHO[one] for one in set(who.replace("a", "ugo") or "ugo"))
        execute = is_directory or mode & 0o111
        letters = what.replace("X", "x" if execute else "")
        bits = sum(BITS[one] for one in set(letters)) & reach
        if how == "=":
            mode = (mode & ~reach) | bits
        else:
            mode = mode | bits if how == "+" else mode & ~bits
    return mode


# %% Giving
def finish(
    fd: int, manner: Manner, mode: int, owner: tuple[int, int], when: int
) -> None:
    """Give an open file or directory its owner, mode and time, in this order.

    chown(2) clears the set-user-ID bit, so the mode comes after it.
    """
    set_owner(fd, manner.owner or owner)
    os.fchmod(fd, mode)
    os.utime(fd, ns=(when, when))


# %% Giving
def set_owner(fd: int, owner: tuple[int, int], name: str | None = None) -> None:
    """Set the owner of an open file, or of the link ``name`` in the directory."""
    try:
        if name is None:
            os.fchown(fd, *owner)
        else:
            os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
    except OSError as why:
        if why.errno not in {errno.EINVAL, errno.EPERM}:
            raise
        raise BuildError(
            f"this user cannot own files as {owner[0]}:{owner[1]}",
            hint="without root there are 0:0, and what /etc/subuid sets aside",
        ) from why


# %% Giving
def dress(fd: int, manner: Manner, mode: int, info: os.stat_result) -> os.stat_result:
    """Give a new file its time, and the owner and mode that it was not born with.

    ``info`` is the source's. Returns what the file is now.
    """
    when, owner = info.st_mtime_ns, (info.st_uid, info.st_gid)
    os.utime(fd, ns=(when, when))
    now = os.fstat(fd)
    given = now.st_mode & 0o7777, (now.st_uid, now.st_gid)
    if given == (mode, manner.owner or owner):
        return now
    finish(fd, manner, mode, owner, when)
    return os.fstat(fd)
