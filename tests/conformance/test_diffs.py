"""apply(diff(a, b)) on a gives b: for any trees, every driver, and other programs."""

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from everydriver import EVERY
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from minidocker.drivers import StorageDriver
from minidocker.errors import IntegrityError
from minidocker.trees import remove_path


pytestmark = pytest.mark.root
EXAMPLES = int(os.environ.get("MINIDOCKER_EXAMPLES", "25"))
if os.environ.get("UML_RUN"):
    EXAMPLES = 10  # guests are slow
BOUNDED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# ------------------------------------------------------------------ what a tree is

Spec = dict[str, object]
Tree = dict[bytes, Spec]
NAMES = [
    b"a", b"b", b"new\nline", b"\xff\xfe", b"x" * 255, b"-rf", b" ", "ü".encode(), b".wx",
    b"a.wh.b", b"back\\slash",
]  # fmt: skip
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
names = st.sampled_from(NAMES)
kinds = st.sampled_from(
    ["file"] * 5
    + ["directory"] * 4
    + ["symlink", "fifo", "char", "block", "hole", "socket"]
)
owners = st.sampled_from([0, 1, 1000, 2**32 - 2])
times = st.sampled_from([0, 1, 10**9, 2**31 + 5, 2**33 + 7])
attributes = st.sampled_from(
    [
        {}, {}, {}, {"user.a": b"1"}, {"user.empty": b"", "user.b": b"=\n\0\xff"},
        {"security.capability": CAPABILITY},
    ]
)  # fmt: skip
contents = st.sampled_from([b"", b"x", b"yy", b"\0" * 600, b"z" * 512, b"long" * 5000])
targets = st.sampled_from([b"a", b"../b", b"/etc", b"\xff\n", b"t" * 300])
devices = st.sampled_from([(1, 3), (7, 9), (0xFFF, 0xFFFFF)])


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    kind = draw(kinds)
    spec: Spec = {"kind": kind, "uid": draw(owners), "gid": draw(owners)}
    spec["mtime"] = draw(times)
    spec["mode"] = draw(st.sampled_from([0o644, 0o755, 0o6711, 0o1777, 0o600, 0]))
    if kind == "symlink":
        spec["to"] = draw(targets)
    elif kind in ("char", "block"):
        spec["device"] = draw(devices)
    elif kind in ("file", "hole"):
        spec["data"] = draw(contents)
        spec["xattrs"] = draw(attributes)
    elif kind == "directory":
        found = draw(attributes)
        spec["xattrs"] = {k: v for k, v in found.items() if k.startswith("user.")}
    return spec


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Some names, some of them in directories; some files have a second name."""
    tree: Tree = {}
    folders = [b""]
    for _ in range(draw(st.integers(0, 14))):
        above, name = draw(st.sampled_from(folders)), draw(names)
        path = above + b"/" + name if above else name
        if path in tree:
            continue
        tree[path] = draw(specs())
        if tree[path]["kind"] == "directory" and path.count(b"/") < 3:
            folders.append(path)
    for path in [p for p, spec in tree.items() if spec["kind"] in ("file", "hole")]:
        other = path[: -len(path.rpartition(b"/")[2])] + b"linked"
        if other not in tree and draw(st.integers(0, 4)) == 0:
            tree[other] = {"kind": "link", "to": path}
    return tree


@st.composite
def changed(draw: st.DrawFn, tree: Tree) -> Tree:
    """Another tree, which has much of the first."""
    fresh = draw(trees())
    result: Tree = {}
    for path, spec in sorted({**fresh, **tree}.items()):
        above = path.rpartition(b"/")[0]
        if above and result.get(above, {}).get("kind") != "directory":
            continue
        kept = spec if draw(st.integers(0, 3)) else fresh.get(path)
        if kept is None:
            continue
        if kept["kind"] == "link" and result.get(kept["to"], {}).get("kind") not in (  # type: ignore[call-overload]
            "file",
            "hole",
        ):
            continue
        again = kept["kind"] == "directory" and draw(st.integers(0, 3)) == 0
        result[path] = {**kept, "again": True} if again else kept
    return result


pairs = trees().flatmap(lambda tree: st.tuples(st.just(tree), changed(tree)))


# ----------------------------------------------------------------- on a disk


def make(root: bytes, path: bytes, spec: Spec) -> None:
    full, kind = root + b"/" + path, spec["kind"]
    if kind == "link":
        os.link(root + b"/" + spec["to"], full)  # type: ignore[operator]
        return
    if kind == "file":
        Path(os.fsdecode(full)).write_bytes(spec["data"])  # type: ignore[arg-type]
    elif kind == "hole":
        with open(full, "wb") as out:
            out.write(b"start")
            out.seek(1 << 20)
            out.write(spec["data"])  # type: ignore[arg-type]
            out.truncate(3 << 20)
    elif kind == "directory":
        os.mkdir(full)
    elif kind == "symlink":
        os.symlink(spec["to"], full)  # type: ignore[arg-type]
    elif kind == "fifo":
        os.mkfifo(full)
    elif kind == "socket":
        os.mknod(full, stat.S_IFSOCK)
    else:
        form = stat.S_IFCHR if kind == "char" else stat.S_IFBLK
        os.mknod(full, form, os.makedev(*spec["device"]))  # type: ignore[misc]
    dress(full, spec)


def dress(full: bytes, spec: Spec) -> None:
    os.chown(full, spec["uid"], spec["gid"], follow_symlinks=False)  # type: ignore[arg-type]
    if spec["kind"] != "symlink":
        os.chmod(full, spec["mode"])  # type: ignore[arg-type]
    wanted = spec.get("xattrs", {})
    if spec["kind"] in ("file", "hole", "directory"):
        for name in os.listxattr(full):
            if name.startswith("user.") and name not in wanted:  # type: ignore[operator]
                os.removexattr(full, name)
        for name, value in wanted.items():  # type: ignore[attr-defined]
            os.setxattr(full, name, value)
    times = (spec["mtime"], spec["mtime"])
    os.utime(full, times, follow_symlinks=False)  # type: ignore[arg-type]


def become(root: str, old: Tree, new: Tree) -> None:
    """Turn a directory that holds one tree into another, as programs would do it."""
    base = os.fsencode(root)
    groups = {spec["to"] for t in (old, new) for spec in t.values() if "to" in spec}
    grouped = {p for t in (old, new) for p, s in t.items() if s["kind"] == "link"}

    def same(path: bytes) -> bool:
        one, other = old.get(path), new.get(path)
        both_directories = one and other and one["kind"] == other["kind"] == "directory"
        if one and other and "again" in other:
            return False  # deleted, and made again
        return bool(both_directories) or (
            one == other and path not in groups and path not in grouped
        )

    for path in sorted(old, reverse=True):
        if not same(path):
            remove_path(os.fsdecode(base + b"/" + path))
    for path, spec in sorted(new.items(), key=lambda i: (i[1]["kind"] == "link", i[0])):
        if not os.path.lexists(base + b"/" + path):
            make(base, path, spec)
    for path, spec in sorted(new.items(), reverse=True):
        if spec["kind"] == "directory":
            dress(base + b"/" + path, spec)


def snapshot(root: str) -> dict[bytes, tuple[object, ...]]:
    """All that there is to know of a tree, but its root, its links, and sockets."""
    base, found = os.fsencode(root), {}
    for here, dirs, files in os.walk(base):
        for name in [*dirs, *files]:
            full = os.path.join(here, name)
            info = os.lstat(full)
            form, what = stat.S_IFMT(info.st_mode), None
            if stat.S_ISSOCK(form):
                continue  # no tar has them
            if stat.S_ISREG(form):
                what = Path(os.fsdecode(full)).read_bytes()
            elif stat.S_ISLNK(form):
                what = os.readlink(full)
            elif not stat.S_ISDIR(form):
                what = info.st_rdev
            mode = 0 if stat.S_ISLNK(form) else info.st_mode
            known = {
                n: os.getxattr(full, n, follow_symlinks=False)
                for n in os.listxattr(full, follow_symlinks=False)
                if n.startswith(("user.", "security.cap"))
                and not n.startswith("user.overlay.")
            }
            found[full[len(base) + 1 :]] = (
                form, mode, info.st_uid, info.st_gid, info.st_mtime_ns, what, known,
            )  # fmt: skip
    return found


def linked(root: str) -> set[frozenset[bytes]]:
    """Which names share an inode."""
    base, groups = os.fsencode(root), {}
    for here, _, files in os.walk(base):
        for name in files:
            full = os.path.join(here, name)
            info = os.lstat(full)
            if info.st_nlink > 1:
                groups.setdefault(info.st_ino, set()).add(full[len(base) + 1 :])
    return {frozenset(group) for group in groups.values()}


def is_given_back(
    wanted: tuple[dict[bytes, tuple[object, ...]], set[frozenset[bytes]]],
    root: str,
    said: set[bytes],
    *,
    empty_attributes: bool = True,
) -> None:
    """A tree is the wanted one. A directory's time counts where the layer has it.

    umoci knows no attributes that are empty; in a PAX header that is none.
    """
    seen = snapshot(root)
    assert seen.keys() == wanted[0].keys()
    for path, now in seen.items():
        was = list(wanted[0][path])
        if stat.S_ISDIR(was[0]) and path not in said:  # type: ignore[arg-type]
            was[4] = now[4]
        if not empty_attributes:
            was[6] = {name: value for name, value in was[6].items() if value}  # type: ignore[attr-defined]
        assert tuple(was) == now, path
    whole = {group for group in wanted[1] if group <= said}
    assert whole <= linked(root)


# --------------------------------------------------------------------- drivers


@pytest.fixture(params=sorted(EVERY))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageDriver]:
    made = EVERY[request.param](str(tmp_path))
    with made.held():
        yield made


def layers_of(
    driver: StorageDriver, old: Tree, new: Tree
) -> tuple[list[bytes], set[bytes], tuple[object, ...]]:
    """Make both trees, one on the other: their tars, what the second says, what it is."""
    for layer in sorted(driver.ids(), reverse=True):
        driver.remove(layer)
    tars = []
    for name, parent, before, after in (("a", None, {}, old), ("b", "a", old, new)):
        driver.create(name, parent)
        with driver.mounted(name, writable=True) as root:
            become(root, before, after)
            seen = snapshot(root), linked(root)
        out = io.BytesIO()
        driver.pack(name, out.write)
        tars.append(out.getvalue())
    said = {os.fsencode(change.path[1:]) for change in driver.changes("b")}
    return tars, said, seen


def applied(driver: StorageDriver, tars: list[bytes]) -> str:
    parent = None
    for number, tar in enumerate(tars):
        layer = f"c{number}"
        driver.create(layer, parent)
        driver.apply(layer, io.BytesIO(tar).read)
        parent = layer
    return str(parent)


@BOUNDED
@given(pair=pairs)
def test_a_difference_applied_gives_the_tree(
    driver: StorageDriver, pair: tuple[Tree, Tree]
) -> None:
    tars, said, wanted = layers_of(driver, *pair)
    again = applied(driver, tars)
    with driver.mounted(again, writable=False) as root:
        is_given_back(wanted, root, said)  # type: ignore[arg-type]
    out = io.BytesIO()
    driver.pack(again, out.write)
    if "socket" not in {spec["kind"] for spec in pair[0].values()}:
        assert out.getvalue() == tars[1]


@BOUNDED
@given(pair=pairs)
def test_every_driver_says_the_same_difference(
    tmp_path: Path, pair: tuple[Tree, Tree]
) -> None:
    made = [EVERY[name](str(tmp_path)) for name in sorted(EVERY)]
    found = [layers_of(driver, *pair)[0] for driver in made]
    assert all(tars == found[0] for tars in found[1:])


HOLES = [
    [(0, 64 << 20)],
    [(1 << 20, 64 << 20), (65 << 20, 1)],
    [(0, 4096), (40 << 20, 5)],
    [(5, 1)],
    [],
]


@pytest.mark.parametrize("data", HOLES)
def test_holes_are_holes_again(
    driver: StorageDriver, data: list[tuple[int, int]]
) -> None:
    """Each pair is where a byte is written, and how much is left out after it."""
    driver.create("a", None)
    with driver.mounted("a", writable=True) as root:
        with open(f"{root}/f", "wb") as out:
            for start, hole in data:
                out.seek(start)
                out.write(b"x")
                out.truncate(start + 1 + hole)
        before = os.stat(f"{root}/f").st_size, Path(root, "f").read_bytes()
    tar = io.BytesIO()
    driver.pack("a", tar.write)
    driver.create("b", None)
    driver.apply("b", io.BytesIO(tar.getvalue()).read)
    with driver.mounted("b", writable=False) as root:
        after = os.stat(f"{root}/f")
        assert (after.st_size, Path(root, "f").read_bytes()) == before
        assert after.st_blocks * 512 < 2 << 20


# ------------------------------------------------------------- other programs


def by_gnu_tar(tars: list[bytes], root: Path) -> None:
    """Unpack layers with GNU tar; what is deleted is read from their names."""
    root.mkdir()
    for data in tars:
        with tarfile.open(fileobj=io.BytesIO(data)) as layer:
            members = [(os.fsencode(m.name), m.isdir()) for m in layer]
        for name, is_directory in members:
            head, _, base = name.rpartition(b"/")
            is_mark = base.startswith(b".wh.")
            full = os.path.join(os.fsencode(root), head, base[4:] if is_mark else base)
            if is_mark or is_directory != os.path.isdir(full) or os.path.islink(full):
                remove_path(os.fsdecode(full))
        words = ["tar", "-C", str(root), "-xpf", "-", "--numeric-owner", "--same-owner"]
        words += ["--xattrs", "--xattrs-include=*", "--exclude=.wh.*"]
        words += ["--delay-directory-restore"]
        done = subprocess.run(words, input=data, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


def by_umoci(tars: list[bytes], root: Path) -> None:
    """Unpack layers with umoci."""
    layout = root.with_suffix(".oci")
    for words in (["init", "--layout", str(layout)], ["new", "--image", f"{layout}:x"]):
        subprocess.run(["umoci", *words], check=True)
    for data in tars:
        file = root.with_suffix(".tar")
        file.write_bytes(data)
        words = ["raw", "add-layer", "--image", f"{layout}:x", str(file)]
        subprocess.run(["umoci", *words], check=True)
    words = ["raw", "unpack", "--image", f"{layout}:x", str(root)]
    subprocess.run(["umoci", *words], check=True)


@settings(BOUNDED, max_examples=12)
@given(pair=pairs)
def test_gnu_tar_gives_the_same_tree(tmp_path: Path, pair: tuple[Tree, Tree]) -> None:
    driver = EVERY["overlay2"](str(tmp_path))
    tars, said, wanted = layers_of(driver, *pair)
    root = tmp_path / "tree"
    try:
        by_gnu_tar(tars, root)
        is_given_back(wanted, str(root), said)  # type: ignore[arg-type]
    finally:
        shutil.rmtree(root)


@settings(BOUNDED, max_examples=6)
@given(pair=pairs)
def test_umoci_gives_the_same_tree(tmp_path: Path, pair: tuple[Tree, Tree]) -> None:
    driver = EVERY["overlay2"](str(tmp_path))
    tars, said, wanted = layers_of(driver, *pair)
    root = tmp_path / "tree"
    try:
        by_umoci(tars, root)
        is_given_back(wanted, str(root), said, empty_attributes=False)  # type: ignore[arg-type]
    finally:
        for path in (root, root.with_suffix(".oci")):
            shutil.rmtree(path, ignore_errors=True)


# ---------------------------------------------------------- the tests can fail

MUTATIONS = {
    "attributes are lost": ("minidocker.unpack.set_xattrs", lambda *_, **__: None),
    "opaque is overlooked": ("minidocker.changes.hides_lowers", lambda *_: False),
    "whiteouts are forgotten": ("minidocker.changes.whiteout", lambda _: b"x.wh"),
    "nodes are not dressed": ("minidocker.unpack.finish_node", lambda *_: None),
}


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_wrong_difference_is_found_out(
    mutation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = EVERY["overlay2"](str(tmp_path))
    monkeypatch.setattr(*mutation)

    @settings(BOUNDED, max_examples=200, phases=[Phase.generate])
    @given(pair=pairs)
    def wrong(pair: tuple[Tree, Tree]) -> None:
        tars, said, wanted = layers_of(driver, *pair)
        with driver.mounted(applied(driver, tars), writable=False) as root:
            is_given_back(wanted, root, said)  # type: ignore[arg-type]

    with pytest.raises((AssertionError, OSError, IntegrityError, ExceptionGroup)):
        wrong()
