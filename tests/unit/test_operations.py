"""The model of a union: what is copied up, hidden, and refused."""

import pytest
from branches import BASE, refusal, stack

from minidocker.operations import Union
from minidocker.union import (
    WHITEOUT,
    BranchKind,
    MemoryBranch,
    Node,
    description,
    directory,
    file,
)


def over(
    *lowers: dict[str, Node], kind: BranchKind = BranchKind.WHITEOUT_ABLE
) -> Union:
    return Union(stack(*lowers, kind=kind))


def left(union: Union) -> dict[str, Node]:
    """What the top branch holds; new times left out."""
    found = description(union.branches[0])
    return {path: node.replace(mtime=0) for path, node in found.items()}


def test_writing_copies_up_with_mode_owner_and_the_directories_above() -> None:
    union = over(
        {
            "d": directory(0o750).replace(uid=3),
            "d/f": file("x", 0o640).replace(uid=5, gid=6),
        }
    )
    union.write("/d/f", "new")
    assert left(union) == {
        "d": directory(0o750).replace(uid=3),
        "d/f": file("new", 0o640).replace(uid=5, gid=6),
    }
    assert union.branches[1].get("d/f") == file("x", 0o640).replace(uid=5, gid=6)


def test_copying_up_an_opaque_directory_does_not_copy_its_mark() -> None:
    union = over({"d": directory(opaque=True), "d/f": file()})
    union.chmod("/d", 0o700)
    assert left(union) == {"d": directory(0o700)}
    assert union.readdir("/d") == ["f"]


def test_copy_up_parts_hard_links_and_links_made_above_hold() -> None:
    union = over(BASE)
    union.link("/usr/bin/ls", "/ls")
    union.write("/ls", "both")
    assert union.read("/usr/bin/ls") == b"both"
    assert union.read("/usr/bin/dir") == b"ELF"


def test_a_truncated_file_is_cut_or_filled() -> None:
    union = over(BASE)
    union.truncate("/etc/hosts", 5)
    union.truncate("/etc/motd", 9)
    assert (union.read("/etc/hosts"), union.read("/etc/motd")) == (
        b"local",
        b"welcome\0\0",
    )


def test_deleting_marks_only_what_a_lower_branch_shows() -> None:
    union = over({"etc/motd": WHITEOUT}, BASE)
    union.write("/etc/motd", "")
    union.unlink("/etc/motd")
    union.unlink("/etc/hosts")
    assert left(union) == {"etc": directory(), "etc/hosts": WHITEOUT}


def test_a_directory_made_again_is_opaque_and_empty() -> None:
    union = over(BASE)
    assert refusal(lambda: union.rmdir("/etc")) == "ENOTEMPTY"
    union.unlink("/etc/motd")
    union.unlink("/etc/hosts")
    union.rmdir("/etc")
    assert left(union) == {"etc": WHITEOUT}
    union.mkdir("/etc")
    assert left(union) == {"etc": directory(opaque=True)}
    assert union.readdir("/etc") == []


def test_a_file_is_renamed_and_leaves_a_whiteout() -> None:
    union = over(BASE)
    union.rename("/etc/motd", "/etc/hosts")
    assert left(union) == {
        "etc": directory(),
        "etc/hosts": file("welcome", 0o600),
        "etc/motd": WHITEOUT,
    }


def test_only_a_pure_upper_directory_is_renamed() -> None:
    union = over(BASE)
    assert refusal(lambda: union.rename("/etc", "/x")) == "EXDEV"
    union.mkdir("/d")
    union.write("/d/f", "x")
    union.rename("/d", "/etc/d")
    assert left(union) == {
        "etc": directory(),
        "etc/d": directory(opaque=True),
        "etc/d/f": file("x"),
    }


def test_two_names_of_one_file_stay_when_renamed() -> None:
    union = over(BASE)
    union.link("/etc/motd", "/m")
    union.rename("/etc/motd", "/m")
    assert union.readdir("/") == ["bin", "etc", "m", "usr"]
    assert union.readdir("/etc") == ["hosts", "motd"]


