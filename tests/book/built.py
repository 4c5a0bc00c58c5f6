"""Look at the built pages: `python tests/book/built.py _build/html` prints what is wrong.

A page loads nothing from another host, shows no traceback, no temporary name and no path of
the machine that built it, no cell that scrolls sideways, and no picture that is shrunk
until nobody can read it. With MINIDOCKER_REAL set, as for the book that is published, no
demo may have fallen back: everything was mounted and run.
"""

import os
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path


ROOT = Path(__file__).parents[2]
WIDEST_LINE, WIDEST_PICTURE = 88, 1000  # characters, pixels
LOADS = re.compile(
    r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]*)\""
)
IN_CSS = re.compile(
    r"url\(\s*[\"']?((?:https?:)?//[^)\"']*)|@import\s+[\"'](https?:[^\"']*)"
)
INPUT = re.compile(r'<div class="cell_input.*?<pre>(.*?)</pre>', re.DOTALL)
OUTPUT = re.compile(r'<div class="output.*?<pre>(.*?)</pre>', re.DOTALL)
STDERR = re.compile(r'class="output stderr')
PICTURE = re.compile(r'src="([^"]*_images/[^"]*\.svg)"')
WIDTH = re.compile(r'<svg width="(\d+)pt"')
REAL = bool(os.environ.get("MINIDOCKER_REAL"))
REFUSED = re.compile(r"refused here: .*|overlay refused: .*")
FOR_TOOLS = re.compile(r"  # (type|noqa|fmt):? .*")
TEMPORARY = re.compile(r"/tmp/tmp\w{8}|\bminidocker-[a-z0-9_]{8}\b|overlay-check-\d+")


def text_of(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def faults_of(page: Path) -> Iterator[str]:
    html = page.read_text()
    for found in LOADS.finditer(html):
        if 'rel="canonical"' not in found[0]:
            yield f"loads {found[1]}"
    for cell in map(text_of, INPUT.findall(html)):
        for line in FOR_TOOLS.sub("", cell).splitlines():
            if len(line) > WIDEST_LINE:
                yield f"{len(line)} characters in a line of a cell: {line.strip()}"
    if STDERR.search(html):
        yield "a cell that writes to standard error"
    for output in map(text_of, OUTPUT.findall(html)):
        if "Traceback (most recent call last)" in output:
            yield "a traceback"
        if REAL and (refused := REFUSED.search(output)):
            yield f"a demo that only fell back: {refused[0]}"
        for leaked in (
            *TEMPORARY.findall(output),
            *re.findall(re.escape(f"{ROOT}/"), output),
        ):
            yield f"an output that differs between builds: {leaked}"
    for name in PICTURE.findall(html):
        width = WIDTH.search((page.parent / name).read_text())
        if width and int(width[1]) * 4 / 3 > WIDEST_PICTURE:
            yield f"a picture of {int(width[1]) * 4 // 3} pixels: {name}"


def faults(html: Path) -> Iterator[str]:
    """Yield `page: what is wrong` for every page and style sheet below ``html``."""
    for page in sorted(html.rglob("*.html")):
        for fault in faults_of(page):
            yield f"{page.relative_to(html)}: {fault}"
    for sheet in sorted(html.rglob("*.css")):
        for found in IN_CSS.finditer(sheet.read_text(errors="replace")):
            yield f"{sheet.relative_to(html)}: loads {found[1] or found[2]}"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1])))
    print(*found, sep="\n", end="\n" * bool(found))
    sys.exit(bool(found))
