"""A union twice: the model in this process, the kernel's overlayfs in another one."""

import copyreg
import errno
import os
import pickle
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from minidocker.linux import CloneFlags, unshare
from minidocker.mounts import MountFlags, UmountFlags, mount, umount2
from minidocker.operations import Union
from minidocker.overlayfs import OPAQUE, Overlay, is_whiteout, mount_overlay
from minidocker.rootless import enter_user_namespace
from minidocker.union import (
    WHITEOUT,
    BranchKind,
    Kind,
    MemoryBranch,
    Node,
    description,
    directory,
    file,
    link_to,
    symlink_to,
)


Tree = dict[str, Node]
Step = tuple[object, ...]
RECENT = 10**9  # an mtime after this was not given by a test


# ------------------------------------------------------------------- the model


def outcome(error: OSError) -> str:
    return errno.errorcode[error.errno or 0]


def told(value: object) -> str:
    return "ok" if value is None else repr(value)


def answer_of(union: Union, name: str, *words: object) -> str:
    """What the model says to one operation."""
    try:
        return told(getattr(union, name)(*words))
    except OSError as why:
        return outcome(why)


def seen(union: Union) -> Tree:
    """The whole visible tree, by the union's own operations."""
    found: Tree = {}

    def walk(path: str) -> None:
        for name in union.readdir(path):
            below = f"{path}/{name}"
            node = union.lookup(below, follow=False)
            if node.kind is Kind.FILE:
                node = node.replace(data=union.read(below))
            found[below[1:]] = node.replace(opaque=False, redirect="")
            if node.kind is Kind.DIRECTORY:
                walk(below)

    walk("")
    return found


# ------------------------------------------------------------- a tree on a disk


def scan(root: str, *, links: bool = True, marks: bool = True) -> Tree:
    """Describe a directory on disk; of hard links the first has the contents."""
    found: Tree = {}
    first: dict[int, str] = {}

    def walk(path: str) -> None:
        for name in sorted(os.listdir(root + path or "/")):
            below = f"{path}/{name}"
            info = os.lstat(root + below)
            if links and info.st_ino in first and not is_whiteout(info):
                found[below[1:]] = link_to(first[info.st_ino])
                continue
            first[info.st_ino] = below[1:]
            found[below[1:]] = node_of(root + below, info, marks=marks)
            if stat.S_ISDIR(info.st_mode):
                walk(below)

    walk("")
    return dict(sorted(found.items()))


def attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return b""


def node_of(path: str, info: os.stat_result, *, marks: bool) -> Node:
    if is_whiteout(info):
        return WHITEOUT
    known: dict[str, object] = {
        "mode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid,
        "mtime": None if info.st_mtime > RECENT else int(info.st_mtime),
        "xattrs": tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if name.startswith("user.") and not name.startswith("user.overlay.")
        ),
    }  # fmt: skip
    if stat.S_ISLNK(info.st_mode):
        return Node(Kind.SYMLINK, os.fsencode(os.readlink(path)), **known)
    if stat.S_ISFIFO(info.st_mode):
        return Node(Kind.PIPE, **known)
    if stat.S_ISCHR(info.st_mode):
        text = f"c {os.major(info.st_rdev)} {os.minor(info.st_rdev)}"
        return Node(Kind.DEVICE, text.encode(), **known)
    if stat.S_ISDIR(info.st_mode):
        redirect = attribute(path, "trusted.overlay.redirect").decode() if marks else ""
        opaque = marks and b"y" in [attribute(path, name) for name in OPAQUE]
        return Node(Kind.DIRECTORY, **known, opaque=opaque, redirect=redirect)
    assert stat.S_ISREG(info.st_mode), path
    return Node(Kind.FILE, Path(path).read_bytes(), **known)


