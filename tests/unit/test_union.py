"""The model of a union: what is seen."""

import doctest

import pytest
from branches import BASE, refusal, stack

from minidocker import union as module
from minidocker.union import (
    WHITEOUT,
    BranchKind,
    Kind,
    Lookup,
    MemoryBranch,
    Node,
    Place,
    description,
    directory,
    file,
    link_to,
    picture,
    symlink_to,
    visible,
)


def over(
    *lowers: dict[str, Node], kind: BranchKind = BranchKind.WHITEOUT_ABLE
) -> Lookup:
    return Lookup(stack(*lowers, kind=kind))


def test_docstrings_tell_the_truth() -> None:
    assert doctest.testmod(module).failed == 0


def test_a_description_and_its_branch_are_the_same() -> None:
    assert description(MemoryBranch("", tree=description(MemoryBranch("", tree=BASE)))) == {
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


def test_visible_says_which_places_count() -> None:
    trees = [{}, {"a": directory(opaque=True)}, {"a": directory()}]
    branches = [
        MemoryBranch(str(n), BranchKind.WHITEOUT_ABLE, t) for n, t in enumerate(trees)
    ]
    roots = [Place(branch, "") for branch in branches]
    assert visible("a", roots) == [Place(branches[1], "a")]
    assert visible("a", roots[2:]) == [Place(branches[2], "a")]
    assert visible("b", roots) == []


def test_a_redirect_leads_below_under_another_name() -> None:
    moved = {
        "near": directory(redirect="etc"),
        "usr/far": directory(redirect="/etc"),
        "usr/lost": directory(redirect="/no/such"),
    }
    union = over(moved, BASE)
    assert union.readdir("/near") == ["hosts", "motd"]
    assert union.read("/usr/far/hosts") == b"localhost"
    assert union.readdir("/usr/lost") == []
    assert union.readdir("/usr") == ["bin", "far", "lost"]
    assert over(moved, BASE, kind=BranchKind.READ_ONLY).readdir("/near") == []


def test_redirects_lead_on_from_layer_to_layer() -> None:
    union = over(
        {"c": directory(redirect="b")}, {"b": directory(redirect="/etc")}, BASE
    )
    assert union.readdir("/c") == ["hosts", "motd"]
    assert [place.path for place in union.stack("c")] == ["c", "b", "etc"]


def test_only_the_top_branch_may_be_writable() -> None:
    with pytest.raises(ValueError, match="only the top branch"):
        Lookup([MemoryBranch("a"), MemoryBranch("b", BranchKind.READ_WRITE)])


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


def test_an_error_names_the_path() -> None:
    with pytest.raises(FileNotFoundError) as refused:
        over(BASE).read("/etc/no")
    assert refused.value.filename == "/etc/no"


def test_the_picture_shows_each_paths_winner() -> None:
    drawn = picture(over({"etc/motd": WHITEOUT, "a<b": file()}, BASE)).source
    assert '<TD BGCOLOR="#eeeeee">motd</TD>' in drawn
    assert '<TD BGCOLOR="#eeeeee">motd ✗</TD>' in drawn
    assert '<TD BGCOLOR="#cfe8cf">hosts</TD>' in drawn
    assert '<TD BGCOLOR="#b7d3f2">etc/hosts</TD>' in drawn
    assert "a&lt;b" in drawn
