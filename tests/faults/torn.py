"""Every kind of file that a store has, torn: emptied, or cut in its middle.

A power cut can empty what was not synced, a bad disk can cut anything. Whatever a command
makes of it, it says so in a line that a person understands, or it works.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from faults.scenes import CHECK, Stage


HEALTH = ("--health-cmd", "true", "--health-interval", "100ms")
LOGS = ("--log-opt", "max-size=1k", "--log-opt", "max-file=2")
EVERYTHING: tuple[tuple[str, ...], ...] = (
    ("tag", "base", "registry.test:5000/team/base:1"),
    ("volume", "create", "--label", "a=b", "labelled"),
    ("create", "--name", "made", "--network", "net", "--network-alias", "x", "-v", "labelled:/v", "base", "true"),
    ("run", "--name", "ended", *HEALTH, *LOGS, "--network", "none", "base", "sh", "-c", "echo hello; usleep 300000"),
    ("create", "--rm", "--name", "goes", "base", "true"),
    ("update", "--cpu-shares", "10", "made"),
    ("rename", "made", "named"),
    ("images",),
)  # fmt: skip
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("ps", "-as"),
    ("images", "-a"),
    ("network", "ls"),
    ("network", "inspect", "net"),
    ("volume", "ls"),
    ("inspect", "named"),
    ("inspect", "ended"),
    ("logs", "ended"),
    ("start", "-a", "named"),
    ("run", "--rm", "--network", "none", "base", "true"),
    ("run", "--name", "another", "-v", "labelled:/v", "base", "true"),
    ("build", "-t", "again", "{context}"),
    ("commit", "ended", "kept"),
    ("events", "--since", "1", "--until", "2"),
    ("info",),
    ("system", "df", "-v"),
    ("history", "top"),
    CHECK,
    (*CHECK, "--repair"),
    ("system", "prune", "-f"),
    ("rm", "-f", "named", "ended", "goes"),
    CHECK,
)
PRECIOUS = ("volumes/vol/_data/file", "volumes/labelled/_data")


def kind_of(path: str) -> str:
    """Return a path with the ids in it as stars."""
    return re.sub(r"[0-9a-f]{12,64}", "*", path)


def records(store: Path) -> dict[str, str]:
    """Return one file of each kind that is a record, by kind: not what users have in files."""
    found: dict[str, str] = {}
    for head, names, files in os.walk(store):
        names[:] = [
            n
            for n in sorted(names)
            if n not in ("diff", "_data", "work", "merged", "dir")
        ]
        for name in sorted(files):
            path = os.path.relpath(f"{head}/{name}", store)
            if os.lstat(f"{head}/{name}").st_size and not os.path.islink(
                f"{head}/{name}"
            ):
                found.setdefault(kind_of(path), path)
    return found


def tear(path: Path, *, half: bool) -> None:
    """Cut a file in its middle, or empty it."""
    os.truncate(path, path.stat().st_size // 2 if half else 0)


def unclear(status: int, said: str) -> str:
    """Say what is wrong with how a command ended; "" when a person understands it."""
    if "Traceback" in said or "Errno" in said:
        return "a traceback"
    if status not in (0, 1, 125, 126, 127):
        return f"the status {status}"
    if status and not said.strip():
        return "no word"
    return ""


def wrongs(stage: Stage, path: str, *, half: bool) -> Iterator[str]:
    """Tear a file of the store, give every command; yield what nobody would understand."""
    stage.begin()
    tear(stage.store / path, half=half)
    head = f"{'half' if half else 'empty'} {path}"
    for words, (status, said) in zip(COMMANDS, stage.do(*COMMANDS), strict=True):
        if why := unclear(status, said):
            yield f"{head}: {' '.join(words)}: {why}: {said}"
    for place in PRECIOUS:
        if not (stage.store / place).exists():
            yield f"{head}: {place} is lost"
