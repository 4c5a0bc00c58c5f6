"""The model of a union, mounted: it answers as the model does, and as POSIX asks for."""

import ctypes
import errno
import mmap
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mfusepy  # noqa: F401  (now: later /tmp is another one)
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from unions import BOUNDED, Kernel, Tree, Unions, scan

from minidocker.encodings import DiskBranch, Notation
from minidocker.linux import Prctl, prctl
from minidocker.mounts import UmountFlags, mount, umount2
from minidocker.union import (
    WHITEOUT,
    BranchKind,
    Kind,
    description,
    directory,
    file,
    link_to,
    symlink_to,
)
from minidocker.union_mount import serve, union_of


pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]


# ------------------------------------------------- the same as the model


def lay(root: str, tree: Tree, notation: Notation) -> None:
    """Write a layer, dated."""
    branch = DiskBranch(root, BranchKind.READ_WRITE, root, notation)
    branch.describe(tree)
    for path, node in reversed(description(branch).items()):
        said = tree.get(path, node)
        if node.kind not in (Kind.WHITEOUT, Kind.LINK) and said.mtime is not None:
            os.utime(f"{root}/{path}", (said.mtime, said.mtime), follow_symlinks=False)


class Fuse(Kernel):
    """A child in which the union is mounted by FUSE instead."""

    def __init__(self, notation: Notation) -> None:
        self.notation, self.server = notation, 0
        super().__init__()

    def mount(
        self, lowers: list[Tree], upper: Tree | None = None, writable: bool = True
    ) -> Tree:
        self.unmount()
        mount("tmpfs", "/tmp", "tmpfs")
        names = [f"/tmp/{n}" for n in range(len(lowers))]
        for path in (*names, "/tmp/upper", "/tmp/merged"):
            os.mkdir(path)
        trees = dict(zip(names, lowers, strict=True)) | {"/tmp/upper": upper or {}}
        for name, tree in trees.items():
            lay(name, tree, self.notation)
        words = ["rw=/tmp/upper"] if writable else []
        self.server = os.fork()
        if not self.server:
            status = 1
            prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
            os.dup2(os.open("/dev/null", os.O_RDWR), 1)
            try:
                union = union_of([*words, *(f"wo={n}" for n in names)], self.notation)
                serve(union, "/tmp/merged")
                status = 0
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            os._exit(status)
        wait(lambda: os.path.ismount("/tmp/merged"))
        os.chroot("/tmp/merged")
        os.chdir("/")
        return self.tree()

    def unmount(self) -> None:
        self.leave()
        if self.server:
            umount2("/tmp/merged", UmountFlags(0))
            assert os.waitpid(self.server, 0)[1] == 0
            umount2("/tmp", UmountFlags.DETACH)
        self.server = 0

    def upper(self) -> Tree:
        self.leave()
        root = "/tmp/upper"
        branch = DiskBranch("", BranchKind.READ_WRITE, root, self.notation)
        found = description(branch)
        dates = scan(root)
        os.chroot("/tmp/merged")
        os.chdir("/")
        marks = Kind.WHITEOUT, Kind.LINK
        return {
            path: node if node.kind in marks else node.replace(mtime=dates[path].mtime)
            for path, node in found.items()
        }


