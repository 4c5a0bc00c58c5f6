"""A power cut at every call: what of a store a journaling file system would still have.

The model, which is ext4's and xfs's with their defaults, and worse in nothing:

* names, directories, modes, times and attributes are in one journal, so after a cut
  there is a *prefix* of what was done to them, in order;
* a file's contents are on the disk only once somebody asked for it: fsync(2) of the
  file, or syncfs(2). A file that was never synced is there, and empty; one that was
  written again has what it had when it was last synced;
* a sync of whatever kind writes the journal out, so the prefix is at least as long.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faults.scenes import Scene, Stage
from faults.tracer import Call, traced
from minidocker.trees import remove_path


@dataclass
class Node:
    """What a name stands for: the facts of its inode, contents apart."""

    ino: int
    mode: int
    owner: tuple[int, int]
    times: tuple[int, int]
    target: str = ""
    device: int = 0
    attributes: dict[str, bytes] = field(default_factory=dict)


Tree = dict[str, Node]


def node_of(path: str) -> Node:
    """Return the facts of a file."""
    st = os.lstat(path)
    node = Node(
        st.st_ino, st.st_mode, (st.st_uid, st.st_gid), (st.st_atime_ns, st.st_mtime_ns)
    )
    if stat.S_ISLNK(st.st_mode):
        node.target = os.readlink(path)
    elif stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
        for name in os.listxattr(path, follow_symlinks=False):
            node.attributes[name] = os.getxattr(path, name, follow_symlinks=False)
    node.device = st.st_rdev
    return node


def snapshot(top: str) -> tuple[Tree, dict[int, bytes]]:
    """Return all names below a directory, and the contents of the files by inode."""
    tree: Tree = {"": node_of(top)}
    contents: dict[int, bytes] = {}
    for head, names, files in os.walk(top):
        for name in names + files:
            path = f"{head}/{name}"
            try:
                node = node_of(path)
                if stat.S_ISREG(node.mode) and node.ino not in contents:
                    contents[node.ino] = Path(path).read_bytes()
            except FileNotFoundError:  # another process is not stopped
                continue
            tree[path[len(top) :]] = node
    return tree, contents


@dataclass
class Moment:
    """What a power cut just before a call leaves."""

    call: str
    tree: Tree
    durable: dict[int, bytes]
    synced: bool = False  # whether the call before was a sync


class Recorder:
    """Watches a command; ``moments`` has one for each of its calls, and the end."""

    def __init__(self, store: Path) -> None:
        self.store = str(store)
        _, self.durable = snapshot(self.store)
        self.moments: list[Moment] = []
        self.pending: dict[int, bytes] = {}
        self.synced = False

    def __call__(self, number: int, call: Call) -> int:
        self.note(str(call))
        self.synced = call.name in ("fsync", "fdatasync", "syncfs", "sync")
        if self.synced:
            self.pending = self.asked_for(call)
        return 0

    def note(self, call: str) -> None:
        """Keep what is there now, with what was synced before."""
        self.durable = self.durable | self.pending
        self.pending = {}
        tree, self.contents = snapshot(self.store)
        self.moments.append(Moment(call, tree, self.durable, self.synced))

    def asked_for(self, call: Call) -> dict[int, bytes]:
        """Return the contents that a sync will put on the disk."""
        if call.name in ("sync", "syncfs"):
            return dict(self.contents)
        try:
            ino = os.stat(f"/proc/{call.pid}/fd/{call.args[0]}").st_ino
        except OSError:
            return {}
        return {ino: self.contents[ino]} if ino in self.contents else {}


def materialise(moment: Moment, store: Path) -> None:
    """Make a store as the cut left it."""
    if store.exists():
        remove_path(str(store))
    first: dict[int, str] = {}
    for name, node in moment.tree.items():  # a directory comes before what is in it
        path = f"{store}{name}"
        if node.ino in first and not stat.S_ISDIR(node.mode):
            os.link(first[node.ino], path, follow_symlinks=False)
            continue
        first[node.ino] = path
        make(path, node, moment.durable.get(node.ino, b""))
    for name, node in reversed(moment.tree.items()):
        os.utime(f"{store}{name}", ns=node.times, follow_symlinks=False)


def make(path: str, node: Node, contents: bytes) -> None:
    """Make one file."""
    if stat.S_ISDIR(node.mode):
        os.mkdir(path)
    elif stat.S_ISLNK(node.mode):
        os.symlink(node.target, path)
    elif stat.S_ISREG(node.mode):
        Path(path).write_bytes(contents)
    else:
        os.mknod(path, node.mode, node.device)
    os.chown(path, *node.owner, follow_symlinks=False)
    if not stat.S_ISLNK(node.mode):
        os.chmod(path, stat.S_IMODE(node.mode))
        for name, value in node.attributes.items():
            os.setxattr(path, name, value)


def recorded(stage: Stage, scene: Scene) -> list[Moment]:
    """Do a command of a scene, and return what a cut at each of its calls leaves."""
    stage.begin()
    recorder = Recorder(stage.store)
    outcome = traced(stage.command(scene.words), recorder, stage.said, seconds=60)
    if outcome.status:
        raise RuntimeError(outcome.said)
    recorder.note("the end")
    return recorder.moments


def wrongs(
    stage: Stage, scene: Scene, moments: list[Moment], chosen: set[int]
) -> Iterator[str]:
    """Cut the power at some moments; say what is wrong after each.

    What was reported as made must be there once the last sync has been done.
    """
    last = max((n for n, moment in enumerate(moments) if moment.synced), default=0)
    for number in sorted(chosen):
        moment = moments[number]
        materialise(moment, stage.store)
        status = 0 if number >= last and scene.makes else 1
        for wrong in stage.broken(scene, status, ""):
            yield f"{number} before {moment.call}: {wrong}"