def put(root: str, tree: Tree, opaque: str) -> None:
    """Write a description to disk, as an overlayfs layer."""
    lines = description(MemoryBranch("", tree=tree))
    for path, node in lines.items():
        full = f"{root}/{path}"
        if node.kind is Kind.LINK:
            os.link(f"{root}/{os.fsdecode(node.data)}", full, follow_symlinks=False)
            continue
        if node.kind is Kind.WHITEOUT:
            os.mknod(full, stat.S_IFCHR, 0)
            continue
        if node.kind is Kind.SYMLINK:
            os.symlink(node.data, full)
        elif node.kind is Kind.PIPE:
            os.mkfifo(full)
        elif node.kind is Kind.DEVICE:
            _, major, minor = node.data.split()
            os.mknod(full, stat.S_IFCHR, os.makedev(int(major), int(minor)))
        elif node.kind is Kind.DIRECTORY:
            os.mkdir(full)
            if node.opaque:
                os.setxattr(full, opaque, b"y")
            if node.redirect:
                os.setxattr(full, "trusted.overlay.redirect", node.redirect.encode())
        else:
            Path(full).write_bytes(node.data)
        os.chown(full, node.uid, node.gid, follow_symlinks=False)
        if node.kind is not Kind.SYMLINK:
            os.chmod(full, node.mode)
        for name, value in node.xattrs:
            os.setxattr(full, name, value)
    for path, node in reversed(lines.items()):
        if node.kind not in (Kind.LINK, Kind.WHITEOUT) and node.mtime is not None:
            times = (node.mtime, node.mtime)
            os.utime(f"{root}/{path}", times, follow_symlinks=False)


# ------------------------------------------------------------------ system calls


