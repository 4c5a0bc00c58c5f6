"""The model of a union: what is seen, copied up, hidden and written down."""

import doctest
import errno
from collections.abc import Callable

import pytest

from minidocker import union as module
from minidocker.union import (
    WHITEOUT,
    Branch,
    BranchKind,
    Kind,
    Node,
    Notation,
    Union,
    description,
    directory,
    file,
    link_to,
    on_disk,
    symlink_to,
    visible,
)


BASE: dict[str, Node] = {
    "etc/hosts": file("localhost"),
    "etc/motd": file("welcome", 0o600),
    "usr/bin/ls": file("ELF", 0o755),
    "usr/bin/dir": link_to("usr/bin/ls"),
    "bin": symlink_to("usr/bin"),
}


def over(
    *lowers: dict[str, Node], kind: BranchKind = BranchKind.WHITEOUT_ABLE
) -> Union:
    return Union(
        [
            Branch("top", BranchKind.READ_WRITE),
            *(Branch("low", kind, t) for t in lowers),
        ]
    )


def left(union: Union) -> dict[str, Node]:
    return description(union.branches[0])


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as why:
        return errno.errorcode[why.errno or 0]
    return "nothing"


def test_docstrings_tell_the_truth() -> None:
    assert doctest.testmod(module).failed == 0


def test_a_description_and_its_branch_are_the_same() -> None:
    assert description(Branch("", tree=description(Branch("", tree=BASE)))) == {
        "bin": symlink_to("usr/bin"), "etc": directory(),
        "etc/hosts": file("localhost"),
        "etc/motd": file("welcome", 0o600), "usr": directory(), "usr/bin": directory(),
        "usr/bin/dir": file("ELF", 0o755), "usr/bin/ls": link_to("usr/bin/dir"),
    }  # fmt: skip


def test_the_topmost_name_is_seen_and_directories_merge() -> None:
    union = over({"etc/motd": file("above"), "etc/issue": file()}, BASE)
    assert union.read("/etc/motd") == b"above"
    assert union.readdir("/etc") == ["hosts", "issue", "motd"]


def test_a_whiteout_hides_and_a_name_above_it_is_back() -> None:
    assert over({"etc/motd": WHITEOUT}, BASE).readdir("/etc") == ["hosts"]
    assert over({"etc/motd": file()}, {"etc/motd": WHITEOUT}, BASE).readdir("/etc") == [
        "hosts",
        "motd",
    ]


def test_a_plain_read_only_branch_has_no_marks() -> None:
    marks = {"etc/motd": WHITEOUT, "usr": directory(opaque=True)}
    assert over(marks, BASE, kind=BranchKind.READ_ONLY).readdir("/etc") == [
        "hosts",
        "motd",
    ]
    assert over(marks, BASE, kind=BranchKind.READ_ONLY).readdir("/usr") == ["bin"]
    assert over(marks, BASE).readdir("/usr") == []


def test_a_file_between_two_directories_ends_the_merging() -> None:
    layers = [{"d/top": file()}, {"d": file("between")}, {"d/low": file()}]
    assert over(*layers).readdir("/d") == ["top"]
    assert over(*layers[1:]).read("/d") == b"between"


def test_visible_says_which_branches_count() -> None:
    branches = [
        Branch(str(n), BranchKind.WHITEOUT_ABLE, t)
        for n, t in enumerate([{}, {"a": directory(opaque=True)}, {"a": directory()}])
    ]
    assert visible("a", branches) == [branches[1]]
    assert visible("a", branches[2:]) == [branches[2]]
    assert visible("b", branches) == []


def test_only_the_top_branch_may_be_writable() -> None:
    with pytest.raises(ValueError, match="only the top branch"):
        Union([Branch("a"), Branch("b", BranchKind.READ_WRITE)])


def test_links_are_followed_in_the_union() -> None:
    union = over(
        {"usr/bin/sh": file("sh")},
        BASE | {"up": symlink_to("bin/../../etc"), "abs": symlink_to("/etc/motd")},
    )
    assert union.read("/bin/sh") == b"sh"
    assert union.readdir("/up") == ["hosts", "motd"]
    assert union.read("/abs") == b"welcome"
    assert union.lookup("/bin", follow=False).kind is Kind.SYMLINK


def test_a_loop_of_links_ends() -> None:
    assert (
        refusal(lambda: over({"a": symlink_to("b"), "b": symlink_to("a")}).read("/a"))
        == "ELOOP"
    )


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
    union = Union([Branch("base", tree=BASE)])
    before = description(union.branches[0])
    for work in (
        lambda: union.write("/new", ""), lambda: union.unlink("/etc/motd"),
        lambda: union.mkdir("/x"),
        lambda: union.chmod("/etc", 0), lambda: union.rename("/etc/motd", "/x"),
        lambda: union.link("/etc/motd", "/x"),
    ):  # fmt: skip
        assert refusal(work) == "EROFS"
    assert description(union.branches[0]) == before


def test_an_error_names_the_path() -> None:
    with pytest.raises(FileNotFoundError) as refused:
        over(BASE).read("/etc/no")
    assert refused.value.filename == "/etc/no"


def test_marks_on_disk_in_both_notations() -> None:
    marks = {
        "a": WHITEOUT,
        "d": directory(opaque=True),
        "d/b": WHITEOUT,
        "d/l": symlink_to("x"),
        "d/f": file(),
    }
    branch = Branch("", BranchKind.READ_WRITE, marks)
    assert on_disk(branch, Notation.OVERLAYFS) == [
        "c a  0:0", 'd d  trusted.overlay.opaque="y"', "c d/b  0:0", "- d/f", "l d/l",
    ]  # fmt: skip
    assert on_disk(branch, Notation.AUFS) == [
        "- .wh.a", "d d", "- d/.wh..wh..opq", "- d/.wh.b", "- d/f", "l d/l",
    ]  # fmt: skip
