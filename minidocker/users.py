# From book/403-users.md. Edit there and tangle, or here and tangle --back.

# %% Users: who a word in an image means
"""Who a process is to be: a name or a number, looked up in the image's own files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from minidocker.errors import RuntimeFault
from minidocker.namespaces import open_in_root
from minidocker.records import Record


# %% Three rules
MOST_OF_A_FILE = 4 << 20  # bytes of passwd or group that anybody could need
HIGHEST_ID = (1 << 31) - 1


class User(Record):
    """Who a process runs as, and where that user lives."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def read_table(root: int, path: str, fields: int) -> list[list[str]]:
    """Return the lines of a passwd or group file, split; none when it is missing.

    Lines with another count of fields are kept, as evidence for the error.
    """
    try:
        handle = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise RuntimeFault("not a regular file", where=path)
    with open(handle, "rb") as file:  # as many bytes as it has: asked for are mapped
        text = os.fsdecode(file.read(min(status.st_size, MOST_OF_A_FILE)))
    lines = (line.strip() for line in text.split("\n"))
    return [line.split(":", fields) for line in lines if line and line[0] != "#"]


# %% Three rules
def identifier(text: str) -> int | None:
    """Return a user or group id, or None when the text is no number.

    >>> identifier("1001"), identifier("www-data")
    (1001, None)
    """
    if not (text.isascii() and text.lstrip("-").isdigit()):
        return None
    if not 0 <= int(text) <= HIGHEST_ID:
        raise RuntimeFault(f'id "{text}" is not between 0 and {HIGHEST_ID}')
    return int(text)


def number_in(row: list[str], column: int, count: int, where: str) -> int:
    """Return a number of a table's row; RuntimeFault when the row is odd."""
    number = identifier(row[column]) if len(row) == count else None
    if number is None:
        raise RuntimeFault(f'the line of "{row[0]}" is malformed', where=where)
    return number


def find_group(root: int, text: str) -> int:
    """Return the id of a group given by number or by name in the image."""
    number = identifier(text)
    if number is not None:
        return number
    for row in read_table(root, "/etc/group", 4):
        if row[0] == text:
            return number_in(row, 2, 4, "/etc/group")
    raise RuntimeFault(f'unable to find group "{text}" in the image\'s /etc/group')


def groups_of(root: int, name: str) -> tuple[int, ...]:
    """Return the groups that list ``name`` as a member."""
    rows = read_table(root, "/etc/group", 4)
    mine = (row for row in rows if len(row) == 4 and name in row[3].split(","))
    return tuple(number_in(row, 2, 4, "/etc/group") for row in mine)


# %% Three rules
def find_user(root: int, text: str) -> User:
    """Look a user up in the image below ``root``: ``user[:group]``, each id or name.

    A number need not be in the files; it then gets group 0 and home ``/``, as in
    Docker. With a group given there are no supplementary groups.
    """
    who, colon, group = text.partition(":")
    who = who or "0"
    number = identifier(who)
    wanted = who if number is None else str(number)
    column = 0 if number is None else 2
    user = User(number or 0, 0)
    for row in read_table(root, "/etc/passwd", 7):
        if len(row) > column and row[column] == wanted:
            uid, gid = (number_in(row, n, 7, "/etc/passwd") for n in (2, 3))
            groups = () if colon else groups_of(root, row[0])
            user = User(uid, gid, groups, row[5] or "/")
            break
    else:
        if number is None:
            what = f'unable to find user "{who}" in the image\'s /etc/passwd'
            raise RuntimeFault(what)
    return user.replace(gid=find_group(root, group)) if colon and group else user


def with_groups(root: int, user: User, texts: Iterable[str]) -> User:
    """Return a user who is in further groups, given by name or number."""
    more = (find_group(root, text) for text in texts)
    return user.replace(groups=tuple(dict.fromkeys((*user.groups, *more))))
