"""The tests of the cells are tested: each damage to the book makes one of them fail."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
CHAPTER, MODULE = "book/020-records.md", "minidocker/records.py"
DEMO = "```{code-cell} ipython3\n:tags: [demo]\n\n"
CELL = "```{code-cell} ipython3\n"


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def mutate(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))

    return mutate


def append(text: str) -> Callable[[Path], None]:
    def mutate(root: Path) -> None:
        with (root / CHAPTER).open("a") as chapter:
            chapter.write(text)

    return mutate


def retangled(mutate: Callable[[Path], None]) -> Callable[[Path], None]:
    """The damage, and the module brought in step with it."""

    def both(root: Path) -> None:
        mutate(root)
        subprocess.run(
            [sys.executable, "-m", "minidocker.tangle", "records"], cwd=root, check=True
        )

    return both


def stray_module(root: Path) -> None:
    (root / "minidocker/stray.py").write_text("x = 1\n")


def unlisted_chapter(root: Path) -> None:
    shutil.copy(root / "book/010-errors.md", root / "book/991-unlisted.md")
    subprocess.run(
        [sys.executable, "-m", "minidocker.tangle", "unlisted"], cwd=root, check=True
    )


MUTATIONS = {
    "a module edited by hand": (
        change(MODULE, "return hash", "return 1 or hash"),
        "test_book_and_package_are_in_step",
    ),
    "a demo that lost its tag": (
        change(CHAPTER, DEMO, CELL),
        "test_book_and_package_are_in_step",
    ),
    "a package cell that became a demo": (
        change(CHAPTER, CELL + "@dataclass_t", DEMO + "@dataclass_t"),
        "test_book_and_package_are_in_step",
    ),
    "a demo that uses nothing of the package": (
        append(f"\n{DEMO}print(1 + 1)\n```\n"),
        "test_demos_use_the_package",
    ),
    "a demo that fails": (
        append(f"\n{DEMO}Record(1, 2, 3)\n```\n"),
        "test_the_book_up_to_here_runs",
    ),
    "an import of a later chapter": (
        append(f"\n{DEMO}from minidocker.tangle import Cell\nRecord, Cell\n```\n"),
        "test_a_chapter_imports_only_earlier_chapters",
    ),
    "a name defined twice": (
        retangled(append(2 * f"\n{CELL}def twice() -> None:\n    return\n```\n")),
        "test_cells_are_plain_python_and_define_each_name_once",
    ),
    "an import below the first cell": (
        retangled(append(f"\n{CELL}import abc\n```\n")),
        "test_the_first_cell_has_the_docstring_and_every_import",
    ),
    "a cell with a shell line": (
        append(f"\n{DEMO}Record\n!ls\n```\n"),
        "test_cells_are_plain_python_and_define_each_name_once",
    ),
    "a demo before what it uses": (
        change(CHAPTER, "## A class body", f"{DEMO}Record\n```\n\n## A class body"),
        "test_a_demo_uses_only_what_stands_above_it",
    ),
    "a chapter without sources": (
        change(CHAPTER, "## Sources", "## Further reading"),
        "test_a_chapter_ends_as_every_chapter_does",
    ),
    "a demo that is too wide for the page": (
        append(f"\n{DEMO}Record, '{'x' * 90}'\n```\n"),
        "test_no_cell_scrolls_sideways",
    ),
    "a module without a chapter": (stray_module, "test_every_module_is_a_chapter"),
    "a chapter that the table of contents lacks": (
        unlisted_chapter,
        "test_table_of_contents_lists_every_chapter",
    ),
    "a cell that the book does not see": (
        append(f"\n{CELL}:tags: [demo, 'x]y']\n\nRecord\n```\n"),
        "test_we_see_the_cells_that_the_book_sees",
    ),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("book", "minidocker", "tests/book"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("_toc.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def check(root: Path) -> subprocess.CompletedProcess[str]:
    only = "records or toc or contents or module or step"
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*run, "tests/book/test_cells.py", "-k", only],
        cwd=root,
        capture_output=True,
        check=False,
        text=True,
    )


def test_an_unharmed_copy_passes(copy: Path):
    done = check(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("damage", MUTATIONS)
def test_damage_is_noticed(damage: str, copy: Path):
    mutate, noticed_by = MUTATIONS[damage]
    mutate(copy)
    done = check(copy)
    assert done.returncode == 1, done.stdout
    assert f"FAILED tests/book/test_cells.py::{noticed_by}" in done.stdout
