"""The README's transcript is what one gets."""

import os
import re
import subprocess
import sys
from pathlib import Path


README = Path(__file__).parent.parent.parent / "README.md"


def test_the_transcript_is_what_one_gets(tmp_path: Path) -> None:
    block = next(b for b in README.read_text().split("```") if b.startswith("\n$ "))
    steps = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
    assert len(steps) >= 5
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "here").mkdir()
    code = Path(__file__).parent.parent.parent
    env = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "MINIDOCKER_ROOT": str(tmp_path / "store"),
        "PYTHONPATH": str(code),
    }
    for command, promised in steps:
        done = subprocess.run(
            ["sh", "-c", f"{command} 2>&1"],
            cwd=tmp_path / "here",
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert told(done.stdout) == told(promised), command
    assert promised, "the last command has something to show"


def told(text: str) -> list[str]:
    """Lines without ids, blanks at the end, and the size of this machine's busybox.

    Whom the kernel allows no network is told so once.
    """
    text = re.sub(
        "minidocker: containers have no network here: .*\n(hint: .*\n)?", "", text
    )
    text = re.sub("sha256:[0-9a-f]{64}", "ID", text)
    return [re.sub(r"[\d.]+MB", "N MB", line).rstrip() for line in text.splitlines()]
