"""The README says what is true."""

import re
from pathlib import Path

import yaml

from minidocker.cli import every_command


COMMANDS = every_command()
ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_each_part_of_the_book_has_a_row_that_names_chapters_of_its_own() -> None:
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    rows = [line.split(" | ") for line in README.splitlines() if "](book/" in line]
    rows = [row for row in rows if len(row) == 3]
    assert [row[0][2:] for row in rows] == [part["caption"] for part in parts]
    for row, part in zip(rows, parts, strict=True):
        own = [chapter["file"] for chapter in part["chapters"]]
        named = re.findall(r"\[([a-z-]+)\]\((\S+)\.md\)", row[2])
        assert 1 <= len(named) <= 8, "a few to begin with; all are on the first page"
        assert [file for _, file in named] == [f for f in own if f[9:] in dict(named)]


def test_links_lead_to_files() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        for link in re.findall(r"\]\(([^):#]+)", text):
            assert (ROOT / link).is_file(), f"{page}: {link}"


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
