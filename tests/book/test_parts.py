"""Each long part of the book begins with a map of it."""

import re
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[2]
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
LONG = [part for part in PARTS if len(part["chapters"]) > 8]


@pytest.mark.parametrize("part", LONG, ids=lambda part: part["caption"])
def test_first_chapter_of_a_part_leads_to_the_others(part: dict) -> None:
    files = [chapter["file"] for chapter in part["chapters"]]
    first = (ROOT / f"{files[0]}.md").read_text()
    title, box = re.search(
        r"^:::\{admonition\} (.*)\n(?s:(.*?))^:::$", first, re.M
    ).groups()
    number, _, name = part["caption"].partition(". ")
    assert title.lower() == f"part {number}: {name}".lower()
    led_to = set(re.findall(r"\]\(([\w-]+)\.md\)", box))
    assert led_to <= {file.removeprefix("book/") for file in files}
    assert len(led_to) > len(files) * 0.8, "a map shows nearly all of its part"
