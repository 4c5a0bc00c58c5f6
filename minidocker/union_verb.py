# From book/674-union-verb.md. Edit there and tangle, or here and tangle --back.

# %% Union verb: a union for your own directories
"""``union``: mount directories as one, served by the model."""

from __future__ import annotations

from minidocker.errors import UsageError
from minidocker.flags import TEXT, Command, Flag, Given


# %% The command
MARKS = "aufs", "overlayfs"


def union(given: Given) -> int:
    """``union MOUNTPOINT BRANCH [BRANCH...]``"""
    from minidocker.encodings import Notation
    from minidocker.union_mount import serve, union_of

    marks = given.text("marks")
    if marks not in MARKS:
        what = f'"{marks}" is no way to write marks'
        raise UsageError(what, hint=f"--marks is {' or '.join(MARKS)}")
    target, *words = given.args
    made = union_of(words, Notation(marks))
    serve(made, target, background=given.on("detach"))
    return 0


COMMANDS = (
    Command(
        "union", "[OPTIONS] MOUNTPOINT BRANCH [BRANCH...]",
        "Mount a union of directories: rw=DIR, wo=DIR or ro=DIR, top-first", union,
        (
            Flag("detach", "Serve in the background", "d"),
            Flag("marks", "How marks are written: aufs or overlayfs", takes=TEXT,
                 default="aufs"),
        ),
        least=2,
        example="minidocker union /mnt rw=/tmp/mine wo=/layers/b ro=/layers/a",
    ),
)  # fmt: skip
