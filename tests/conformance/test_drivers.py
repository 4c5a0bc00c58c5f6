"""One suite over every driver: the same layers give the same trees, tars and refusals."""

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from everydriver import EVERY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minidocker.archive import Tally, TarWriter
from minidocker.drivers import DRIVERS, Directory, Mountable, StorageDriver
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    MinidockerError,
    NotFoundError,
    UnsupportedError,
)
from minidocker.headers import SECOND, Entry, Kind, header
from minidocker.overlayfs import MAX_LOWERS, supported


pytestmark = pytest.mark.root
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
Files = list[tuple[Entry, bytes]]


def overlays_work(root: Path) -> bool:
    scratch = root / "scratch"
    scratch.mkdir()
    try:
        supported(str(scratch))
    except (MinidockerError, OSError):
        return False
    return True


@pytest.fixture(params=sorted(EVERY))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageDriver]:
    if request.param == "overlay2" and not overlays_work(tmp_path):
        pytest.skip("the kernel or this user's rights allow no overlay mounts")
    made = EVERY[request.param](str(tmp_path))
    with made.held():
        yield made


@pytest.fixture
def drivers(tmp_path: Path) -> list[StorageDriver]:
    if not overlays_work(tmp_path):
        pytest.skip("the kernel or this user's rights allow no overlay mounts")
    return [EVERY[name](str(tmp_path)) for name in sorted(EVERY)]


def file(name: bytes, body: bytes = b"", **more: object) -> tuple[Entry, bytes]:
    return Entry(name, Kind.FILE, size=len(body), mtime=SECOND, **more), body


def folder(name: bytes, mode: int = 0o755, **more: object) -> tuple[Entry, bytes]:
    return Entry(name, Kind.DIRECTORY, mode, mtime=2 * SECOND, **more), b""


def symlink(name: bytes, to: bytes) -> tuple[Entry, bytes]:
    return Entry(name, Kind.SYMLINK, 0o777, mtime=SECOND, linkname=to), b""


def hard(name: bytes, to: bytes) -> tuple[Entry, bytes]:
    return Entry(name, Kind.HARD_LINK, linkname=to), b""


def node(name: bytes, kind: Kind, major: int, minor: int) -> tuple[Entry, bytes]:
    return Entry(name, kind, 0o600, mtime=SECOND, device=(major, minor)), b""


def tar(files: Files) -> bytes:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for entry, body in files:
        writer.write(header(entry) + body + bytes(-len(body) % 512))
    writer.finish()
    return out.getvalue()


def snapshot(root: str) -> dict[str, tuple[object, ...]]:
    """Everything there is to know about a tree."""
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[int, str] = {}
    for here, dirs, files in os.walk(root):
        dirs.sort()
        for name in (
            ["", *dirs, *sorted(files)] if here == root else [*dirs, *sorted(files)]
        ):
            path = os.path.join(here, name) if name else here
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            what: object = None
            if stat.S_ISREG(kind):
                what = (
                    Path(path).read_bytes(),
                    groups.setdefault(info.st_ino, path[len(root) :]),
                )
            elif stat.S_ISLNK(kind):
                what = os.readlink(path)
            elif not stat.S_ISDIR(kind):
                what = info.st_rdev
            attributes = {
                n: os.getxattr(path, n, follow_symlinks=False)
                for n in os.listxattr(path, follow_symlinks=False)
                if not n.startswith("trusted.overlay.")
            }
            found[path[len(root) :]] = (
                info.st_mode,
                info.st_uid,
                info.st_gid,
                info.st_mtime_ns,
                what,
                attributes,
            )
    return found


def applied(driver: StorageDriver, *layers: Files) -> dict[str, tuple[object, ...]]:
    """The tree that layers give, one on top of the other."""
    parent = None
    for number, files in enumerate(layers):
        driver.create(f"l{number}", parent)
        driver.apply(f"l{number}", io.BytesIO(tar(files)).read)
        parent = f"l{number}"
    with driver.mounted(f"l{len(layers) - 1}", writable=False) as root:
        return snapshot(root)


