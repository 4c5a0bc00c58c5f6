"""What makes two steps the same: digests, the stat index, and what a miss says."""

import hashlib
import os
import socket
import time
from pathlib import Path

import pytest
from digests import digest, sum_of
from scenery import sources

from minidocker.cache import (
    SLACK,
    Held,
    StatIndex,
    digest_of,
    digest_of_source,
    other_file,
    other_step,
    read_manifest,
    write_manifest,
)
from minidocker.context import SourceTree, find_sources, open_context
from minidocker.durable import Batch
from minidocker.errors import BuildError, NotFoundError
from minidocker.oci import ContainerConfig


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return sources(tmp_path / "context")


def test_the_digest_of_a_file_is_dockers(tree: Path):
    assert digest(tree, "a.conf") == "file:" + sum_of("a.conf", 0o644, "0", b"a.conf")


def test_the_recorded_digest_has_the_recorded_shape(tree: Path):
    content = b"x" * 8866
    (tree / "supervisord.conf").write_bytes(content)
    (tree / "supervisord.conf").chmod(0o644)
    want = sum_of("supervisord.conf", 420, "0", content)
    assert digest(tree, "supervisord.conf") == f"file:{want}"


def test_the_digest_of_a_directory_is_that_of_its_sorted_entries(tree: Path):
    sums = [
        sum_of("src/deep/", 0o755, "5"),
        sum_of("src/deep/d.c", 0o644, "0", b"src/deep/d.c"),
        sum_of("src/deep/e.h", 0o644, "0", b"src/deep/e.h"),
    ]
    want = hashlib.sha256(",".join(sorted(sums)).encode()).hexdigest()
    assert digest(tree, "src/deep") == f"dir:{want}"


def test_several_sources_have_one_digest(tree: Path):
    each = [digest(tree, "a.conf"), digest(tree, "b.conf")]
    want = hashlib.sha256(",".join(each).encode()).hexdigest()
    assert digest(tree, "*.conf") == f"multi:{want}"


def test_times_and_owners_do_not_change_a_digest_but_modes_do(tree: Path):
    before = digest(tree, ".")
    os.utime(tree / "a.conf", (1, 1))
    assert digest(tree, ".") == before
    (tree / "a.conf").chmod(0o600)
    assert digest(tree, ".") != before


def test_a_link_to_a_file_inside_counts_as_the_file(tree: Path):
    (tree / "link").symlink_to("/src/c.c")
    assert digest(tree, "link") == digest(tree, "src/c.c")


def test_a_link_in_a_directory_counts_as_a_link(tree: Path):
    (tree / "d").mkdir(mode=0o755)
    (tree / "d/link").symlink_to("/etc/passwd")
    sums = [sum_of("d/", 0o755, "5"), sum_of("d/link", 0o777, "2", link="/etc/passwd")]
    want = hashlib.sha256(",".join(sorted(sums)).encode()).hexdigest()
    assert digest(tree, "d") == f"dir:{want}"


def test_a_pipe_counts_and_is_not_read(tree: Path):
    os.mkfifo(tree / "pipe", 0o600)
    assert digest(tree, "pipe") == "file:" + sum_of("pipe", 0o600, "6")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tree / "socket"))
    with pytest.raises(BuildError, match="neither a file"):
        digest(tree, "socket")
    with SourceTree(str(tree)) as found, pytest.raises(NotFoundError):
        found.read("pipe")


def test_no_descriptor_is_left_open(tree: Path):
    before = len(os.listdir("/proc/self/fd"))
    digest(tree, ".")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_ignored_but_for_a_file_counts_by_its_path(tree: Path):
    """Recorded from Docker 20.10: what the client never sent has no digest there."""
    (tree / ".dockerignore").write_text("src\n!src/deep/d.c\n*.conf\n.dockerignore")
    sums = [sum_of("src/deep/d.c", 0o644, "0", b"src/deep/d.c"), "src", "src/deep"]
    want = hashlib.sha256(",".join(sorted(sums)).encode()).hexdigest()
    assert digest(tree, ".") == digest(tree, "src") == f"dir:{want}"


LATER = 10 * SLACK


def noted(root: Path, store: Path) -> StatIndex:
    """An index that has read everything, long after it was written."""
    index = StatIndex(str(store / "index"), Batch(str(store), str(store / "tmp")))
    with SourceTree(str(root)) as context:
        for item in context.walk("."):
            digest = digest_of(context, item).digest
            index.note(item, digest, time.time_ns() + LATER)
    index.save()
    return StatIndex(index.path, index.batch)


