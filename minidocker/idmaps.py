# From book/404-idmaps.md. Edit there and tangle, or here and tangle --back.

# %% Id maps: who is root in here
"""Maps of ids: write them, with newuidmap where we may not; ranges of subuid."""

from __future__ import annotations

import os
from collections.abc import Iterable

from minidocker.errors import UnsupportedError
from minidocker.linux import CloneFlags, unshare
from minidocker.namespaces import put


# %% The text of a map
IdRange = tuple[int, int, int]  # first id inside, first id outside, how many


def map_text(ranges: Iterable[IdRange]) -> str:
    """Return ranges as /proc/PID/uid_map takes them.

    >>> map_text([(0, 1000, 1), (1, 100000, 65536)])
    '0 1000 1\\n1 100000 65536\\n'
    """
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges)


# %% What the administrator set aside
SUBUID, SUBGID = "/etc/subuid", "/etc/subgid"


def set_aside(text: str, names: Iterable[str]) -> list[tuple[int, int]]:
    """Return (first, count) of the lines of /etc/subuid that are for ``names``.

    >>> set_aside("ann:100000:65536\\nbob:165536:65536\\n1000:7:1\\n", ["ann", "1000"])
    [(100000, 65536), (7, 1)]
    """
    found = []
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdecimal() and count.isdecimal() and int(count):
            found.append((int(first), int(count)))
    return found


# %% What the administrator set aside
def own_ranges(path: str, id: int, names: Iterable[str]) -> tuple[IdRange, ...]:
    """Return a map for a user: 0 is ``id``, and from 1 on what is set aside.

    ``names`` are the user's name and number, in both files. Only the first range is
    there where ``path`` has no line for them.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        text = ""
    ranges, inside = [(0, id, 1)], 1
    for first, count in set_aside(text, names):
        ranges.append((inside, first, count))
        inside += count
    return tuple(ranges)


def name_of(uid: int) -> str:
    """Return a user's name, or nothing."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


# %% Writing a map
def find_program(name: str, path: str | None = None) -> str:
    """Return where a program is, of the directories in ``path`` or $PATH; or ""."""
    places = os.environ.get("PATH", os.defpath) if path is None else path
    for place in places.split(":"):
        if os.access(f"{place}/{name}", os.X_OK):
            return f"{place}/{name}"
    return ""


def write_map(pid: int, kind: str, ranges: Iterable[IdRange]) -> None:
    """Write a map of a process; ``kind`` is uid or gid.

    With the right to do so we write it ourselves, otherwise by newuidmap or newgidmap.
    Raises UnsupportedError where neither can.
    """
    ranges = tuple(ranges)
    try:
        put(f"/proc/{pid}/{kind}_map", map_text(ranges))
    except PermissionError as why:
        helper = find_program(f"new{kind}map")
        words = [str(number) for one in ranges for number in one]
        line = [helper, str(pid), *words]
        if not helper or os.spawnv(os.P_WAIT, helper, line):  # noqa: S606
            what = f"cannot write the {kind} map {words}: {why.strerror}"
            hint = f"install newuidmap, and set ids aside in /etc/sub{kind}"
            raise UnsupportedError(what, hint=hint) from why


# %% Writing a map
def user_namespace(uids: Iterable[IdRange], gids: Iterable[IdRange]) -> int:
    """Return a descriptor of a new user namespace with these maps; nobody is in it.

    The caller closes it. Raises UnsupportedError where there can be none.
    """
    ready, begin = os.pipe()
    ended, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os.close(end)
        try:
            unshare(CloneFlags.NEWUSER)
            os.write(begin, b"1")
            os.read(ended, 1)
        finally:
            os._exit(0)
    os.close(begin)
    os.close(ended)
    try:
        if not os.read(ready, 1):
            raise UnsupportedError("this user may not make a user namespace")
        write_map(pid, "uid", uids)
        write_map(pid, "gid", gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(end)
        os.waitpid(pid, 0)