BASE: Files = [
    folder(b"etc/"), file(b"etc/motd", b"hello"), file(b"etc/passwd", b"root"),
    folder(b"usr/"), folder(b"usr/lib/", 0o700), file(b"usr/lib/libc", b"elf"),
    symlink(b"lib", b"usr/lib"), symlink(b"out", b"/../../../etc"), symlink(b"loop", b"loop"),
    symlink(b"nowhere", b"not/there"), hard(b"also", b"etc/motd"),
    folder(b"deep/"), folder(b"deep/a/", 0o711), folder(b"deep/a/b/"), file(b"deep/a/b/c", b"c"),
    file(b"deep/a/d", b"d"),
]  # fmt: skip


def names(tree: dict[str, tuple[object, ...]]) -> set[str]:
    return {name.lstrip("/") for name in tree if name}


def has(*there: str) -> Callable[[set[str]], bool]:
    return lambda found: set(there) <= found


def lacks(*gone: str) -> Callable[[set[str]], bool]:
    return lambda found: not set(gone) & found


GOOD: dict[str, tuple[Files, Callable[[set[str]], bool]]] = {
    "an absolute name lands in the root": ([file(b"/etc/new", b"x")], has("etc/new")),
    "a link on the way is resolved inside": ([file(b"lib/new", b"x")], has("usr/lib/new")),
    "a link out is resolved inside": ([file(b"out/new", b"x")], has("etc/new")),
    "a link of the same layer too": ([symlink(b"s", b"/etc"), file(b"s/new", b"x")], has("etc/new")),
    "a directory replaces a link": ([folder(b"lib/"), file(b"lib/new")], lacks("usr/lib/new")),
    "a link replaces a directory": ([symlink(b"deep", b"etc")], lacks("deep/a")),
    "a file replaces a directory": ([file(b"deep", b"x")], lacks("deep/a")),
    "a directory replaces a file": ([folder(b"also/"), file(b"also/x")], has("also/x")),
    "a file replaces a link, and is not written through": ([file(b"out", b"x")], has("out")),
    "a file replaces one of two hard links": ([file(b"also", b"other")], has("also", "etc/motd")),
    "a hard link within the layer": ([file(b"a", b"x"), hard(b"b", b"a")], has("a", "b")),
    "a hard link to a lower layer's file": ([hard(b"b", b"/etc/passwd")], has("b")),
    "a hard link to a symbolic link": ([hard(b"b", b"lib")], has("b")),
    "a hard link over a file": ([hard(b"etc/motd", b"etc/passwd")], has("etc/motd")),
    "a whiteout": ([file(b"etc/.wh.motd")], lacks("etc/motd")),
    "a whiteout of a directory": ([file(b".wh.deep")], lacks("deep")),
    "a whiteout of nothing": ([file(b"etc/.wh.not-there"), file(b"no/dir/.wh.x")], lacks("no")),
    "a whiteout through a link": ([file(b"lib/.wh.libc")], lacks("usr/lib/libc")),
    "a whiteout before its name": ([file(b"etc/.wh.motd"), file(b"etc/motd", b"new")], has("etc/motd")),
    "a whiteout after its name": ([file(b"etc/motd", b"new"), file(b"etc/.wh.motd")], has("etc/motd")),
    "opaque first": ([folder(b"deep/"), file(b"deep/.wh..wh..opq"), file(b"deep/new")], lacks("deep/a", "deep/a/d")),
    "opaque last": ([folder(b"deep/"), file(b"deep/new"), file(b"deep/.wh..wh..opq")], lacks("deep/a", "deep/a/d")),
    "opaque, deep inside first": ([file(b"deep/.wh..wh..opq"), file(b"deep/a/b/new")], lambda found: {n for n in found if n.startswith("deep/")} == {"deep/a", "deep/a/b", "deep/a/b/new"}),
    "opaque, deep inside last": ([file(b"deep/a/b/new"), file(b"deep/.wh..wh..opq")], has("deep/a/b/new")),
    "whiteout over an implied directory": ([file(b"deep/a/new"), file(b"deep/.wh.a")], lacks("deep/a/d")),
    "an opaque root": ([file(b"new"), file(b".wh..wh..opq")], lambda found: found == {"new"}),
    "an opaque root first": ([file(b".wh..wh..opq"), file(b"new")], lambda found: found == {"new"}),
    "odd names": ([file(b"a" * 255), file(b"new\nline"), file(b"\xff\xfe")], has("a" * 255, "new\nline", "\udcff\udcfe")),
    "the root's own entry": ([folder(b"./", 0o711)], has("etc")),
    "nodes": ([node(b"pipe", Kind.FIFO, 0, 0), node(b"null", Kind.CHAR, 1, 3), node(b"disk", Kind.BLOCK, 7, 9)], has("pipe", "null", "disk")),
    "owners and set-user-id": ([file(b"su", b"#!", mode=0o6755, uid=1000, gid=2**32 - 2)], has("su")),
    "attributes that are kept": ([file(b"x", b"1", xattrs=((b"security.capability", CAPABILITY), (b"user.mood", b"calm")))], has("x")),
    "attributes that are not": ([folder(b"y", xattrs=((b"trusted.overlay.opaque", b"y"), (b"user.overlay.opaque", b"y")))], has("y")),
    "directory attributes are exact": ([folder(b"deep/a/", 0o1777, uid=5, xattrs=((b"user.a", b"b"),))], has("deep/a/d")),
    "an empty layer": ([], has("etc")),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "expected"), GOOD.values(), ids=GOOD.keys())
