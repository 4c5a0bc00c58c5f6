"""The model of a union and the kernel's overlayfs do and leave the same."""

import copyreg
import errno
import os
import pickle
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidocker.linux import CloneFlags, unshare
from minidocker.mounts import MountFlags, mount
from minidocker.namespaces import enter_user_namespace
from minidocker.overlayfs import OPAQUE, Overlay, is_whiteout, overlay_mounted
from minidocker.union import (
    WHITEOUT,
    Branch,
    BranchKind,
    Kind,
    Node,
    Union,
    description,
    directory,
    file,
    link_to,
    symlink_to,
)


Tree = dict[str, Node]
Step = tuple[object, ...]
Outcome = tuple[list[str], list[Tree], Tree]

ON_KERNEL = [
    pytest.param(False, id="root", marks=pytest.mark.root),
    pytest.param(True, id="userns"),
]


# ------------------------------------------------------------------ the model


def outcome(error: OSError) -> str:
    return errno.errorcode[error.errno or 0]


def seen(union: Union) -> Tree:
    """The whole visible tree, by the union's own operations."""
    found: Tree = {}

    def walk(path: str) -> None:
        for name in union.readdir(path):
            below = f"{path}/{name}"
            node = union.lookup(below, follow=False)
            found[below[1:]] = node.replace(opaque=False)
            if node.kind is Kind.DIRECTORY:
                walk(below)

    walk("")
    return found


def on_model(
    lowers: list[Tree], steps: list[Step], *, writable: bool = True
) -> Outcome:
    """What the model answers, shows after each step, and leaves in the upper branch."""
    branches = [Branch("upper", BranchKind.READ_WRITE)] if writable else []
    branches += [
        Branch(f"lower {n}", BranchKind.WHITEOUT_ABLE, t) for n, t in enumerate(lowers)
    ]
    union = Union(branches)
    answers, views = [], [seen(union)]
    for name, *words in steps:
        try:
            answers.append(told(getattr(union, str(name))(*words)))
        except OSError as why:
            answers.append(outcome(why))
        views.append(seen(union))
    return answers, views, description(branches[0]) if writable else {}


def told(value: object) -> str:
    return (
        "ok"
        if value is None
        else repr(value.data if isinstance(value, Node) else value)
    )


# ----------------------------------------------------------------- the kernel


def scan(root: str, *, links: bool = True) -> Tree:
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
            found[below[1:]] = node_of(root + below, info)
            if stat.S_ISDIR(info.st_mode):
                walk(below)

    walk("")
    return dict(sorted(found.items()))


def node_of(path: str, info: os.stat_result) -> Node:
    if is_whiteout(info):
        return WHITEOUT
    owner = {"mode": stat.S_IMODE(info.st_mode), "uid": info.st_uid, "gid": info.st_gid}
    if stat.S_ISLNK(info.st_mode):
        return Node(Kind.SYMLINK, os.fsencode(os.readlink(path)), **owner)
    if stat.S_ISDIR(info.st_mode):
        marks = [os.getxattr(path, n) for n in os.listxattr(path) if n in OPAQUE]
        return Node(Kind.DIRECTORY, **owner, opaque=marks == [b"y"])
    assert stat.S_ISREG(info.st_mode), path
    return Node(Kind.FILE, Path(path).read_bytes(), **owner)


def put(root: str, tree: Tree, opaque: str) -> None:
    """Write a description to disk, as an overlayfs layer."""
    for path, node in description(Branch("", tree=tree)).items():
        full = f"{root}/{path}"
        if node.kind is Kind.LINK:
            os.link(f"{root}/{os.fsdecode(node.data)}", full)
            continue
        if node.kind is Kind.WHITEOUT:
            os.mknod(full, stat.S_IFCHR, 0)
            continue
        if node.kind is Kind.SYMLINK:
            os.symlink(node.data, full)
        elif node.kind is Kind.DIRECTORY:
            os.mkdir(full)
            if node.opaque:
                os.setxattr(full, opaque, b"y")
        else:
            Path(full).write_bytes(node.data)
        os.chown(full, node.uid, node.gid, follow_symlinks=False)
        if node.kind is not Kind.SYMLINK:
            os.chmod(full, node.mode)


def write(path: str, data: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data.encode())
    os.close(fd)


def read(path: str) -> bytes:
    return Path(path).read_bytes()