def wait(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("notation", [Notation.AUFS, Notation.OVERLAYFS])
def test_any_steps_on_any_layers_give_the_same_by_fuse(notation: Notation) -> None:
    kernel = Fuse(notation)
    few = settings(BOUNDED, max_examples=15)
    try:
        run_state_machine_as_test(partial(Unions, kernel), settings=few)
    finally:
        kernel.ask("unmount")
        kernel.close()


# ---------------------------------------------------- what POSIX asks for

LOWER: Tree = {
    "etc/hosts": file("localhost"),
    "etc/motd": file("welcome"),
    "etc/secret": file("secret", 0o600),
    "etc/link": symlink_to("motd"),
    "etc/loop": symlink_to("loop"),
    "one": file("names"),
    "two": link_to("one"),
    "gone": file("x"),
    "empty": directory(),
    "empty/was": file("x"),
    "sticky": directory(0o1777),
    "sticky/file": file("x", 0o666),
    "group": directory(0o2775).replace(gid=77),
    "open": directory(0o777),
}
MIDDLE: Tree = {"gone": WHITEOUT, "empty/was": WHITEOUT}


class Mounted:
    def __init__(self, root: Path) -> None:
        self.root, self.at = root, root / "merged"
        for name in ("low", "middle", "upper", "merged"):
            (root / name).mkdir()
        lay(f"{root}/low", LOWER, Notation.AUFS)
        lay(f"{root}/middle", MIDDLE, Notation.AUFS)
        root.chmod(0o755)
        words = [f"rw={root}/upper", f"wo={root}/middle", f"ro={root}/low"]
        command = [sys.executable, "-m", "minidocker", "union", str(self.at), *words]
        self.process = subprocess.Popen(command, cwd=ROOT)
        wait(lambda: self.process.poll() is None and self.at.is_mount())

    def upper(self) -> Tree:
        root = f"{self.root}/upper"
        branch = DiskBranch("", BranchKind.READ_WRITE, root, Notation.AUFS)
        return description(branch)

    def close(self) -> None:
        umount2(str(self.at), UmountFlags(0))
        assert self.process.wait(20) == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    root = tmp_path_factory.mktemp("union")
    for above in [*root.parents][:3]:  # others must be able to get here
        if above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
    made = Mounted(root)
    yield made
    made.close()


@pytest.fixture
def m(shared: Mounted) -> Iterator[Path]:
    """The mount, as it was at the beginning."""
    before = scan(f"{shared.root}/low"), scan(f"{shared.root}/middle")
    yield shared.at
    assert before == (scan(f"{shared.root}/low"), scan(f"{shared.root}/middle"))
    for name in os.listdir(f"{shared.root}/upper"):
        path = shared.root / "upper" / name
        if not path.is_symlink() and path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def code(work: Callable[[], object]) -> str:
    try:
        done = work()
    except OSError as why:
        return errno.errorcode[why.errno or 0]
    if isinstance(done, int) and not isinstance(done, bool):
        os.close(done)
    return "ok"


def as_user(work: Callable[[], object], uid: int = 1000, gid: int = 1000) -> str:
    """The outcome of something that another user does, in a child."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        said = "failed"
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            said = code(work)
        finally:
            os.write(there, said.encode())
            os._exit(0)
    os.close(there)
    with os.fdopen(here) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


LONG = "x" * 255
REFUSED: dict[str, tuple[str, Callable[[Path], object]]] = {
    "open of nothing": ("ENOENT", lambda m: os.open(m / "no", os.O_RDONLY)),
    "open for a new one that is there": ("EEXIST", lambda m: os.open(m / "one", os.O_CREAT | os.O_EXCL)),
    "open of a directory for writing": ("EISDIR", lambda m: os.open(m / "etc", os.O_WRONLY)),
    "open of a file as a directory": ("ENOTDIR", lambda m: os.open(m / "one", os.O_DIRECTORY)),
    "open below a file": ("ENOTDIR", lambda m: os.open(m / "one/x", os.O_RDONLY)),
    "open of a link, not followed": ("ELOOP", lambda m: os.open(m / "etc/link", os.O_NOFOLLOW)),
    "open of a loop": ("ELOOP", lambda m: os.open(m / "etc/loop", os.O_RDONLY)),
    "open of a long name": ("ENAMETOOLONG", lambda m: os.open(m / (LONG + "x"), os.O_CREAT)),
    "a long name": ("ok", lambda m: os.open(m / LONG, os.O_CREAT)),
    "a path too long": ("ENAMETOOLONG", lambda m: os.open(f"{m}/{'x/' * 2100}", os.O_RDONLY)),
    "mkdir over a file": ("EEXIST", lambda m: os.mkdir(m / "one")),
    "mkdir over a link to nothing": ("EEXIST", lambda m: os.mkdir(m / "etc/loop")),
    "mkdir in nothing": ("ENOENT", lambda m: os.mkdir(m / "no/x")),
    "mkdir below a file": ("ENOTDIR", lambda m: os.mkdir(m / "one/x")),
    "mkdir over a whiteout": ("ok", lambda m: os.mkdir(m / "gone")),
    "rmdir of what is full": ("ENOTEMPTY", lambda m: os.rmdir(m / "etc")),
    "rmdir of a file": ("ENOTDIR", lambda m: os.rmdir(m / "one")),
    "rmdir of a link to a directory": ("ENOTDIR", lambda m: (os.symlink("etc", m / "s"), os.rmdir(m / "s"))),
    "rmdir of nothing": ("ENOENT", lambda m: os.rmdir(m / "no")),
    "rmdir of itself": ("EINVAL", lambda m: os.rmdir(f"{m}/etc/.")),
    "rmdir of the parent": ("ENOTEMPTY", lambda m: os.rmdir(m / "empty/..")),
    "rmdir of the mount point": ("EBUSY", os.rmdir),
    "rmdir of what only whiteouts fill": ("ok", lambda m: os.rmdir(m / "empty")),
    "unlink of a directory": ("EISDIR", lambda m: os.unlink(m / "etc")),
    "unlink of nothing": ("ENOENT", lambda m: os.unlink(m / "no")),
    "unlink of what is hidden": ("ENOENT", lambda m: os.unlink(m / "gone")),
    "unlink with a slash": ("ENOTDIR", lambda m: os.unlink(f"{m}/one/")),
    "link of a directory": ("EPERM", lambda m: os.link(m / "etc", m / "x")),
    "link over a name": ("EEXIST", lambda m: os.link(m / "one", m / "etc/motd")),
    "link of nothing": ("ENOENT", lambda m: os.link(m / "no", m / "x")),
    "link to another disk": ("EXDEV", lambda m: os.link(m / "one", "/dev/shm/x")),
    "symlink over a name": ("EEXIST", lambda m: os.symlink("x", m / "etc")),
    "symlink to a long text": ("ok", lambda m: os.symlink("x" * 4095, m / "s")),
    "symlink to a text too long": ("ENAMETOOLONG", lambda m: os.symlink("x" * 4096, m / "s")),
    "symlink to nothing": ("ENOENT", lambda m: os.symlink("", m / "s")),
    "readlink of a file": ("EINVAL", lambda m: len(os.readlink(m / "one")) and None),
    "rename of nothing": ("ENOENT", lambda m: os.rename(m / "no", m / "x")),
    "rename into nothing": ("ENOENT", lambda m: os.rename(m / "one", m / "no/x")),
    "rename into itself": ("EINVAL", lambda m: os.rename(m / "etc", m / "etc/x")),
    "rename over an ancestor": ("ENOTEMPTY", lambda m: os.rename(m / "etc/motd", m / "etc")),
    "rename of a file over a directory": ("EISDIR", lambda m: os.rename(m / "one", m / "open")),
    "rename of a directory over a file": ("ENOTDIR", lambda m: os.rename(m / "open", m / "one")),
    "rename of a directory over a full one": ("ENOTEMPTY", lambda m: (os.mkdir(m / "d"), os.rename(m / "d", m / "etc"))),
    "rename of a directory over an empty one": ("ok", lambda m: (os.mkdir(m / "d"), os.rename(m / "d", m / "open"))),
    "rename of a lower directory": ("EXDEV", lambda m: os.rename(m / "etc", m / "x")),
    "rename to another disk": ("EXDEV", lambda m: os.rename(m / "one", "/proc/x")),
    "rename onto itself": ("ok", lambda m: os.rename(m / "one", m / "one")),
    "truncate of a directory": ("EISDIR", lambda m: os.truncate(m / "etc", 0)),
    "truncate to less than nothing": ("EINVAL", lambda m: os.truncate(m / "one", -1)),
    "truncate of nothing": ("ENOENT", lambda m: os.truncate(m / "no", 0)),
    "chmod of nothing": ("ENOENT", lambda m: os.chmod(m / "no", 0)),
    "chown of nothing": ("ENOENT", lambda m: os.chown(m / "no", 0, 0)),
    "utime of nothing": ("ENOENT", lambda m: os.utime(m / "no")),
    "attribute that is there": ("EEXIST", lambda m: [os.setxattr(m / "one", "user.a", b"1", os.XATTR_CREATE) for _ in "12"] and None),
    "attribute that is not there": ("ENODATA", lambda m: os.setxattr(m / "one", "user.no", b"", os.XATTR_REPLACE)),
    "attribute removed that is not there": ("ENODATA", lambda m: os.removexattr(m / "one", "user.no")),
    "attribute of a link": ("EPERM", lambda m: os.setxattr(m / "etc/link", "user.a", b"", follow_symlinks=False)),
    "attribute of the union's own": ("ENOTSUP", lambda m: os.setxattr(m / "etc", "trusted.overlay.opaque", b"y")),
    "a name of AUFS's": ("EPERM", lambda m: os.mkdir(m / ".wh.x")),
    "a device that would be a whiteout": ("EPERM", lambda m: os.mknod(m / "w", stat.S_IFCHR | 0o600, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_call_is_answered_as_posix_says(
    case: tuple[str, Callable[[Path], object]], m: Path
) -> None:
    expected, work = case
    said = code(lambda: work(m))
    same = {"EOPNOTSUPP": "ENOTSUP"}
    assert same.get(said, said) == expected


USERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "reads what is for all": ("ok", lambda m: os.open(m / "etc/motd", os.O_RDONLY)),
    "reads what is not": ("EACCES", lambda m: os.open(m / "etc/secret", os.O_RDONLY)),
    "writes what is not theirs": ("EACCES", lambda m: os.open(m / "etc/motd", os.O_WRONLY)),
    "makes a name where they may not": ("EACCES", lambda m: os.mkdir(m / "etc/x")),
    "deletes where they may not": ("EACCES", lambda m: os.unlink(m / "etc/motd")),
    "deletes another's in a sticky directory": ("EPERM", lambda m: os.unlink(m / "sticky/file")),
    "renames another's in a sticky directory": ("EPERM", lambda m: os.rename(m / "sticky/file", m / "sticky/x")),
    "changes another's mode": ("EPERM", lambda m: os.chmod(m / "etc/motd", 0o666)),
    "gives a file away": ("EPERM", lambda m: os.chown(m / "etc/motd", 1000, 1000)),
    "dates another's file": ("EPERM", lambda m: os.utime(m / "sticky/file", (5, 5))),
    "cuts another's file": ("EACCES", lambda m: os.truncate(m / "etc/motd", 0)),
    "makes a device": ("EPERM", lambda m: os.mknod(m / "open/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))),
    "makes a pipe": ("ok", lambda m: os.mkfifo(m / "open/pipe")),
    "writes where all may": ("ok", lambda m: os.open(m / "open/x", os.O_CREAT | os.O_WRONLY)),
    "writes what all may": ("ok", lambda m: os.open(m / "sticky/file", os.O_WRONLY)),
}  # fmt: skip


@pytest.mark.parametrize("case", USERS.values(), ids=USERS.keys())
def test_another_user_may_what_modes_say(
    case: tuple[str, Callable[[Path], object]], m: Path
) -> None:
    expected, work = case
    assert as_user(lambda: work(m)) == expected


def test_what_is_made_belongs_to_whoever_made_it(m: Path) -> None:
    def work() -> None:
        os.umask(0o027)
        os.close(os.open(m / "open/f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(m / "open/d", 0o777)
        os.symlink("x", m / "open/s")

    assert as_user(work) == "ok"
    for name, mode in {"f": 0o100640, "d": 0o040750, "s": 0o120777}.items():
        st = os.lstat(m / "open" / name)
        assert (st.st_mode, st.st_uid, st.st_gid) == (mode, 1000, 1000), name


def test_a_directory_gives_its_group_to_what_is_made_in_it(m: Path) -> None:
    (m / "group/f").touch()
    (m / "group/d").mkdir()
    assert [os.stat(m / "group" / n).st_gid for n in "fd"] == [77, 77]
    assert os.stat(m / "group/d").st_mode & stat.S_ISGID


def test_a_rename_replaces_in_one_step(m: Path) -> None:
    (m / "new").write_text("new")
    held = os.open(m / "etc/motd", os.O_RDONLY)
    os.rename(m / "new", m / "etc/motd")
    assert (m / "etc/motd").read_text() == "new"
    assert os.read(held, 100) == b"welcome"
    os.close(held)
    assert sorted(os.listdir(m / "etc")) == ["hosts", "link", "loop", "motd", "secret"]


def renameat2(old: Path, new: Path, flags: int) -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(-100, bytes(old), -100, bytes(new), flags)
    return errno.errorcode[ctypes.get_errno()] if done else "ok"


def test_the_flags_of_a_rename_are_heard(m: Path) -> None:
    assert renameat2(m / "one", m / "etc/motd", 1) == "EEXIST"  # RENAME_NOREPLACE
    assert renameat2(m / "one", m / "etc/motd", 2) == "EINVAL"  # RENAME_EXCHANGE
    assert (m / "one").read_text() == "names"
    assert (m / "etc/motd").read_text() == "welcome"
    assert renameat2(m / "one", m / "three", 1) == "ok"


def test_a_file_lives_while_it_is_open(m: Path) -> None:
    (m / "d").mkdir()
    fd = os.open(m / "d/f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"abc")
    os.unlink(m / "d/f")
    assert os.listdir(m / "d") == []
    assert os.pread(fd, 9, 1) == b"bc"
    os.ftruncate(fd, 2)
    os.write(fd, b"d")
    assert os.fstat(fd).st_size == 4
    assert os.fstat(fd).st_nlink == 0
    assert os.pread(fd, 9, 0) == b"ab\0d"
    os.close(fd)
    os.rmdir(m / "d")
    assert "d" not in os.listdir(m)


def test_names_of_a_file_agree(m: Path, shared: Mounted) -> None:
    assert os.stat(m / "one").st_ino == os.stat(m / "two").st_ino
    os.link(m / "one", m / "three")
    assert os.stat(m / "one").st_nlink == os.stat(m / "three").st_nlink == 2
    (m / "three").write_text("both")
    assert (m / "one").read_text() == "both"
    assert (m / "two").read_text() == "names"  # parted by the copy-up
    os.unlink(m / "one")
    assert (m / "three").read_text() == "both"
    assert os.stat(m / "three").st_nlink == 1
    assert shared.upper()["one"] is WHITEOUT or shared.upper()["one"] == WHITEOUT


def test_who_has_a_lower_file_open_keeps_it(m: Path) -> None:
    held = os.open(m / "etc/motd", os.O_RDONLY)
    (m / "etc/motd").write_text("new")
    assert os.pread(held, 9, 0) == b"welcome"
    os.close(held)


def test_appending_cutting_and_holes(m: Path) -> None:
    for text in ("1", "2"):
        with open(m / "etc/motd", "a") as out:
            out.write(text)
    assert (m / "etc/motd").read_text() == "welcome12"
    os.truncate(m / "etc/motd", 2)
    os.truncate(m / "etc/motd", 5)
    assert (m / "etc/motd").read_bytes() == b"we\0\0\0"
    with open(m / "hole", "wb") as out:
        out.seek(1 << 30)
        out.write(b"end")
    assert os.stat(m / "hole").st_size == (1 << 30) + 3
    assert os.stat(m / "hole").st_blocks < 1000
    with open(m / "etc/hosts", "w"):
        pass
    assert os.stat(m / "etc/hosts").st_size == 0


def test_a_large_file_and_a_mapped_one(m: Path) -> None:
    data = os.urandom(3 << 20)
    (m / "large").write_bytes(data)
    assert (m / "large").read_bytes() == data
    fd = os.open(m / "large", os.O_RDWR)
    with mmap.mmap(fd, 0) as mapped:
        assert mapped[1 << 20 : (1 << 20) + 9] == data[1 << 20 : (1 << 20) + 9]
        mapped[:3] = b"new"
        mapped.flush()
    os.close(fd)
    assert (m / "large").read_bytes() == b"new" + data[3:]


def test_times(m: Path) -> None:
    path = m / "etc/motd"
    os.utime(path, ns=(5_000_000_001, 6_000_000_002))
    subprocess.run(["touch", "-m", "-d", "@7", path], check=True)
    st = os.stat(path)
    assert (st.st_atime_ns, st.st_mtime_ns) == (5_000_000_001, 7_000_000_000)
    before = time.time() - 1
    os.utime(path)
    assert os.stat(path).st_mtime >= before
    os.utime(m / "etc/link", (8, 8), follow_symlinks=False)
    assert os.lstat(m / "etc/link").st_mtime == 8
    assert os.stat(path).st_mtime != 8
    was = os.stat(m / "open").st_mtime
    (m / "open/x").touch()
    assert os.stat(m / "open").st_mtime > was


def test_attributes_and_owners_are_copied_up_and_changed(m: Path) -> None:
    os.setxattr(m / "etc/motd", "user.a", b"1")
    os.chown(m / "etc/motd", 5, -1)
    os.chmod(m / "etc/motd", 0o4755)
    os.chown(m / "etc/motd", -1, 6)
    st = os.stat(m / "etc/motd")
    assert (st.st_uid, st.st_gid) == (5, 6)
    assert not st.st_mode & stat.S_ISUID  # a change of owner takes it
    assert os.getxattr(m / "etc/motd", "user.a") == b"1"
    assert os.listxattr(m / "etc/motd") == ["user.a"]
    os.removexattr(m / "etc/motd", "user.a")
    assert os.listxattr(m / "etc/motd") == []


def test_sockets_pipes_and_devices(m: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(m)
        try:
            server.bind("sock")
        finally:
            os.chdir(here)
    assert stat.S_ISSOCK(os.stat(m / "sock").st_mode)
    os.mkfifo(m / "pipe")
    os.mknod(m / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (m / "null").write_text("x")
    assert (m / "null").read_text() == ""
    os.rename(m / "pipe", m / "etc/pipe")
    assert stat.S_ISFIFO(os.stat(m / "etc/pipe").st_mode)


def test_odd_names_and_many(m: Path) -> None:
    odd = [b"new\nline", b"\xff\xfe", b" ", b"-rf", b"'\"\\", LONG.encode(), b".wx"]
    for name in odd:
        Path(os.fsdecode(bytes(m) + b"/open/" + name)).touch()
    assert sorted(os.listdir(bytes(m / "open"))) == sorted(odd)
    (m / "many").mkdir()
    for n in range(600):
        (m / f"many/{n}").touch()
    assert len(os.listdir(m / "many")) == 600
    shutil.rmtree(m / "many")
    assert not (m / "many").exists()


def test_ordinary_programs_work(m: Path, shared: Mounted) -> None:
    script = """
    set -e
    cp -a etc etc2 && mv etc2/motd etc2/was && rm -r empty && mkdir empty
    tar -cf all.tar etc etc2 && mkdir out && tar -xf all.tar -C out
    diff -r etc out/etc && sed -i s/local/global/ etc/hosts && grep -q global etc/hosts
    git init -q repo && cd repo && git config user.email a@b && git config user.name a
    echo x > f && git add f && git commit -qm x && git status --porcelain
    """
    script = script.replace("etc/loop", "")
    os.unlink(m / "etc/loop")
    done = subprocess.run(
        ["sh", "-c", script], cwd=m, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert shared.upper()["empty"].opaque


# ------------------------------------------------------------ the command


def said(*words: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "minidocker", "union", *words],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_it_says_what_is_wrong_on_one_line(tmp_path: Path) -> None:
    here = str(tmp_path)
    (tmp_path / "mfusepy.py").write_text("raise ImportError\n")
    for words, status, text in (
        ((here,), 1, "argument"),
        ((here, "xx=/tmp"), 125, '"xx=/tmp" is no branch'),
        ((here, "rw="), 125, '"rw=" is no branch'),
        ((here, f"rw={here}", "rw=/tmp"), 125, "two branches are rw"),
        ((here, "ro=/no/such"), 1, "/no/such: there is no such directory"),
        (("/no/such", f"ro={here}"), 1, "/no/such: there is no such directory"),
        (("--marks", "xx", here, f"ro={here}"), 125, '"xx" is no way'),
    ):
        code, out = said(*words)
        assert (code, "Traceback" in out) == (status, False), out
        assert text in out
    code, out = said(here, f"ro={here}", PYTHONPATH=f"{here}:{ROOT}")
    assert "pip install minidocker[fuse]" in out
    assert code == 1


@pytest.mark.parametrize("end", ["umount", "signal"])
def test_it_serves_in_the_background_until_it_is_ended(
    end: str, tmp_path: Path
) -> None:
    for name in ("a", "m"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/f").write_text("x")
    assert said("-d", f"{tmp_path}/m", f"ro={tmp_path}/a") == (0, "")
    assert os.listdir(tmp_path / "m") == ["f"]
    with pytest.raises(OSError, match="Read-only"):
        (tmp_path / "m/x").touch()
    if end == "umount":
        umount2(f"{tmp_path}/m", UmountFlags(0))
    else:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"{tmp_path}/m".encode() in words:
                os.kill(int(process.name), signal.SIGTERM)
        wait(lambda: code(lambda: os.listdir(tmp_path / "m")) == "ok")
    assert os.listdir(tmp_path / "m") == []


def test_a_layer_of_overlayfs_is_looked_into(tmp_path: Path) -> None:
    for name in ("low", "high", "m"):
        (tmp_path / name).mkdir()
    lay(f"{tmp_path}/low", LOWER, Notation.OVERLAYFS)
    lay(
        f"{tmp_path}/high", {"etc": directory(opaque=True)} | MIDDLE, Notation.OVERLAYFS
    )
    words = [f"wo={tmp_path}/high", f"ro={tmp_path}/low"]
    assert said("-d", "--marks", "overlayfs", f"{tmp_path}/m", *words) == (0, "")
    try:
        assert os.listdir(tmp_path / "m/etc") == []
        assert os.listdir(tmp_path / "m/empty") == []
        assert not (tmp_path / "m/gone").exists()
    finally:
        umount2(f"{tmp_path}/m", UmountFlags(0))
