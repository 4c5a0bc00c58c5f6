"""The scripts of completion, as the shell reads them."""

import subprocess

import pytest

from minidocker.completion import completion
from minidocker.flags import Command, Flag, Takes


FLAGS = (
    Flag("detach", "", "d"),
    Flag("tty", "", "t"),
    Flag("name", "", "n", Takes.TEXT),
)
RUN = Command("run", "IMAGE", "", lambda given: 0, FLAGS, least=1, greedy=True)
SHELL = Command("completion", "bash|zsh|fish", "Complete", lambda given: 0)
LS = Command("ls", "", "List", lambda given: 0, (Flag("all", "", "a"),))


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("run --na", "--name"),
        ("r", "run"),
        ("im", "image"),
        ("image l", "ls"),
        ("image ls --a", "--all"),
        ("run --det", "--detach"),
        ("--root /x ru", "run"),
        ("--root = /x image l", "ls"),
        ("run -t --na", "--name"),
        ("--root /etc/host.", "/etc/host.conf"),
        ("run x /etc/host.", "/etc/host.conf"),
        ("completion f", "fish"),
        ("nonsense --x", ""),
    ],
)
def test_bash_completes_commands_groups_and_flags(typed: str, offered: str) -> None:
    words = typed.split()
    commands = {"run": RUN, "ls": LS, "completion": SHELL}
    script = completion(commands, "bash", {"image ls": ("ls",)}) + (
        f"\nCOMP_WORDS=(minidocker {typed}) COMP_CWORD={len(words)}; _minidocker"
        '; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout == f"{offered}\n"
