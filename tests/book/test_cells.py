"""Every code cell of every chapter is in the package verbatim, or is a demo that uses the package."""

import ast
import builtins
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from minidocker.tangle import Mode, Pair, cells, chapters, tangle


ROOT = Path(__file__).parents[2]
PAIRS = chapters(ROOT)
BY_HAND = {"__init__.py", "__main__.py"}
ORDER = [pair.name for pair in PAIRS]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

each_chapter = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)


def test_table_of_contents_lists_every_chapter_in_order():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [c["file"] + ".md" for part in toc["parts"] for c in part["chapters"]]
    assert listed == [p.chapter.relative_to(ROOT).as_posix() for p in PAIRS]


def test_every_module_is_a_chapter():
    modules = {p.name for p in (ROOT / "minidocker").glob("**/*.py")}
    assert modules - BY_HAND == {p.module.name for p in PAIRS}


def test_book_and_package_are_in_step():
    assert tangle(ROOT, Mode.CHECK) == 0


@each_chapter
def test_we_see_the_cells_that_the_book_sees(pair: Pair):
    """Our scanner agrees with MyST-NB (the book) and jupytext (JupyterLab, Binder)."""
    from jupytext import reads
    from myst_nb.core.read import read_myst_markdown_notebook

    text = pair.chapter.read_text()
    ours = [(c.source.strip(), c.tags) for c in cells(text)]
    for notebook in (read_myst_markdown_notebook(text), reads(text, fmt="md:myst")):
        theirs = [
            (c.source.strip(), frozenset(c.metadata.get("tags", [])))
            for c in notebook.cells
            if c.cell_type == "code"
        ]
        assert ours == theirs


@each_chapter
def test_package_cells_are_imported(pair: Pair):
    """What a package cell defines, `import minidocker.x` has, from that very text."""
    module = importlib.import_module(f"minidocker.{pair.name}")
    source = inspect.getsource(module)
    for cell in cells(pair.chapter.read_text()):
        if cell.demo:
            continue
        assert cell.source in source
        for node in ast.parse(cell.source).body:
            if isinstance(node, DEFINITIONS):
                got = getattr(module, node.name)
                assert got.__module__ == module.__name__
                assert inspect.getsource(inspect.unwrap(got)).strip() in cell.source


@each_chapter
def test_the_first_cell_has_the_docstring_and_every_import(pair: Pair):
    package = [
        ast.parse(c.source) for c in cells(pair.chapter.read_text()) if not c.demo
    ]
    assert ast.get_docstring(package[0])
    for tree in package[1:]:
        found = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
        assert not found, f"{pair.chapter.name}: imports go into the first cell"


@each_chapter
def test_cells_are_plain_python_and_define_each_name_once(pair: Pair):
    seen: set[str] = set()
    for cell in cells(pair.chapter.read_text()):
        tree = ast.parse(cell.source)  # no %magic, no !shell
        if not cell.demo:
            names = {n.name for n in tree.body if isinstance(n, DEFINITIONS)}
            assert not names & seen, "code grows by addition; nothing is defined twice"
            seen |= names


@each_chapter
def test_no_cell_scrolls_sideways(pair: Pair):
    """The page shows 88 characters; ruff sees to the package, and this to the demos."""
    for cell in cells(pair.chapter.read_text()):
        if not cell.tags & {"remove-cell", "remove-input"}:
            shown = re.sub(r"  # (type|noqa|fmt):? .*", "", cell.source)
            for line in shown.splitlines():
                assert len(line) <= 88, f"{pair.chapter.name}: {line}"


@each_chapter
def test_a_chapter_imports_only_earlier_chapters(pair: Pair):
    me = ORDER.index(pair.name)
    for cell in cells(pair.chapter.read_text()):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, "absolute imports: a notebook has no package"
                names = [node.module or ""]
                if node.module == "minidocker":
                    names = [f"minidocker.{a.name}" for a in node.names]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            else:
                continue
            for name in names:
                if name.startswith("minidocker.") and name != "minidocker.__version__":
                    assert name.split(".")[1] in ORDER[:me], f"{name} comes later"


def names(tree: ast.AST, context: type) -> set[str]:
    found = (n for n in ast.walk(tree) if isinstance(n, ast.Name))
    return {n.id for n in found if isinstance(n.ctx, context)}


@each_chapter
def test_demos_use_the_package(pair: Pair):
    """Each demo loads a name that comes from the package, or from a demo that did."""
    module = importlib.import_module(f"minidocker.{pair.name}")
    mine = {n for n, v in vars(module).items() if comes_from(v, module.__name__)}
    for cell in cells(pair.chapter.read_text()):
        tree = ast.parse(cell.source)
        if not cell.demo:
            mine |= names(tree, ast.Store)
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "minidocker"
            ):
                mine |= {a.asname or a.name for a in node.names}
        runs_it = "-m minidocker" in cell.source or '"-m", "minidocker' in cell.source
        assert names(tree, ast.Load) & mine or runs_it, (
            f"{pair.chapter.name}:{cell.start}"
        )
        mine |= names(tree, ast.Store)
        mine |= {n.name for n in ast.walk(tree) if isinstance(n, DEFINITIONS)}


