"""The build context: what is in it, what is kept out, and the digests of it."""

import os
from pathlib import Path

import pytest
from scenery import sources

from minidocker.context import find_sources, open_context
from minidocker.errors import BuildError, DockerfileError, NotFoundError
from minidocker.patterns import is_ignored, read_patterns


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return sources(tmp_path / "context")


def paths(root: Path, *patterns: str) -> list[str]:
    with open_context(str(root)) as context:
        return [source.path for source in find_sources(context, patterns)]


@pytest.mark.parametrize(
    ("patterns", "path", "ignored"),
    [
        ("*.md", "a.md", True),
        ("*.md", "d/a.md", False),
        ("**/*.md", "a.md", True),
        ("**/*.md", "d/e/a.md", True),
        ("d", "d/e/a.md", True),
        ("/d/", "d/a", True),
        ("./x/../d", "d", True),
        ("d/**", "d", False),
        ("d/**", "d/a/b", True),
        ("d?", "d1", True),
        ("d?", "d/", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("a.b", "aXb", False),
        ("# c\n\n*.md", "# c", False),
        ("*.md\n!README.md", "README.md", False),
        ("!README.md\n*.md", "README.md", True),
        ("d\n!d/keep", "d/keep/a", False),
        ("d\n!d/keep", "d/other", True),
        ("**", "anything/at/all", True),
        ("\\*", "*", True),
        ("\\*", "a", False),
        ("a**b", "a/x/b", True),
        ("(a)", "(a)", True),
        ("\ufeffa", "a", True),
    ],
)
def test_dockerignore_decides(patterns: str, path: str, ignored: bool):
    assert is_ignored(path, read_patterns(patterns)) is ignored


@pytest.mark.parametrize("text", ["a\n!", "a\n[x"])
def test_a_bad_pattern_is_refused_with_its_line(text: str):
    with pytest.raises(DockerfileError) as caught:
        read_patterns(text)
    assert caught.value.where == ".dockerignore:2"


def test_an_ignored_directory_still_gives_what_is_taken_back_in(tree: Path):
    (tree / ".dockerignore").write_text("src\n!src/deep/d.c\n.dockerignore")
    with open_context(str(tree)) as context:
        assert [i.path for i in context.walk(".")] == [
            "a.conf",
            "b.conf",
            "src/deep/d.c",
        ]


def test_wildcards_stop_at_a_slash(tree: Path):
    assert paths(tree, "src/*") == ["src/c.c", "src/deep"]
    assert paths(tree, "src/*/*.[ch]") == ["src/deep/d.c", "src/deep/e.h"]
    assert paths(tree, "*.c") == []


def test_sources_may_begin_with_a_slash_or_a_dot(tree: Path):
    assert paths(tree, "/a.conf", "./src/../b.conf") == ["a.conf", "b.conf"]


@pytest.mark.parametrize("path", ["..", "../x", "src/../../x", "/.././../x"[1:]])
def test_climbing_out_is_forbidden(tree: Path, path: str):
    with pytest.raises(BuildError, match="forbidden path outside the build context"):
        paths(tree, path)


def test_a_link_that_leads_out_is_not_found(tree: Path):
    (tree.parent / "secret").write_text("s")
    (tree / "absolute").symlink_to(tree.parent / "secret")
    (tree / "relative").symlink_to("../secret")
    for name in ("absolute", "relative", "absolute/x"):
        with pytest.raises(BuildError, match="file not found in build context"):
            paths(tree, name)


def test_a_loop_of_links_is_not_found(tree: Path):
    (tree / "loop").symlink_to("loop")
    with pytest.raises(BuildError, match="file not found"):
        paths(tree, "loop")


def test_a_dockerignore_that_is_a_link_out_is_not_read(tree: Path):
    (tree.parent / "patterns").write_text("*")
    (tree / ".dockerignore").symlink_to("../patterns")
    assert paths(tree, "a.conf") == ["a.conf"]


def test_an_ignored_file_is_not_found_and_the_hint_says_why(tree: Path):
    (tree / ".dockerignore").write_text("*.conf")
    with pytest.raises(BuildError) as caught:
        paths(tree, "a.conf")
    assert ".dockerignore has a pattern" in str(caught.value.hint)


def test_a_near_name_is_the_hint(tree: Path):
    with pytest.raises(BuildError) as caught:
        paths(tree, "a.cnf")
    assert caught.value.hint == 'did you mean "a.conf"?'


def test_names_that_are_not_utf8_are_exact(tree: Path):
    raw = os.fsencode(tree) + b"/n\xff"
    Path(os.fsdecode(raw)).write_text("x")
    assert paths(tree, os.fsdecode(b"n\xff")) == [os.fsdecode(b"n\xff")]


def test_no_such_context_is_said(tmp_path: Path):
    with pytest.raises(NotFoundError, match="no such directory"):
        open_context(str(tmp_path / "gone"))