def test_both_drivers_give_the_same_tree(
    drivers: list[StorageDriver], layer: Files, expected
) -> None:
    trees = [applied(driver, BASE, layer) for driver in drivers]
    assert trees[0] == trees[1]
    assert expected(names(trees[0]))


@pytest.mark.parametrize(
    "layer", [files for files, _ in GOOD.values()], ids=GOOD.keys()
)
def test_both_drivers_commit_the_same_bytes(
    drivers: list[StorageDriver], layer: Files
) -> None:
    digests, lists = set(), []
    for driver in drivers:
        applied(driver, BASE, layer)
        tally = Tally()
        driver.pack("l1", tally)
        digests.add((tally.digest, driver.size("l1")))
        lists.append(list(driver.changes("l1")))
    assert lists[0] == lists[1]
    assert len(digests) == 1


ORDERS = [
    ("opaque first", "opaque last"),
    ("opaque, deep inside first", "opaque, deep inside last"),
    ("a whiteout before its name", "a whiteout after its name"),
    ("an opaque root", "an opaque root first"),
]


@pytest.mark.parametrize(("one", "other"), ORDERS)
def test_a_markers_place_in_the_archive_is_no_matter(
    drivers, one: str, other: str, tmp_path: Path
) -> None:
    first = applied(drivers[0], BASE, GOOD[one][0])
    again = type(drivers[0])(str(tmp_path / "again"))
    assert applied(again, BASE, GOOD[other][0]) == first


BAD: dict[str, Files] = {
    "climbs": [file(b"../x")],
    "climbs inside": [file(b"a/../../x")],
    "climbs and comes back": [file(b"etc/../x")],
    "twice, by way of a link": [file(b"usr/lib/x"), file(b"lib/x")],
    "directory twice, by way of a link": [folder(b"usr/lib/d/"), folder(b"lib/d/")],
    "directory and then file": [folder(b"d/"), file(b"d")],
    "file and then directory": [file(b"d"), folder(b"d/")],
    "link and then directory": [symlink(b"d", b"etc"), folder(b"d/")],
    "hard link over a file": [file(b"a"), file(b"x"), hard(b"x", b"a")],
    "file over its own directory": [file(b"d/x"), file(b"d")],
    "link over its own directory": [file(b"d/x"), symlink(b"d", b"etc")],
    "below a file": [file(b"etc/motd/x")],
    "below a file of its own": [file(b"f"), file(b"f/x")],
    "through a loop": [file(b"loop/x")],
    "through a link to nowhere": [file(b"nowhere/x")],
    "whiteout twice": [file(b".wh.x"), file(b".wh.x")],
    "hard link to itself": [hard(b"x", b"x")],
    "hard link to itself, below": [hard(b"etc/motd", b"etc/motd")],
    "hard link outside": [hard(b"x", b"../../etc/passwd")],
    "hard link to a later entry": [hard(b"x", b"y"), file(b"y")],
    "hard link to a directory": [hard(b"x", b"etc")],
    "hard link to nothing": [hard(b"x", b"")],
    "symbolic link to nothing": [symlink(b"x", b"")],
    "marker without a name": [file(b"etc/.wh.")],
    "marker of itself": [file(b"etc/.wh..")],
    "marker of the parent": [file(b"etc/.wh...")],
    "aufs's own": [file(b"etc/.wh..wh.plnk")],
    "marker that is a directory": [folder(b"etc/.wh.motd/")],
    "marker with contents": [file(b"etc/.wh.motd", b"x")],
    "below a marker": [file(b".wh.etc/x")],
    "overlay's whiteout": [node(b"etc/motd", Kind.CHAR, 0, 0)],
    "a name of 256 bytes": [file(b"a" * 256)],
    "a path over 4096 bytes": [file(b"/".join([b"a" * 200] * 30))],
    "the root as a file": [file(b".")],
    "the root as a link": [symlink(b"/", b"etc")],
}  # fmt: skip