@each_chapter
def test_a_demo_uses_only_what_stands_above_it(pair: Pair):
    """A notebook runs from top to bottom, while the tests run demos on whole modules."""
    found = list(cells(pair.chapter.read_text()))
    defined: dict[str, int] = {}
    for place, cell in enumerate(found):
        if not cell.demo:
            for node in ast.parse(cell.source).body:
                mine = {node.name} if isinstance(node, DEFINITIONS) else set()
                for name in mine or names(node, ast.Store):
                    defined.setdefault(name, place)
    for place, cell in enumerate(found):
        if cell.demo:
            tree = ast.parse(cell.source)
            own = {n.name for n in ast.walk(tree) if isinstance(n, DEFINITIONS)}
            own |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
            used = names(tree, ast.Load) - names(tree, ast.Store) - own
            below = {name for name in used if defined.get(name, 0) > place}
            assert not below, f"{pair.chapter.name}:{cell.start}: defined below"


@each_chapter
def test_a_demo_names_only_what_is_imported_or_defined(pair: Pair):
    """Without running it; what runs in a guest imports its names there."""
    trees = [ast.parse(c.source) for c in cells(pair.chapter.read_text())]
    known = {*dir(builtins), "__name__", "__spec__"}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {a.asname or a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, (*DEFINITIONS, ast.ExceptHandler)):
            known.add(node.name or "")
        elif isinstance(node, ast.arg):
            known.add(node.arg)
    known |= {name for tree in trees for name in names(tree, ast.Store)}
    for tree in trees:
        found = [n for n in tree.body if isinstance(n, DEFINITIONS)]
        guests = {d.id for n in found for d in n.decorator_list if hasattr(d, "id")}
        if not any(name.startswith("on_a_kernel_with") for name in guests):
            assert names(tree, ast.Load) <= known, names(tree, ast.Load) - known


@each_chapter
def test_no_demo_takes_a_name_of_the_package(pair: Pair):
    """In a notebook the package's own code would find the demo's value there."""
    taken: set[str] = set()
    for cell in cells(pair.chapter.read_text()):
        for node in [] if cell.demo else ast.parse(cell.source).body:
            if isinstance(node, DEFINITIONS):
                taken.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                taken |= {a.asname or a.name.partition(".")[0] for a in node.names}
    for cell in cells(pair.chapter.read_text()):
        if cell.demo:
            own = names(ast.parse(cell.source), ast.Store)
            assert not own & taken, f"{pair.chapter.name}:{cell.start}"


@each_chapter
def test_a_chapter_ends_as_every_chapter_does(pair: Pair):
    heads = [x[3:] for x in pair.chapter.read_text().splitlines() if x[:3] == "## "]
    assert heads[-3].endswith("differently")
    assert heads[-2:] == ["Exercises", "Sources"]


def comes_from(value: object, module: str) -> bool:
    return getattr(value, "__module__", None) == module


RUN_DEMOS = """
import ast, importlib, os, sys
sys.path[:0] = {path!r}
from minidocker import {name} as module
os.chdir({book!r})
space = vars(module)
for line, source in {demos!r}:
    exec(compile(ast.parse("\\n" * line + source), {chapter!r}, "exec"), space)
"""


@pytest.fixture(scope="session")
def prefixes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prefixes")


def prefix_of_the_book(pair: Pair, below: Path) -> Path:
    """A package that ends with this chapter."""
    package = below / pair.name / "minidocker"
    package.mkdir(parents=True)
    for name in [
        *sorted(BY_HAND),
        *(f"{n}.py" for n in ORDER[: ORDER.index(pair.name) + 1]),
    ]:
        if (ROOT / "minidocker" / name).exists():
            shutil.copy(ROOT / "minidocker" / name, package)
    return package.parent


@each_chapter
def test_the_book_up_to_here_runs_its_demos_and_passes_its_tests(
    pair: Pair, prefixes: Path
):
    """The demos run on the *imported* module of a package without the later chapters."""
    where = prefix_of_the_book(pair, prefixes)
    demos = [(c.start, c.source) for c in cells(pair.chapter.read_text()) if c.demo]
    code = RUN_DEMOS.format(
        path=[str(where)],
        name=pair.name,
        book=str(ROOT / "book"),
        chapter=str(pair.chapter),
        demos=demos,
    )
    environment = {**os.environ, "PYTHONPATH": str(where)}
    run = [sys.executable, "-W", "error::SyntaxWarning", "-c", code]
    done = subprocess.run(
        run, env=environment, capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    own = ROOT / "tests/unit" / f"test_{pair.name}.py"
    if own.exists():
        check = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(own),
        ]
        done = subprocess.run(
            check,
            env=environment,
            cwd=where,
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
