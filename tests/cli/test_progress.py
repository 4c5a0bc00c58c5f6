"""What a build shows: on a terminal it is drawn, everywhere else it is lines."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.store import Store


FIVE = "for n in 1 2 3 4 5 6 7 8 9; do echo line $n; done; sleep 0.4"


@pytest.fixture
def context(tmp_path: Path) -> Callable[[str], str]:
    def write(dockerfile: str) -> str:
        where = tmp_path / "context"
        where.mkdir(exist_ok=True)
        (where / "Dockerfile").write_text(dockerfile)
        return str(where)

    return write


def on_terminal(store: Store, *words: str, **env: str) -> tuple[int, str]:
    """Run a command on a terminal of 80 columns; its status, and all that it drew."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 80, 0, 0))
    process = subprocess.Popen(
        store.argv(*words),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", **env},
    )
    os.close(theirs)
    drawn = b""
    try:
        while data := os.read(ours, 1 << 16):
            drawn += data
    except OSError:  # the last descriptor of the other end is closed
        pass
    os.close(ours)
    return process.wait(60), drawn.decode(errors="replace")


def screen(drawn: str) -> list[str]:
    """What is on the terminal at the end: the codes that a display uses are obeyed."""
    rows, at = [""], 0
    codes = re.compile(
        r"\x1b\[(\d*)([A-Za-z])|\x1b\[\?\d+[hl]|(\r)|(\n)|([^\x1b\r\n]+)"
    )
    for found in codes.finditer(drawn):
        number, letter, back, newline, text = found.groups()
        if letter == "A":
            at = max(0, at - int(number or 1))
        elif letter == "K":
            rows[at] = ""
        elif newline:
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif text and not back:
            rows[at] += text
    return [row.rstrip() for row in rows if row.strip()]


def test_a_terminal_shows_the_step_that_runs_and_keeps_one_line_of_each(
    store: Store, context: Callable[[str], str]
) -> None:
    path = context(f"FROM small:v1\nENV A=1\nRUN {FIVE}\n")
    status, drawn = on_terminal(store, "build", "--no-cache", "-t", "shown", path)
    assert status == 0
    for number in (4, 9):
        assert f"| line {number}" in drawn
    rows = screen(drawn)
    assert [row.split()[0] for row in rows[:3]] == ["1/3", "2/3", "3/3"]
    assert re.search(r"RUN for n in .* 0\.\d s$", rows[2])
    assert rows[3].startswith("Successfully built ")
    assert rows[4:] == ["Successfully tagged shown:latest"]
    status, drawn = on_terminal(store, "build", path)
    assert [row.split()[-3] for row in screen(drawn)[1:3]] == ["cached", "cached"]


def test_a_step_that_fails_shows_what_it_printed(
    store: Store, context: Callable[[str], str]
) -> None:
    command = r"printf '\033[2J\0331mred\n'; echo part; printf 'no end'; exit 3"
    path = context(f"FROM small:v1\nRUN {command}\n")
    status, drawn = on_terminal(store, "build", "--no-cache", path)
    assert status == 3
    rows = screen(drawn)
    assert "failed" in rows[1]
    assert [row.strip() for row in rows[2:5]] == ["| mred", "| part", "| no end"]
    assert rows[5].startswith("minidocker: Dockerfile:2: The command")
    assert "\x1b[2J" not in drawn


def test_a_miss_says_its_reason_below_its_step(
    store: Store, context: Callable[[str], str]
) -> None:
    store.says(
        "build", context("FROM small:v1\nARG A\nRUN true $A\n"), "--build-arg", "A=1"
    )
    path = context("FROM small:v1\nARG A\nRUN true $A\n")
    _, drawn = on_terminal(store, "build", "--build-arg", "A=2", path)
    assert "       not cached: argument A was 1, now 2" in screen(drawn)


@pytest.mark.parametrize("words", [("--progress", "plain"), ("--shell-on-error",)])
def test_a_terminal_gets_lines_where_they_are_asked_for(
    store: Store, context: Callable[[str], str], words: tuple[str, ...]
) -> None:
    _, drawn = on_terminal(store, "build", *words, context("FROM small:v1\nUSER 1\n"))
    assert drawn.startswith("Step 1/2 : FROM small:v1\r\n ---> ")


def test_no_color_means_lines_and_a_pipe_always_does(
    store: Store, context: Callable[[str], str]
) -> None:
    path = context("FROM small:v1\nUSER 1\n")
    _, drawn = on_terminal(store, "build", path, NO_COLOR="1")
    assert drawn.startswith("Step 1/2 ")
    assert store.says("build", "--progress", "rich", path).startswith("Step 1/2 ")