@pytest.mark.parametrize("layer", BAD.values(), ids=BAD.keys())
def test_a_hostile_layer_is_refused_alike_and_leaves_nothing(
    drivers: list[StorageDriver], layer: Files, tmp_path: Path
) -> None:
    said = set()
    for driver in drivers:
        driver.create("base", None)
        driver.apply("base", io.BytesIO(tar(BASE)).read)
        driver.create("bad", "base")
        with pytest.raises(IntegrityError) as refused:
            driver.apply("bad", io.BytesIO(tar([file(b"before"), *layer])).read)
        said.add(str(refused.value))
        assert driver.ids() == ["base"]
        assert not [p for p in tmp_path.rglob("*") if p.name in ("before", "bad", "x")]
    assert len(said) == 1
    assert "\n" not in said.pop()


def test_implied_directories_have_one_mode_and_one_time(
    drivers: list[StorageDriver],
) -> None:
    for driver in drivers:
        tree = applied(driver, [], [file(b"new/made/f", b"x")])
        for name in ("/new", "/new/made"):
            mode, uid, gid, mtime, *_ = tree[name]
            assert (mode, uid, gid, mtime) == (stat.S_IFDIR | 0o755, 0, 0, 0)


def test_a_truncated_layer_leaves_nothing(driver: StorageDriver) -> None:
    driver.create("a", None)
    with pytest.raises(IntegrityError, match="truncated"):
        driver.apply("a", io.BytesIO(tar(BASE)[:-1024]).read)
    assert driver.ids() == []


def test_a_layer_over_the_limit_leaves_nothing(driver: StorageDriver) -> None:
    driver.create("a", None)
    with pytest.raises(IntegrityError, match="size limit"):
        driver.apply("a", io.BytesIO(tar([file(b"x", bytes(2000))])).read, limit=1999)
    assert driver.ids() == []


SCRIPT = """
set -e
rm also
echo more >> etc/motd
chmod 600 usr/lib/libc
rm -r deep/a
mkdir -p deep/a/fresh && echo n > deep/a/fresh/n
mkdir gone && rmdir gone
echo t > tmp && rm tmp
rm lib && mkdir lib && echo l > lib/l
ln etc/passwd etc/linked
mv nowhere somewhere
touch -r etc/passwd same && chmod 711 deep && chmod 755 deep
setfattr -n user.mood -v calm usr 2>/dev/null || python3 -c 'import os;os.setxattr("usr","user.mood",b"calm")'
mknod pipe p
find . -exec touch -h -d @1000000 {} +
"""


def test_a_program_that_writes_leaves_the_same_layer(
    drivers: list[StorageDriver],
) -> None:
    digests, listings, trees = set(), [], []
    for driver in drivers:
        applied(driver, BASE)
        driver.create("run", "l0")
        with driver.mounted("run", writable=True) as root:
            subprocess.run(["sh", "-c", SCRIPT], cwd=root, check=True)
            seen = snapshot(root)
        out = io.BytesIO()
        tally = Tally(out.write)
        driver.pack("run", tally)
        digests.add(tally.digest)
        listings.append([str(change) for change in driver.changes("run")])
        driver.create("again", "l0")
        driver.apply("again", io.BytesIO(out.getvalue()).read)
        with driver.mounted("again", writable=False) as root:
            trees += [drop_links(seen), drop_links(snapshot(root))]
    assert listings[0] == listings[1]
    assert len(digests) == 1
    assert trees[0] == trees[2]
    for seen, unpacked in (trees[:2], trees[2:]):
        assert seen.keys() == unpacked.keys()
        assert {k: v for k, v in seen.items() if v != unpacked[k]}.keys() <= {""}