def write(path: str, data: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
    fd = os.open(path, flags, 0o644)
    os.write(fd, data.encode())
    os.close(fd)


def read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def mknod(path: str, device: str, mode: int = 0o600) -> None:
    _, major, minor = device.split()
    os.mknod(path, mode | stat.S_IFCHR, os.makedev(int(major), int(minor)))


CALLS: dict[str, Callable[..., object]] = {
    "write": write,
    "read": read,
    "readdir": lambda path: sorted(os.listdir(path)),
    "mkdir": lambda path, mode=0o755: os.mkdir(path, mode),
    "mkfifo": lambda path, mode=0o644: os.mkfifo(path, mode),
    "mknod": mknod,
    "symlink": os.symlink,
    "link": lambda old, new: os.link(old, new, follow_symlinks=False),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename": os.rename,
    "chmod": os.chmod,
    "chown": os.lchown,
    "utime": lambda path, seconds: os.utime(path, (seconds, seconds)),
    "truncate": os.truncate,
    "setxattr": os.setxattr,
    "removexattr": os.removexattr,
}  # fmt: skip


def called(name: str, *words: object) -> str:
    """What the kernel says to one operation."""
    try:
        return told(CALLS[name](*words))
    except OSError as why:
        return outcome(why)


# ------------------------------------------------------- a process of its own


def taken_apart(node: Node) -> tuple[object, ...]:
    return Node, tuple(getattr(node, field) for field in Node.__match_args__)


copyreg.pickle(Node, taken_apart)


class Kernel:
    """A child with namespaces of its own, in which overlays are mounted and used.

    It serves one mount after the other. ``rootless``: in a user namespace.
    """

    def __init__(self, *, rootless: bool = False, redirects: bool = False) -> None:
        self.rootless, self.redirects = rootless, redirects
        here, their_end = os.pipe()
        their_start, there = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            os.close(here)
            os.close(there)
            self.serve(os.fdopen(their_start, "rb"), os.fdopen(their_end, "wb"))
        os.close(their_start)
        os.close(their_end)
        self.answers, self.orders = os.fdopen(here, "rb"), os.fdopen(there, "wb")

    def ask(self, *order: object) -> object:
        """Let the child run one of the methods below; its failure is the test's."""
        pickle.dump(order, self.orders)
        self.orders.flush()
        good, answer = pickle.load(self.answers)
        if not good:
            pytest.fail(str(answer))
        return answer

    def close(self) -> None:
        self.orders.close()
        self.answers.close()
        os.waitpid(self.child, 0)

    # in the child

    def serve(self, orders, answers) -> None:
        try:
            os.umask(0)
            if self.rootless:
                enter_user_namespace()
            else:
                unshare(CloneFlags.NEWNS)
            mount(None, "/", None, MountFlags.PRIVATE | MountFlags.REC)
            self.root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
            self.mounts = 0
            while True:
                name, *words = pickle.load(orders)
                try:
                    answer = True, getattr(self, str(name))(*words)
                except BaseException:  # noqa: BLE001
                    answer = False, traceback.format_exc()
                pickle.dump(answer, answers)
                answers.flush()
        except EOFError:
            os._exit(0)
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        os._exit(1)

    def leave(self) -> None:
        """Go back to the real root."""
        os.fchdir(self.root)
        os.chroot(".")

    def mount(
        self, lowers: list[Tree], upper: Tree | None = None, writable: bool = True
    ) -> Tree:
        """Mount an overlay on a new tmpfs, go inside, and tell what is seen."""
        self.leave()
        for _ in range(self.mounts):
            umount2("/tmp", UmountFlags.DETACH)
        mount("tmpfs", "/tmp", "tmpfs")
        names = [f"/tmp/{n}" for n in range(len(lowers))]
        for path in (*names, "/tmp/upper", "/tmp/work", "/tmp/merged"):
            os.mkdir(path)
        for name, tree in zip(names, lowers, strict=True):
            put(name, tree, OPAQUE[self.rootless])
        put("/tmp/upper", upper or {}, OPAQUE[self.rootless])
        ends = ("/tmp/upper", "/tmp/work") if writable else (None, None)
        overlay = Overlay(
            tuple(names), *ends, userxattr=self.rootless, redirects=self.redirects
        )
        mount_overlay(overlay, "/tmp/merged")
        self.mounts = 1
        os.chroot("/tmp/merged")
        os.chdir("/")
        return self.tree()

    def tree(self) -> Tree:
        """What is seen."""
        return scan("", links=False, marks=False)

    def do(self, name: str, *words: object) -> tuple[str, Tree]:
        """Do one operation; tell the answer, and what is seen then."""
        return called(name, *words), self.tree()

    def upper(self) -> Tree:
        """What lies in the upper directory."""
        self.leave()
        found = scan("/tmp/upper")
        os.chroot("/tmp/merged")
        os.chdir("/")
        return found


class Both:
    """The model and the kernel on the same layers, step by step."""

    def __init__(
        self, kernel: Kernel, lowers: list[Tree], *, writable: bool = True
    ) -> None:
        self.kernel, self.lowers, self.writable = kernel, lowers, writable
        self.model = model_of(lowers, writable=writable, redirects=kernel.redirects)
        assert seen(self.model) == kernel.ask("mount", lowers, None, writable)

    def step(self, name: str, *words: object) -> str:
        """Do the same on both; the answer and the whole tree must be the same."""
        ours = answer_of(self.model, name, *words)
        theirs, tree = self.kernel.ask("do", name, *words)
        if self.kernel.rootless and theirs == "ESTALE" and name == "rename":
            theirs = (
                "ok"  # two names of a copied-up file; tests/kernel/test_overlayfs.py
            )
        assert ours == theirs, (name, *words)
        assert seen(self.model) == tree, ("after", name, *words)
        return ours

    def left(self) -> Tree:
        """What both left in the upper branch."""
        if not self.writable:
            return {}
        ours = description(self.model.branches[0])
        assert ours == self.kernel.ask("upper"), "the upper directory"
        return ours

    def shown_again(self) -> None:
        """The model's upper branch, as bytes on a disk, mounts and shows the same."""
        upper = self.left()
        tree = self.kernel.ask("mount", self.lowers, upper)
        assert tree == seen(self.model), "the model's upper branch, mounted"


def model_of(
    lowers: list[Tree], *, writable: bool = True, redirects: bool = False
) -> Union:
    tops = [MemoryBranch("upper", BranchKind.READ_WRITE)] if writable else []
    return Union(
        [
            *tops,
            *(
                MemoryBranch(f"lower {n}", BranchKind.WHITEOUT_ABLE, tree)
                for n, tree in enumerate(lowers)
            ),
        ],
        redirects=redirects,
    )


# ------------------------------------------------------------ any steps at all

SHALLOW = ["a", "b", "d", "e"]
DEEP = ["d/a", "d/e", "e/a", "e/d", "d/e/a"]
paths = st.sampled_from(["/" + path for path in SHALLOW + DEEP])
targets = st.sampled_from(["a", "d", "../d", "/e", "e/a", ".", ".."])
nodes = st.one_of(
    st.sampled_from(["x", "yy"]).map(file),
    st.just(WHITEOUT),
    st.just(Node(Kind.PIPE)),
    targets.map(symlink_to),
)
directories = st.sampled_from([directory(), directory(), directory(opaque=True)])
dressed = st.sampled_from(
    [{}, {"mtime": 7}, {"xattrs": (("user.a", b"1"),)}, {"mode": 0o700}]
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A layer: names over a few paths, each below a directory."""
    tree: Tree = {}
    for path in [*SHALLOW, *DEEP]:
        above = path.rpartition("/")[0]
        if (
            above and (above not in tree or tree[above].kind is not Kind.DIRECTORY)
        ) or draw(st.booleans()):
            continue
        likely = directories if path[-1] in "de" else nodes
        node = draw(st.one_of(likely, likely, nodes, directories))
        if node.kind in (Kind.FILE, Kind.DIRECTORY):
            node = node.replace(**draw(dressed))
        linkable = [p for p, n in tree.items() if n.kind is Kind.FILE]
        tree[path] = (
            link_to(linkable[0])
            if linkable and node.kind is Kind.FILE and draw(st.booleans())
            else node
        )
    return tree


@st.composite
def layers(draw: st.DrawFn) -> list[Tree]:
    """Layers as a union leaves them: each whiteout hides something.

    Of others the kernel shows the name (tests/kernel/test_overlayfs.py has it).
    """
    below: list[MemoryBranch] = []
    for number in range(draw(st.integers(1, 3))):
        tree = draw(trees())
        for path in [p for p, node in tree.items() if node.kind is Kind.WHITEOUT]:
            mark = tree.pop(path)
            top = MemoryBranch("", BranchKind.WHITEOUT_ABLE, tree)
            if Union([top, *below]).node(path):
                tree[path] = mark
        below.insert(0, MemoryBranch(f"{number}", BranchKind.WHITEOUT_ABLE, tree))
    return [description(branch) for branch in below]


class Unions(RuleBasedStateMachine):
    """Random operations on the model and on the kernel, compared after each."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    @initialize(lowers=layers())
    def mount(self, lowers: list[Tree]) -> None:
        self.both = Both(self.kernel, lowers)

    @rule(path=paths, data=st.sampled_from(["1", "22"]))
    def write(self, path: str, data: str) -> None:
        self.both.step("write", path, data)

    @rule(call=st.sampled_from(["mkdir", "mkfifo", "unlink", "rmdir"]), path=paths)
    def one_path(self, call: str, path: str) -> None:
        self.both.step(call, path)

    @rule(call=st.sampled_from(["rename", "rename", "link"]), old=paths, new=paths)
    def two_paths(self, call: str, old: str, new: str) -> None:
        self.both.step(call, old, new)

    @rule(to=targets, path=paths)
    def symlink(self, to: str, path: str) -> None:
        self.both.step("symlink", to, path)

    @rule(path=paths, mode=st.sampled_from([0o700, 0o755]), time=st.integers(1, 9))
    def metadata(self, path: str, mode: int, time: int) -> None:
        self.both.step("chmod", path, mode)
        self.both.step("utime", path, time)

    @rule(path=paths, size=st.sampled_from([0, 1, 3]))
    def truncate(self, path: str, size: int) -> None:
        self.both.step("truncate", path, size)

    @rule(path=paths, value=st.sampled_from([b"", b"1", None]))
    def attribute(self, path: str, value: bytes | None) -> None:
        if value is None:
            self.both.step("removexattr", path, "user.a")
        else:
            self.both.step("setxattr", path, "user.a", value)

    @rule(old=paths, new=paths)
    def move_a_new_directory(self, old: str, new: str) -> None:
        if self.both.step("mkdir", old) == "ok":
            self.both.step("rename", old, new)

    @rule(path=st.sampled_from(["/d", "/e", "/d/e"]), again=st.booleans())
    def delete_whole(self, path: str, again: bool) -> None:
        """Delete a directory with all that is in it, and perhaps make it again."""
        for call, below in reversed(self.below(path)):
            assert self.both.step(call, below) == "ok"
        if again:
            self.both.step("mkdir", path)

    def below(self, path: str) -> list[tuple[str, str]]:
        model = self.both.model
        try:
            kind = model.lookup(path, follow=False).kind
        except OSError:
            return []
        if kind is not Kind.DIRECTORY:
            return [("unlink", path)]
        found = [("rmdir", path)]
        for name in model.readdir(path):
            found += self.below(f"{path}/{name}")
        return found

    def teardown(self) -> None:
        if hasattr(self, "both"):
            self.both.shown_again()


EXAMPLES = int(os.environ.get("MINIDOCKER_EXAMPLES", "150"))
BOUNDED = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
)