def known(index: StatIndex, root: Path) -> set[str]:
    with SourceTree(str(root)) as context:
        return {item.path for item in context.walk(".") if index.find(item)}


def test_an_unchanged_file_is_known(tree: Path, tmp_path: Path):
    assert known(noted(tree, tmp_path), tree) >= {"a.conf", "src/c.c", "src/deep/e.h"}


def in_place(path: Path) -> None:
    """Change the content and nothing else that a program can set."""
    info = path.stat()
    path.write_text("b.xxxx")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def another(path: Path) -> None:
    info = path.stat()
    path.rename(path.with_name("old"))
    path.write_text("b.conf")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize(
    "act",
    [
        in_place,
        another,
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path, (5, 5)),
        lambda path: path.write_text("longer than before"),
    ],
)
def test_a_file_that_was_touched_in_any_way_is_read_again(
    tree: Path, tmp_path: Path, act
):
    index = noted(tree, tmp_path)
    act(tree / "b.conf")
    assert "b.conf" not in known(index, tree)
    assert "a.conf" in known(index, tree)


def test_a_file_that_is_too_young_is_not_noted(tree: Path, tmp_path: Path):
    index = StatIndex(str(tmp_path / "i"), Batch(str(tmp_path), str(tmp_path / "tmp")))
    with open_context(str(tree)) as context:
        [source] = find_sources(context, ("a.conf",))
        digest_of_source(context, source, index)
    assert not index.fresh


def test_a_file_from_the_future_is_never_noted(tree: Path, tmp_path: Path):
    os.utime(tree / "a.conf", ns=(0, time.time_ns() + 2 * LATER))
    assert "a.conf" not in known(noted(tree, tmp_path), tree)


@pytest.mark.parametrize("rubbish", [b"", b"\0\0\0", b"a.conf\0x", bytes(range(99))])
def test_a_damaged_index_is_an_empty_one(tree: Path, tmp_path: Path, rubbish: bytes):
    index = noted(tree, tmp_path)
    index.batch.publish()
    Path(index.path).write_bytes(rubbish)
    assert known(StatIndex(index.path, index.batch), tree) == set()


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(tree: Path):
    with open_context(str(tree)) as context:
        [source] = find_sources(context, ("a.conf",))
        (tree / "a.conf").write_text("other")
        with pytest.raises(BuildError, match="was changed while it was read"):
            digest_of_source(context, source)


def test_a_manifest_survives_odd_names():
    parts = [
        Held("a\nb", "file 644 0:0", "", "0" * 64),
        Held("\udcff", "link 777 1:2", "to\n", "1" * 64),
    ]
    assert read_manifest(write_manifest(parts)) == {p.path: p for p in parts}
    assert read_manifest(b"") == {}
    assert read_manifest(b"half\0of") == {}


FILE = Held("f", "file 644 0:0", "", "0" * 64)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            FILE,
            FILE.replace(digest="1" * 64),
            'content of "f" was 000000000000, now 111',
        ),
        (FILE, FILE.replace(facts="file 600 0:0"), 'mode of "f" was 644, now 600'),
        (FILE, FILE.replace(facts="file 644 7:0"), 'owner of "f" was 0:0, now 7:0'),
        (FILE, FILE.replace(facts="link 777 0:0"), 'kind of "f" was file, now link'),
        (FILE, FILE.replace(link="x"), 'target of "f" was , now x'),
        (None, FILE, '"f" was absent, now there'),
        (FILE, None, '"f" was there, now absent'),
    ],
)
def test_the_first_difference_of_two_copies(
    old: Held | None, new: Held | None, said: str
):
    pair = [{one.path: one} if one else {} for one in (old, new)]
    assert str(other_file(*pair)).startswith(said)


def test_equal_copies_have_no_difference():
    assert other_file({"f": FILE}, {"f": FILE}) is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (("|1", "A=1", "x"), ("|1", "A=2", "x"), "argument A was 1, now 2"),
        (("|1", "A=1", "x"), ("x",), "argument A was 1, now not set"),
        (("x",), ("|1", "A=1", "x"), "argument A was not set, now 1"),
        (("sh", "-c", "x"), ("sh", "-c", "y"), "instruction was sh -c x, now sh -c y"),
    ],
)
def test_the_first_difference_of_two_commands(
    old: tuple[str, ...], new: tuple[str, ...], said: str
):
    steps = [ContainerConfig(cmd=cmd) for cmd in (new, old)]
    assert str(other_step(*steps)) == said
