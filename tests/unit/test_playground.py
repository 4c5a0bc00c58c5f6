"""The playground: what its lines do, and what it shows."""

import pytest

from minidocker.playground import (
    converse,
    film,
    perform,
    play,
    side_by_side,
    trees,
    world,
)


def test_each_command_does_what_its_name_says() -> None:
    union = world()
    for line, answer in (
        ("write /tmp hello world", "ok"), ("cat /tmp", "hello world"),
        ("truncate 5 /tmp", "ok"), ("cat /tmp", "hello"),
        ("ln /tmp /also", "ok"), ("ln -s /tmp /soft", "ok"), ("cat /soft", "hello"),
        ("mkdir /d", "ok"), ("mv /also /d/x", "ok"), ("ls /d", "x"),
        ("chmod 700 /d", "ok"), ("rmdir /d", "Directory not empty: /d"),
        ("rm -r /d", "ok"), ("rm /soft", "ok"), ("rm -r /bin", "ok"),
        ("ls", "etc tmp usr"), ("ls /usr/bin", "dir ls"),
    ):  # fmt: skip
        assert perform(union, line) == answer, line


@pytest.mark.parametrize(
    "line",
    ["mv /x", "chmod x /etc", "truncate big /etc", "rm", "ln -s /x", "mkdir a b"],
)
def test_a_wrong_line_is_told_the_right_one(line: str) -> None:
    assert perform(world(), line).startswith(f"usage: {line.split(maxsplit=1)[0]} ")


def test_an_unknown_line_is_told_what_there_is() -> None:
    for line in ("", "fly /x", "write 'x"):
        assert perform(world(), line).startswith("there are: write, cat, ls")


def test_the_three_trees_stand_side_by_side(capsys: pytest.CaptureFixture) -> None:
    union = play("rm /etc/issue\nwrite /etc/motd x", world())
    shown = trees(union).splitlines()
    assert shown[0].split() == ["lower1", "lower2", "upper", "merged"]
    assert "  issue ✗" in trees(union)
    assert "  motd (upper)" in trees(union)
    assert capsys.readouterr().out.startswith("rm /etc/issue ")
    assert side_by_side({"a": []}) == "a"


def test_a_conversation_shows_what_changed(capsys: pytest.CaptureFixture) -> None:
    lines = iter(["ls /", "mkdir /new", ""])
    converse(world(), lambda _: next(lines))
    out = capsys.readouterr().out
    assert out.count("merged") == 2
    assert "new (upper)" in out


def test_a_film_has_a_picture_before_and_after_each_line() -> None:
    source = film("rm /etc/issue\nmv /etc /x", world()).source
    assert source.count("<TABLE") == 3
    assert source.count("->") == 2
    assert "Invalid cross-device link" in source
