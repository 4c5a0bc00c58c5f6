"""The look at the built pages notices what it is there for."""

import sys
from pathlib import Path

import pytest


sys.path.insert(0, str(Path(__file__).parent))
from built import ROOT, faults


PAGE = """<html><head><link rel="stylesheet" href="../_static/cells.css" /></head>
<body><a href="https://example.org/">a link may lead anywhere</a>
<div class="cell_input docutils container"><pre>{source}</pre></div>
<div class="output text_plain highlight"><pre>{output}</pre></div>
<img alt="" src="../_images/one.svg" />{more}</body></html>
"""
PICTURE = '<?xml version="1.0"?><svg width="{width}pt" height="10pt"></svg>'


def book(
    tmp_path: Path,
    source: str = "x = 1",
    output: str = "1",
    more: str = "",
    width: int = 300,
) -> Path:
    for name in ("book", "_images", "_static"):
        (tmp_path / name).mkdir()
    page = PAGE.format(source=source, output=output, more=more)
    (tmp_path / "book/one.html").write_text(page)
    (tmp_path / "_images/one.svg").write_text(PICTURE.format(width=width))
    (tmp_path / "_static/cells.css").write_text("a { background: url(local.png) }")
    return tmp_path


def test_a_page_that_is_as_it_should_be(tmp_path: Path) -> None:
    assert list(faults(book(tmp_path))) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            {"more": '<script async src="https://cdn.example/x.js"></script>'},
            "loads https://cdn",
        ),
        (
            {"more": '<link rel="stylesheet" href="//fonts.example/f.css">'},
            "loads //fonts",
        ),
        ({"source": "x = " + "1" * 90}, "94 characters"),
        ({"output": "Traceback (most recent call last):\n  File"}, "a traceback"),
        ({"output": "in /tmp/tmpab12_xyz/store"}, "/tmp/tmpab12_xyz"),
        ({"output": f"{ROOT}/book/010-errors.md"}, str(ROOT)),
        ({"width": 900}, "1200 pixels"),
        (
            {"more": '<div class="output stderr"><pre>Warning</pre></div>'},
            "standard error",
        ),
    ],
)
def test_damage_is_noticed(tmp_path: Path, damage: dict, said: str) -> None:
    (found,) = faults(book(tmp_path, **damage))
    assert found.startswith("book/one.html: ")
    assert said in found


def test_a_demo_that_fell_back_is_noticed_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = book(tmp_path, output="refused here: unshare(CLONE_NEWNS) = -1 EPERM")
    monkeypatch.setattr("built.REAL", False)
    assert list(faults(pages)) == []
    monkeypatch.setattr("built.REAL", True)
    assert "only fell back: refused here: unshare" in next(faults(pages))


def test_a_font_of_another_host_is_noticed(tmp_path: Path) -> None:
    (book(tmp_path) / "_static/x.css").write_text(
        "src: url('https://fonts.example/a.woff')"
    )
    assert list(faults(tmp_path)) == [
        "_static/x.css: loads https://fonts.example/a.woff"
    ]
