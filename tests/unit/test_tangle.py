"""The tangle command's own behaviour; every chapter is tested in tests/book."""

import doctest
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker import tangle as module
from minidocker.errors import IntegrityError, NotFoundError
from minidocker.tangle import Mode, carry_back, cells, main, module_text, tangle


CELL = "```{code-cell} ipython3\n"
CHAPTER = f"# Two\n\n{CELL}two = 2\n```\n\n{CELL}:tags: [demo]\n\nprint(two)\n```\n"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book").mkdir()
    (tmp_path / "minidocker").mkdir()
    (tmp_path / "book/02-two.md").write_text(CHAPTER)
    return tmp_path


def test_doctests_hold():
    assert doctest.testmod(module).failed == 0


def test_a_module_has_the_package_cells_and_no_demos(book: Path):
    assert tangle(book) == 1
    assert tangle(book) == 0
    text = (book / "minidocker/two.py").read_text()
    assert "two = 2" in text
    assert "print" not in text


def test_check_shows_the_difference_and_writes_nothing(book: Path, capsys):
    tangle(book)
    (book / "minidocker/two.py").write_text("two = 3\n")
    assert tangle(book, Mode.CHECK) == 1
    assert "-two = 3" in capsys.readouterr().out
    assert (book / "minidocker/two.py").read_text() == "two = 3\n"


def test_an_edit_of_the_module_is_carried_back(book: Path):
    tangle(book)
    path = book / "minidocker/two.py"
    path.write_text(path.read_text().replace("two = 2", "two = 1 + 1"))
    tangle(book, Mode.BACK)
    assert (book / "book/02-two.md").read_text() == CHAPTER.replace("= 2", "= 1 + 1")


def test_a_cell_added_to_the_module_is_refused(book: Path):
    tangle(book)
    path = book / "minidocker/two.py"
    path.write_text(path.read_text() + "\n\n# %% Two\nthree = 3\n")
    with pytest.raises(IntegrityError, match="2 cells in the module, 1 in the chapter"):
        tangle(book, Mode.BACK)


def test_a_syntax_error_names_the_chapter(book: Path):
    (book / "book/02-two.md").write_text(f"{CELL}two = = 2\n```\n")
    with pytest.raises(IntegrityError, match=r"02-two\.md"):
        tangle(book)


def test_an_unknown_chapter_or_option_is_one_line(book: Path, monkeypatch, capsys):
    monkeypatch.chdir(book)
    with pytest.raises(NotFoundError):
        tangle(book, Mode.WRITE, ["three"])
    assert main(["--chekc"]) == 125
    assert "unknown option" in capsys.readouterr().err


@given(st.lists(st.sampled_from(["a = 1", "def f():\n    return 2", "x = '''\n#'''"])))
def test_tangling_and_carrying_back_change_nothing(sources: list[str]):
    chapter = "# T\n\n" + "".join(f"{CELL}{s}\n```\n\ntext\n" for s in sources)
    assert [c.source for c in cells(chapter)] == sources
    if sources:
        assert carry_back(chapter, module_text("c", chapter)) == chapter


def test_a_mistake_is_told_with_the_line_of_the_chapter(book: Path):
    path = book / "book/02-two.md"
    path.write_text(CHAPTER.replace("two = 2", "one = 1\ntwo = = 2"))
    with pytest.raises(IntegrityError) as why:
        tangle(book)
    assert str(why.value) == "book/02-two.md:5: invalid syntax: two = = 2"
    assert not (book / "minidocker/two.py").exists()


def test_a_lost_fence_is_guessed(book: Path):
    path = book / "book/02-two.md"
    path.write_text(CHAPTER.replace("two = 2\n```", "two = 2", 1))
    with pytest.raises(IntegrityError) as why:
        tangle(book)
    assert why.value.hint == "is the fence of the cell closed?"


def test_a_refusal_to_carry_back_names_the_module(book: Path):
    tangle(book)
    (book / "minidocker/two.py").write_text("two = 3\n")
    with pytest.raises(IntegrityError) as why:
        tangle(book, Mode.BACK)
    assert str(why.value).startswith("minidocker/two.py: 0 cells in the module, 1 in")


def test_a_name_that_no_chapter_has_is_guessed(book: Path):
    with pytest.raises(NotFoundError, match='no chapter is the module "tow"') as why:
        tangle(book, Mode.WRITE, ["tow"])
    assert why.value.hint == 'did you mean "two"?'