def drop_links(tree: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """A tree without which names share an inode: a new name of an old file is a copy."""
    return {
        k: (*v[:4], v[4][0] if isinstance(v[4], tuple) else v[4], v[5])
        for k, v in tree.items()
    }


def test_the_changes_read_as_docker_diff_prints_them(driver: StorageDriver) -> None:
    applied(driver, BASE)
    driver.create("run", "l0")
    with driver.mounted("run", writable=True) as root:
        (Path(root) / "etc/motd").unlink()
        (Path(root) / "etc/new").touch()
        (Path(root) / "usr/lib/libc").write_text("new")
    assert [str(c) for c in driver.changes("run")] == [
        "C /etc", "D /etc/motd", "A /etc/new", "C /usr", "C /usr/lib", "C /usr/lib/libc",
    ]  # fmt: skip


def test_contents_that_share_size_and_time_are_still_a_change(
    driver: StorageDriver,
) -> None:
    applied(driver, BASE)
    driver.create("run", "l0")
    with driver.mounted("run", writable=True) as root:
        path = Path(root) / "etc/passwd"
        before = path.stat()
        path.write_text("toor")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [c.path for c in driver.changes("run")] == ["/etc", "/etc/passwd"]


def test_copied_up_but_unchanged_is_no_change(driver: StorageDriver) -> None:
    applied(driver, BASE)
    driver.create("run", "l0")
    with driver.mounted("run", writable=True) as root:
        os.chmod(f"{root}/etc/passwd", 0o600)
        os.chmod(f"{root}/etc/passwd", 0o644)
        os.close(os.open(f"{root}/usr/lib/libc", os.O_RDWR))
        os.chmod(f"{root}/deep", 0o755)
    assert list(driver.changes("run")) == []


def test_a_file_called_like_a_whiteout_is_refused_aloud(driver: StorageDriver) -> None:
    driver.create("a", None)
    with driver.mounted("a", writable=True) as root:
        (Path(root) / ".wh.x").touch()
    with pytest.raises(IntegrityError, match=r"\.wh\.x"):
        driver.pack("a", lambda data: None)


def test_a_child_sees_the_parent_and_leaves_it_alone(driver: StorageDriver) -> None:
    before = applied(driver, BASE)
    driver.create("child", "l0")
    with driver.mounted("child", writable=True) as root:
        assert snapshot(root) == before
        subprocess.run(["rm", "-r", "etc", "deep"], cwd=root, check=True)
    with driver.mounted("l0", writable=False) as root:
        assert snapshot(root) == before


def test_creating_twice_or_on_nothing_is_refused(driver: StorageDriver) -> None:
    driver.create("a", None)
    with pytest.raises(ConflictError):
        driver.create("a", None)
    with pytest.raises(NotFoundError):
        driver.create("b", "no-such")
    assert driver.ids() == ["a"]


def test_removing_is_idempotent_and_leaves_nothing(
    driver: StorageDriver, tmp_path: Path
) -> None:
    applied(driver, BASE, [file(b"x")])
    for layer in ("l1", "l0", "l0"):
        driver.remove(layer)
    assert driver.ids() == []
    kept = {"data", "metadata", "lock", "watch"}  # a pool's disks, and its locks
    kept |= {"base", "deviceset-metadata", "transaction-metadata"}
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left <= (kept if driver.name == "devicemapper" else set())


def test_a_tree_of_any_depth_is_removed(driver: StorageDriver) -> None:
    driver.create("a", None)
    with driver.mounted("a", writable=True) as root:
        fd = os.open(root, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
    driver.remove("a")
    assert driver.ids() == []


def test_a_view_says_how_to_mount_and_mounts_nothing(driver: StorageDriver) -> None:
    driver.create("a", None)
    view = driver.view("a", writable=True)
    assert isinstance(view, Mountable if driver.name == "devicemapper" else Directory)
    driver.create("b", "a")
    driver.view("b", writable=True, volatile=True)
    driver.sync("b")
    with pytest.raises(NotFoundError):
        driver.view("c", writable=False)


def test_a_volatile_mount_can_be_mounted_again(driver: StorageDriver) -> None:
    driver.create("a", None)
    driver.create("b", "a")
    for _ in range(2):
        with driver.mounted("b", writable=True) as root:
            (Path(root) / "x").touch()


def test_many_layers(driver: StorageDriver) -> None:
    layers = [[file(b"%d" % n), file(b".wh.%d" % (n - 1))] for n in range(100)]
    layers = (
        layers[-20:] if driver.name == "devicemapper" else layers
    )  # guests are slow
    assert names(applied(driver, *layers)) == {"99"}


def test_a_copy_keeps_links_holes_and_devices(tmp_path: Path) -> None:
    vfs = DRIVERS["vfs"](str(tmp_path))
    vfs.create("a", None)
    with vfs.mounted("a", writable=True) as root:
        (Path(root) / "one").write_text("x")
        os.link(f"{root}/one", f"{root}/two")
        with open(f"{root}/hole", "wb") as sparse:
            sparse.seek(1 << 24)
            sparse.write(b"end")
        os.mknod(f"{root}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        before = snapshot(root)
    vfs.create("b", "a")
    with vfs.mounted("b", writable=False) as root:
        assert snapshot(root) == before
        assert os.lstat(f"{root}/hole").st_blocks < 1000
    assert list(vfs.changes("b")) == []


operation = st.tuples(
    st.sampled_from(["write", "mkdir", "rm", "symlink", "chmod", "rename", "link"]),
    st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a"]),
    st.sampled_from(["a", "c", "d/a", "d/c", "f"]),
)


def perform(root: str, step: tuple[str, str, str]) -> None:
    """Do one thing to a tree, if it can be done."""
    what, path, other = step
    full, there = f"{root}/{path}", f"{root}/{other}"
    try:
        if what == "write":
            if not os.path.lexists(full) or os.lstat(full).st_nlink == 1:
                Path(full).write_text(other)
        elif what == "mkdir":
            os.mkdir(full)
        elif what == "rm":
            subprocess.run(["rm", "-rf", full], check=False, stderr=subprocess.DEVNULL)
        elif what == "symlink":
            os.symlink(other, full)
        elif (
            what == "chmod"
            and (os.path.isdir(full) or os.lstat(full).st_nlink == 1)
            and not os.path.islink(full)
        ):
            os.chmod(full, 0o700)
        elif what == "rename" and not os.path.isdir(full):
            os.rename(full, there)
        elif what == "link" and not os.path.islink(full):
            os.link(full, there)
    except OSError:
        pass


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(below=st.lists(operation, max_size=12), above=st.lists(operation, max_size=12))
def test_any_writes_give_the_same_layer_and_it_gives_the_tree_back(
    drivers, below, above
) -> None:
    digests, trees = [], []
    for driver in drivers:
        for layer in driver.ids():
            driver.remove(layer)
        driver.create("low", None)
        driver.create("high", "low")
        driver.remove("high")
        with driver.mounted("low", writable=True) as root:
            for step in below:
                perform(root, step)
            settle_times(root)
        driver.create("high", "low")
        with driver.mounted("high", writable=True) as root:
            for step in above:
                perform(root, step)
            settle_times(root)
            trees.append(drop_links(snapshot(root)))
        out = io.BytesIO()
        driver.pack("high", out.write)
        digests.append(out.getvalue())
        driver.create("again", "low")
        driver.apply("again", io.BytesIO(out.getvalue()).read)
        with driver.mounted("again", writable=False) as root:
            trees.append(drop_links(snapshot(root)))
    assert digests[0] == digests[1]
    assert trees[0] == trees[1] == trees[2] == trees[3]


def settle_times(root: str) -> None:
    for here, dirs, files in os.walk(root):
        for name in [".", *files, *dirs]:
            os.utime(f"{here}/{name}", (9, 9), follow_symlinks=False)


def test_pythons_tarfile_reads_a_layer(driver: StorageDriver) -> None:
    applied(driver, BASE, [file(b"etc/.wh.motd"), file(b"new", b"body")])
    out = io.BytesIO()
    driver.pack("l1", out.write)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as layer:
        assert layer.getnames() == ["etc", "etc/.wh.motd", "new"]


def test_as_many_layers_as_the_kernel_joins(tmp_path: Path) -> None:
    driver = DRIVERS["overlay2"](str(tmp_path))
    parent = None
    for number in range(MAX_LOWERS + 1):
        driver.create(f"l{number}", parent)
        parent = f"l{number}"
        (Path(driver.tree(parent)) / f"{number}").touch()  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match="500 layers"):
        driver.create("too-many", parent)
    for writable in (True, False):
        with driver.mounted(str(parent), writable=writable) as root:
            assert len(os.listdir(root)) == MAX_LOWERS + 1
    assert driver.ids() == sorted(f"l{n}" for n in range(MAX_LOWERS + 1))
