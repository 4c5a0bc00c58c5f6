"""One branch in two encodings, in memory and on a disk."""

import os
from pathlib import Path

import pytest

from minidocker.encodings import DiskBranch, Notation, on_disk
from minidocker.errors import UnsupportedError
from minidocker.operations import Union
from minidocker.union import (
    WHITEOUT,
    BranchKind,
    MemoryBranch,
    Node,
    description,
    directory,
    file,
    link_to,
    symlink_to,
)


def test_marks_on_disk_in_both_notations() -> None:
    marks = {
        "a": WHITEOUT,
        "d": directory(opaque=True),
        "d/b": WHITEOUT,
        "d/l": symlink_to("x"),
        "d/f": file(),
    }
    branch = MemoryBranch("", BranchKind.READ_WRITE, marks)
    assert on_disk(branch, Notation.OVERLAYFS) == [
        "c a  0:0", 'd d  trusted.overlay.opaque="y"', "c d/b  0:0", "- d/f", "l d/l",
    ]  # fmt: skip
    assert on_disk(branch, Notation.AUFS) == [
        "- .wh.a", "d d", "- d/.wh..wh..opq", "- d/.wh.b", "- d/f", "l d/l",
    ]  # fmt: skip


MINE = {"uid": os.geteuid(), "gid": os.getegid()}
TREE: dict[str, Node] = {
    "a": WHITEOUT,
    "d": directory(0o700, opaque=True).replace(mtime=5, **MINE),
    "d/b": WHITEOUT,
    "d/f": file("x", 0o640).replace(mtime=6, xattrs=(("user.a", b"1"),), **MINE),
    "d/l": symlink_to("x").replace(mtime=7, **MINE),
    "d/two": link_to("d/f"),
}
# A user may make no trusted attribute; the others work for everybody.
NOTATIONS = [n for n in Notation if n is not Notation.OVERLAYFS or not os.geteuid()]


@pytest.mark.parametrize("notation", NOTATIONS)
def test_what_is_written_is_read(notation: Notation, tmp_path: Path) -> None:
    branch = DiskBranch("", BranchKind.READ_WRITE, str(tmp_path), notation)
    branch.describe(TREE)
    for path, node in reversed(TREE.items()):
        if node.mtime and path in ("d",):
            branch.change(path, mtime=node.mtime)
    assert description(branch) == TREE


def test_a_redirect_is_an_attribute_and_nothing_in_aufs(tmp_path: Path) -> None:
    tree = {"d": directory(redirect="/x").replace(**MINE)}
    assert on_disk(MemoryBranch("", tree=tree), Notation.USERXATTR) == [
        'd d  user.overlay.redirect="/x"'
    ]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one = DiskBranch("", BranchKind.READ_WRITE, f"{tmp_path}/one", Notation.USERXATTR)
    one.describe(tree)
    assert description(one) == tree
    other = DiskBranch("", BranchKind.READ_WRITE, f"{tmp_path}/other", Notation.AUFS)
    with pytest.raises(UnsupportedError):
        other.describe(tree)


@pytest.mark.parametrize("notation", NOTATIONS)
def test_a_copy_up_on_the_disk_is_whole_and_dates_nothing(
    notation: Notation, tmp_path: Path
) -> None:
    for name in ("low", "up"):
        (tmp_path / name).mkdir()
    low = DiskBranch("low", BranchKind.WHITEOUT_ABLE, f"{tmp_path}/low", notation)
    low.describe(TREE)
    low.change("d", mtime=5)
    up = DiskBranch("up", BranchKind.READ_WRITE, f"{tmp_path}/up", notation)
    union = Union([up, low])
    union.chmod("/d/f", 0o600)
    assert description(up) == {
        "d": TREE["d"].replace(opaque=False),
        "d/f": TREE["d/f"].replace(mode=0o600),
    }
    union.rename("/d/f", "/d/two")
    assert union.readdir("/d") == ["l", "two"]
    union.unlink("/d/two")
    assert union.readdir("/d") == ["l"]
    union.write("/d/two", "new")
    assert union.readdir("/d") == ["l", "two"]
    assert union.read("/d/two") == b"new"


def test_aufs_takes_its_own_names_from_nobody(tmp_path: Path) -> None:
    branch = DiskBranch("", BranchKind.READ_WRITE, str(tmp_path), Notation.AUFS)
    union = Union([branch])
    for refused in (
        lambda: union.write("/.wh.x", ""), lambda: union.mkdir("/.wh..wh..opq"),
        lambda: union.symlink("x", "/.wh."),
    ):  # fmt: skip
        with pytest.raises(PermissionError):
            refused()
    assert os.listdir(tmp_path) == []
    (tmp_path / ".wh..wh.plnk").touch()
    (tmp_path / ".wh.gone").touch()
    assert branch.children("") == ["gone"]
    assert union.readdir("/") == []


def test_a_name_counts_that_has_a_whiteout_beside_it(tmp_path: Path) -> None:
    (tmp_path / ".wh.both").touch()
    (tmp_path / "both").write_text("x")
    branch = DiskBranch("", BranchKind.READ_WRITE, str(tmp_path), Notation.AUFS)
    assert Union([branch]).read("/both") == b"x"