CALLS: dict[str, Callable[..., object]] = {
    "write": write,
    "read": read,
    "readdir": lambda path: sorted(os.listdir(path)),
    "mkdir": lambda path, mode=0o755: os.mkdir(path, mode),
    "symlink": os.symlink,
    "link": lambda old, new: os.link(old, new, follow_symlinks=False),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename": os.rename,
    "chmod": os.chmod,
    "chown": os.lchown,
    "truncate": os.truncate,
}  # fmt: skip


def on_kernel(
    lowers: list[Tree], steps: list[Step], *, rootless: bool, writable: bool = True
) -> Outcome:
    """The same by overlayfs, in a child with namespaces of its own."""
    return in_child(
        lambda: overlaid(lowers, steps, rootless=rootless, writable=writable)
    )


def taken_apart(node: Node) -> tuple[object, ...]:
    return Node, tuple(getattr(node, field) for field in Node.__match_args__)


copyreg.pickle(Node, taken_apart)


def in_child(work: Callable[[], Outcome]) -> Outcome:
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer: object = work()
        except BaseException:  # noqa: BLE001  # noqa: BLE001
            answer = traceback.format_exc()
        with os.fdopen(there, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        answer = pickle.load(pipe)
    os.waitpid(child, 0)
    if isinstance(answer, str):
        pytest.fail(answer)
    return answer


def overlaid(
    lowers: list[Tree], steps: list[Step], *, rootless: bool, writable: bool
) -> Outcome:
    os.umask(0)
    if rootless:
        enter_user_namespace()
    else:
        unshare(CloneFlags.NEWNS)
    mount(None, "/", None, MountFlags.PRIVATE | MountFlags.REC)
    scratch = "/tmp"
    mount("tmpfs", scratch, "tmpfs")
    names = [f"{scratch}/{n}" for n in range(len(lowers))]
    upper, work, merged = (f"{scratch}/{n}" for n in ("upper", "work", "merged"))
    for path in (*names, upper, work, merged):
        os.mkdir(path)
    for name, tree in zip(names, lowers, strict=True):
        put(name, tree, OPAQUE[rootless])
    ends = (upper, work) if writable else (None, None)
    with overlay_mounted(Overlay(tuple(names), *ends, userxattr=rootless), merged):
        answers, views = performed(merged, steps)
    return answers, views, scan(upper)


def performed(merged: str, steps: list[Step]) -> tuple[list[str], list[Tree]]:
    """Do the steps with the union as the root, and come back."""
    back = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.chroot(merged)
    os.chdir("/")
    answers, views = [], [scan("", links=False)]
    for name, *words in steps:
        try:
            answers.append(told(CALLS[str(name)](*words)))
        except OSError as why:
            answers.append(outcome(why))
        views.append(scan("", links=False))
    os.fchdir(back)
    os.chroot(".")
    os.close(back)
    return answers, views


def compare(
    lowers: list[Tree], steps: list[Step], *, rootless: bool, writable: bool = True
) -> Outcome:
    """Run both; each answer, each view and the upper directory must be the same."""
    model = on_model(lowers, steps, writable=writable)
    kernel = on_kernel(lowers, steps, rootless=rootless, writable=writable)
    for number, (ours, theirs) in enumerate(zip(model[0], kernel[0], strict=True)):
        if rootless and theirs == "ESTALE" and steps[number][0] == "rename":
            # Two names of a copied-up file; tests/kernel/test_overlayfs.py has it.
            theirs = "ok"  # noqa: PLW2901
        assert ours == theirs, (number, steps[number])
    for number, (mine, his) in enumerate(zip(model[1], kernel[1], strict=True)):
        assert mine == his, ("after", steps[number - 1] if number else "mounting")
    assert model[2] == kernel[2], "the upper directory"
    return model


# -------------------------------------------------------------- the scenarios

BASE: Tree = {
    "etc/hosts": file("localhost", 0o640),
    "etc/motd": file("welcome"),
    "etc/ssl/certs/ca": file("ca"),
    "usr/bin/ls": file("ELF", 0o755),
    "usr/bin/dir": link_to("usr/bin/ls"),
    "usr/bin/vdir": link_to("usr/bin/ls"),
    "bin": symlink_to("usr/bin"),
    "absolute": symlink_to("/etc/motd"),
    "up": symlink_to("etc/../../../usr"),
    "nowhere": symlink_to("no/such"),
    "new-by-link": symlink_to("etc/made"),
    "loop": symlink_to("loop"),
    "empty": directory(0o700),
    "tmp": directory(0o1777),
}
MIDDLE: Tree = {
    "etc/motd": WHITEOUT,
    "etc/issue": file("middle"),
    "usr/bin": directory(opaque=True),
    "usr/bin/sh": file("sh"),
    "empty": file("a file over a directory"),
    "was-below": WHITEOUT,
}
TOP: Tree = {
    "empty/of-top": file("x"),
    "etc/ssl": file("hides a directory"),
    "etc/motd": file("back"),
}

SCENARIOS: dict[str, tuple[list[Tree], list[Step], list[str], dict[str, object]]] = {
    "reading goes through links": ([BASE], [
        ("read", "/bin/ls"), ("read", "/absolute"), ("readdir", "/up"),
        ("read", "/nowhere"),
        ("read", "/loop"), ("read", "/etc"), ("readdir", "/etc/motd"),
        ("read", "/etc/motd/x"),
    ], [
        "b'ELF'", "b'welcome'", "['bin']", "ENOENT", "ELOOP", "EISDIR", "ENOTDIR",
        "ENOTDIR",
    ], {}),
    "three layers": ([TOP, MIDDLE, BASE], [
        ("readdir", "/"), ("readdir", "/empty"), ("read", "/etc/motd"),
        ("readdir", "/usr/bin"), ("read", "/etc/ssl"),
        ("unlink", "/empty/of-top"), ("rmdir", "/empty"),
    ], [
        "['absolute', 'bin', 'empty', 'etc', 'loop', 'new-by-link', 'nowhere', "
        "'tmp', 'up', 'usr']",
        "['of-top']", "b'back'", "['sh']", "b'hides a directory'", "ok", "ok",
    ], {"empty": WHITEOUT}),
    "a deleted file leaves a whiteout": ([BASE], [
        ("unlink", "/etc/motd"), ("read", "/etc/motd"), ("unlink", "/etc/motd"),
        ("write", "/etc/motd", "new"),
        ("unlink", "/etc/motd"),
    ], [
        "ok", "ENOENT", "ENOENT", "ok", "ok",
    ], {"etc": directory(), "etc/motd": WHITEOUT}),
    "a new file leaves nothing when it goes": ([BASE], [
        ("write", "/tmp/x", "x"), ("unlink", "/tmp/x"),
    ], ["ok", "ok"], {"tmp": directory(0o1777)}),
    "a lower whiteout is enough": ([MIDDLE, BASE], [
        ("write", "/etc/motd", "x"), ("unlink", "/etc/motd"),
    ], ["ok", "ok"], {"etc": directory()}),
    "a directory made again is opaque": ([BASE], [
        ("rmdir", "/etc"), ("unlink", "/etc"), ("unlink", "/etc/hosts"),
        ("unlink", "/etc/motd"),
        ("unlink", "/etc/ssl/certs/ca"), ("rmdir", "/etc/ssl/certs"),
        ("rmdir", "/etc/ssl"), ("rmdir", "/etc"),
        ("mkdir", "/etc", 0o750), ("readdir", "/etc"),
    ], [
        "ENOTEMPTY", "EISDIR", *["ok"] * 7, "[]",
    ], {"etc": directory(0o750, opaque=True)}),
    "writing copies up with the directories above": ([BASE], [
        ("write", "/etc/ssl/certs/ca", "new"), ("chmod", "/etc/hosts", 0o600),
    ], ["ok", "ok"], {
        "etc": directory(), "etc/ssl": directory(), "etc/ssl/certs": directory(),
        "etc/ssl/certs/ca": file("new"), "etc/hosts": file("localhost", 0o600),
    }),
    "copy-up parts hard links": ([BASE], [
        ("write", "/usr/bin/dir", "new"), ("read", "/usr/bin/ls"),
        ("read", "/usr/bin/vdir"),
    ], [
        "ok", "b'ELF'", "b'ELF'",
    ], {"usr": directory(), "usr/bin": directory(), "usr/bin/dir": file("new", 0o755)}),
    "links made above stay one file": ([BASE], [
        ("link", "/etc/motd", "/tmp/motd"), ("write", "/tmp/motd", "both"),
        ("read", "/etc/motd"),
        ("rename", "/etc/motd", "/tmp/motd"), ("unlink", "/etc/motd"),
        ("read", "/tmp/motd"),
        ("link", "/etc", "/x"), ("link", "/no", "/x"),
        ("link", "/tmp/motd", "/etc/hosts"), ("link", "/loop", "/loop2"),
    ], [
        "ok", "ok", "b'both'", "ok", "ok", "b'both'", "EPERM", "ENOENT", "EEXIST", "ok",
    ], {
        "etc": directory(), "etc/motd": WHITEOUT, "tmp": directory(0o1777),
        "tmp/motd": file("both"),
        "loop": symlink_to("loop"), "loop2": link_to("loop"),
    }),
    "lower hard links are two files to rename": ([BASE], [
        ("rename", "/usr/bin/ls", "/usr/bin/dir"), ("readdir", "/bin"),
    ], ["ok", "['dir', 'vdir']"], {
        "usr": directory(), "usr/bin": directory(), "usr/bin/dir": file("ELF", 0o755),
        "usr/bin/ls": WHITEOUT,
    }),
    "a lower or merged directory cannot be renamed": ([BASE], [
        ("rename", "/etc", "/x"), ("chmod", "/tmp", 0o700), ("rename", "/tmp", "/x"),
        ("rename", "/etc", "/etc"),
        ("rename", "/etc", "/etc/x"), ("rename", "/etc/ssl/certs", "/etc"),
        ("rename", "/no", "/etc"),
        ("rename", "/etc", "/absolute"), ("rename", "/bin", "/etc"),
    ], [
        "EXDEV", "ok", "EXDEV", "ok", "EINVAL", "ENOTEMPTY", "ENOENT", "ENOTDIR",
        "EISDIR",
    ], {"tmp": directory(0o700)}),
    "a directory of the top branch is renamed": ([BASE], [
        ("mkdir", "/d"), ("mkdir", "/d/e"), ("write", "/d/e/f", "x"),
        ("rename", "/d", "/tmp/d"),
        ("rename", "/tmp/d/e", "/empty"), ("readdir", "/empty"),
        ("rename", "/empty", "/etc"),
        ("mkdir", "/e"), ("rename", "/empty", "/tmp/d"), ("rename", "/e", "/empty"),
    ], ["ok", "ok", "ok", "ok", "ok", "['f']", "ENOTEMPTY", "ok", "ok", "ok"], {
        "empty": directory(opaque=True), "tmp": directory(0o1777),
        "tmp/d": directory(opaque=True), "tmp/d/f": file("x"),
    }),
    "a directory moved into a lower one is opaque": ([BASE], [
        ("mkdir", "/d"), ("rename", "/d", "/etc/d"),
    ], ["ok", "ok"], {"etc": directory(), "etc/d": directory(opaque=True)}),
    "renaming a file": ([BASE], [
        ("rename", "/etc/motd", "/tmp/motd"), ("rename", "/tmp/motd", "/etc/hosts"),
        ("write", "/etc/motd", "m"),
        ("rename", "/etc/motd", "/etc/motd2"), ("rename", "/absolute", "/etc/motd"),
    ], ["ok"] * 5, {
        "absolute": WHITEOUT, "etc": directory(), "etc/hosts": file("welcome"),
        "etc/motd": symlink_to("/etc/motd"),
        "etc/motd2": file("m"), "tmp": directory(0o1777),
    }),
    "links lead where the union shows": ([BASE], [
        ("write", "/new-by-link", "x"), ("read", "/etc/made"),
        ("write", "/nowhere", "x"), ("write", "/loop", "x"),
        ("mkdir", "/nowhere"), ("chmod", "/absolute", 0o600),
        ("truncate", "/absolute", 2), ("truncate", "/bin/ls", 5),
        ("truncate", "/etc", 0), ("symlink", "a", "/bin/a"), ("symlink", "a", "/loop"),
        ("unlink", "/bin"), ("rmdir", "/up"),
    ], [
        "ok", "b'x'", "ENOENT", "ELOOP", "EEXIST", "ok", "ok", "ok", "EISDIR", "ok",
        "EEXIST", "ok", "ENOTDIR",
    ], {
        "bin": WHITEOUT, "etc": directory(), "etc/made": file("x"),
        "etc/motd": file("we", 0o600),
        "usr": directory(), "usr/bin": directory(), "usr/bin/a": symlink_to("a"),
        "usr/bin/ls": file("ELF\0\0", 0o755),
    }),
    "names that are not there": ([BASE], [
        ("mkdir", "/etc"), ("mkdir", "/no/x"), ("mkdir", "/etc/motd/x"),
        ("unlink", "/no"), ("rmdir", "/no"),
        ("rmdir", "/etc/motd"), ("chmod", "/no", 0), ("truncate", "/no", 0),
        ("write", "/etc", ""),
        ("rename", "/etc/motd", "/no/x"), ("rename", "/etc/motd", "/etc/hosts/x"),
    ], [
        "EEXIST", "ENOENT", "ENOTDIR", "ENOENT", "ENOENT", "ENOTDIR", "ENOENT",
        "ENOENT", "EISDIR", "ENOENT",
        "ENOTDIR",
    ], {}),
}  # fmt: skip


@pytest.mark.parametrize("rootless", ON_KERNEL)
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_model_and_kernel_answer_as_expected(scenario, rootless: bool) -> None:
    lowers, steps, answers, upper = scenario
    got, _, left = compare(lowers, steps, rootless=rootless)
    assert got == answers
    assert left == upper


@pytest.mark.root
def test_owners_are_copied_up() -> None:
    lower = {
        "d": directory(0o750).replace(uid=5, gid=6),
        "d/f": file("x").replace(uid=7, gid=8),
    }
    steps = [
        ("write", "/d/f", "y"),
        ("chown", "/d", 1, 2),
        ("symlink", "x", "/d/l"),
        ("chown", "/d/l", 3, 4),
    ]
    compare([lower], steps, rootless=False)


@pytest.mark.parametrize("rootless", ON_KERNEL)
def test_without_a_writable_branch_nothing_changes(rootless: bool) -> None:
    steps: list[Step] = [
        ("write", "/etc/motd", ""), ("write", "/no", ""), ("write", "/etc", ""),
        ("mkdir", "/no"), ("mkdir", "/etc"),
        ("unlink", "/etc/motd"), ("unlink", "/no"), ("rmdir", "/etc"),
        ("rmdir", "/no/x"), ("rmdir", "/no"),
        ("chmod", "/etc", 0), ("chmod", "/no", 0), ("truncate", "/etc", 0),
        ("truncate", "/etc/motd", 0),
        ("rename", "/etc/motd", "/x"), ("rename", "/no", "/x"),
        ("rename", "/no/x", "/x"),
        ("link", "/etc/motd", "/x"), ("link", "/etc", "/x"), ("link", "/no", "/x"),
        ("link", "/bin", "/etc"),
        ("symlink", "x", "/x"), ("symlink", "x", "/bin"),
    ]  # fmt: skip
    compare([MIDDLE, BASE], steps, rootless=rootless, writable=False)


# ------------------------------------------------------------ any steps at all

SHALLOW = ["a", "b", "d", "e"]
DEEP = ["d/a", "d/e", "e/a", "e/d", "d/e/a"]
paths = st.sampled_from(["/" + path for path in SHALLOW + DEEP])
targets = st.sampled_from(["a", "d", "../d", "/e", "e/a", ".", ".."])
steps_of = st.one_of(
    st.tuples(st.just("write"), paths, st.sampled_from(["1", "22"])),
    st.tuples(st.sampled_from(["mkdir", "mkdir", "unlink", "rmdir"]), paths),
    st.tuples(st.sampled_from(["unlink", "rmdir"]), paths),
    st.tuples(st.just("rename"), paths, paths),
    st.tuples(st.sampled_from(["rename", "rename", "link"]), paths, paths),
    st.tuples(st.sampled_from(["mkdir", "rmdir"]), paths),
    st.one_of(
        st.tuples(st.just("symlink"), targets, paths),
        st.tuples(st.just("chmod"), paths, st.sampled_from([0o700, 0o755])),
        st.tuples(st.just("truncate"), paths, st.sampled_from([0, 3])),
    ),
)
nodes = st.one_of(
    st.sampled_from(["x", "yy"]).map(file), st.just(WHITEOUT), targets.map(symlink_to)
)
directories = st.sampled_from([directory(), directory(), directory(opaque=True)])


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
    below: list[Branch] = []
    for number in range(draw(st.integers(1, 3))):
        tree = draw(trees())
        for path in [p for p, node in tree.items() if node.kind is Kind.WHITEOUT]:
            mark = tree.pop(path)
            if Union([Branch("", BranchKind.WHITEOUT_ABLE, tree), *below]).node(path):
                tree[path] = mark
        below.insert(0, Branch(f"{number}", BranchKind.WHITEOUT_ABLE, tree))
    return [description(branch) for branch in below]


@pytest.mark.parametrize("rootless", ON_KERNEL)
@settings(
    max_examples=int(os.environ.get("MINIDOCKER_EXAMPLES", "60")),
    deadline=None,
    derandomize=True,
    database=None,
)
@given(lowers=layers(), steps=st.lists(steps_of, max_size=20))
def test_any_steps_on_any_layers_give_the_same(
    rootless: bool, lowers: list[Tree], steps: list[Step]
) -> None:
    compare(lowers, steps, rootless=rootless)
