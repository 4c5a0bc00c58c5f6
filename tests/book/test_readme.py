"""The README says what is true."""

import re
from pathlib import Path

from minidocker.cli import every_command
from minidocker.tangle import chapters


COMMANDS = every_command()
ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_the_picture_of_the_floors_has_every_chapter_in_order() -> None:
    block = next(b for b in README.split("```") if "conventions" in b)
    floors = [
        re.sub(r"\(.*?\)", "", line[17:]).split() for line in block.strip().splitlines()
    ]
    named = [name for floor in reversed(floors) for name in floor]
    assert named == [pair.chapter.stem[4:] for pair in chapters(ROOT)]


def test_every_command_that_works_is_named() -> None:
    named = set(re.findall(r"[a-z]+", README.split("## How fast")[0]))
    words = {word for command in COMMANDS for word in command.split()}
    assert words - {"version", "completion"} <= named


def test_what_is_missing_is_missing() -> None:
    rows = [line.split("|") for line in README.splitlines() if line.count("|") == 3]
    missing = [word for row in rows[2:] for word in re.findall(r"`([a-z ]+)`", row[2])]
    words = {word for text in missing for word in text.split()} - {"devicemapper"}
    assert len(words) > 3
    assert not words & set(COMMANDS)