def test_times_change_with_contents_and_names_and_not_with_copy_up() -> None:
    union = over(BASE)
    union.chmod("/etc/motd", 0o644)
    union.setxattr("/etc/hosts", "user.a", b"1")
    found = description(union.branches[0])
    assert {node.mtime for node in found.values()} == {0}
    union.write("/etc/motd", "new")
    union.unlink("/etc/hosts")
    found = description(union.branches[0])
    assert (found["etc"].mtime, found["etc/motd"].mtime) == (None, None)
    union.utime("/etc", 7)
    assert union.lookup("/etc").mtime == 7


def test_attributes_are_set_and_removed_above() -> None:
    union = over({"f": file().replace(xattrs=(("user.a", b"1"),))})
    union.setxattr("/f", "user.b", b"2")
    union.removexattr("/f", "user.a")
    assert union.lookup("/f").xattrs == (("user.b", b"2"),)
    assert union.branches[1].get("f").xattrs == (("user.a", b"1"),)
    assert refusal(lambda: union.removexattr("/f", "user.a")) == "ENODATA"


def test_pipes_and_devices_are_made_and_a_whiteout_is_not() -> None:
    union = over(BASE)
    union.mkfifo("/pipe")
    union.mknod("/null", "c 1 3")
    assert refusal(lambda: union.mknod("/x", "c 0 0")) == "EPERM"
    assert refusal(lambda: union.write("/pipe", "x")) == "ENXIO"
    assert refusal(lambda: union.truncate("/pipe", 0)) == "EINVAL"
    assert refusal(lambda: union.setxattr("/pipe", "user.a", b"")) == "EPERM"


REFUSED: dict[str, tuple[object, ...]] = {
    "mkdir over a name": ("EEXIST", "mkdir", "/bin"),
    "mkdir in nothing": ("ENOENT", "mkdir", "/no/x"),
    "mkdir in a file": ("ENOTDIR", "mkdir", "/etc/motd/x"),
    "symlink over a name": ("EEXIST", "symlink", "x", "/etc"),
    "write to a directory": ("EISDIR", "write", "/etc", ""),
    "read of a directory": ("EISDIR", "read", "/etc"),
    "list of a file": ("ENOTDIR", "readdir", "/etc/motd"),
    "truncate of a directory": ("EISDIR", "truncate", "/etc"),
    "unlink of a directory": ("EISDIR", "unlink", "/etc"),
    "rmdir of a file": ("ENOTDIR", "rmdir", "/etc/motd"),
    "rmdir of the root": ("EBUSY", "rmdir", "/"),
    "link to a directory": ("EPERM", "link", "/etc", "/x"),
    "link over a name": ("EEXIST", "link", "/etc/motd", "/etc/hosts"),
    "rename of the root": ("EBUSY", "rename", "/", "/x"),
    "rename into itself": ("EINVAL", "rename", "/etc", "/etc/x"),
    "rename over an ancestor": ("ENOTEMPTY", "rename", "/etc/motd", "/etc"),
    "rename of a directory over a file": ("ENOTDIR", "rename", "/etc", "/bin"),
    "rename of a file over a directory": ("EISDIR", "rename", "/bin", "/etc"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_kernel_refuses_is_refused_and_leaves_nothing(
    case: tuple[object, ...],
) -> None:
    union = over(BASE)
    code, name, *words = case
    assert refusal(lambda: getattr(union, str(name))(*words)) == code
    assert left(union) == {}


def test_without_a_writable_branch_nothing_is_written() -> None:
    union = Union([MemoryBranch("base", tree=BASE)])
    before = description(union.branches[0])
    for work in (
        lambda: union.write("/new", ""), lambda: union.unlink("/etc/motd"),
        lambda: union.mkdir("/x"),
        lambda: union.chmod("/etc", 0), lambda: union.rename("/etc/motd", "/x"),
        lambda: union.link("/etc/motd", "/x"),
    ):  # fmt: skip
        assert refusal(work) == "EROFS"
    assert description(union.branches[0]) == before
