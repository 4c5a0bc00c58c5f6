"""Files arrive where they should, as they should, and never outside of the root."""

import bz2
import errno
import gzip
import lzma
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from scenery import described, listed, tar_of, write

from minidocker.context import find_sources, open_context
from minidocker.copying import Target, copy_sources
from minidocker.errors import BuildError, IntegrityError
from minidocker.manner import Manner, set_owner


BROKEN = gzip.compress(b"x" * 600, mtime=0)[:12] + b"\xff" * 40
ME = (os.geteuid(), os.getegid())


@pytest.fixture
def context(tmp_path: Path) -> Path:
    files = {"a": "a", "b": "b", "d/c": "c", "d/e/f": "f"}
    return write(tmp_path / "context", dict(files))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0::/:\n")
    return root


def copied(context: Path, root: Path, *words: str, **manner: object) -> None:
    *sources, to = words
    own = Manner(**{"owner": ME, **manner})
    with open_context(str(context)) as tree:
        copy_sources(tree, find_sources(tree, tuple(sources)), str(root), to, own)


def content(root: Path) -> dict[str, tuple[str, int, str]]:
    return dict(described(str(root), name) for name in sorted(listed(str(root))))


def files(root: Path) -> dict[str, str]:
    return {
        name: text for name, (kind, _, text) in content(root).items() if kind == "file"
    }


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("a", "/new"), "new"),
        (("a", "/new/"), "new/a"),
        (("a", "/etc"), "etc/a"),
        (("a", "/etc/"), "etc/a"),
        (("a", "/"), "a"),
        (("a", "/x/y/z"), "x/y/z"),
        (("a", "/x/../y//"), "y/a"),
        (("a", "/../../up"), "up"),
        (("a", "/etc/passwd"), "etc/passwd"),
    ],
)
def test_a_file_goes_where_the_destination_says(
    context: Path, root: Path, words: tuple[str, ...], path: str
):
    copied(context, root, *words)
    assert (root / path).read_text() == "a"


def test_the_content_of_a_directory_goes_not_the_directory(context: Path, root: Path):
    copied(context, root, "d", "/etc")
    assert sorted(files(root)) == ["etc/c", "etc/e/f", "etc/passwd"]


def test_several_sources_go_into_one_directory(context: Path, root: Path):
    copied(context, root, "a", "d", "b", "/x/")
    assert files(root / "x") == {"a": "a", "b": "b", "c": "c", "e/f": "f"}


def test_several_sources_need_a_directory(context: Path, root: Path):
    with pytest.raises(BuildError, match="must be a directory") as caught:
        copied(context, root, "a", "b", "/x")
    assert caught.value.hint == 'write "/x/"'
    assert not (root / "x").exists()


def test_modes_and_times_arrive_with_the_files(context: Path, root: Path):
    (context / "d/c").chmod(0o640)
    (context / "d").chmod(0o750)
    copied(context, root, "d", "/x/")
    copied(context, root, "d/c", "/one")
    for path in ("x/c", "one"):
        info = (root / path).stat()
        assert (stat.S_IMODE(info.st_mode), info.st_mtime) == (0o640, 1_000_000)
    assert (root / "x/e").stat().st_mtime == 1_000_000
    assert stat.S_IMODE((root / "x").stat().st_mode) == 0o755


def test_a_chmod_is_every_files_and_directorys(context: Path, root: Path):
    copied(context, root, "d", "/x", mode=0o700)
    copied(context, root, "a", "/y", mode=0o4711)
    assert {mode for _, mode, _ in content(root / "x").values()} == {0o700}
    assert stat.S_IMODE((root / "y").stat().st_mode) == 0o4711


def test_times_of_directories_that_were_there_are_put_back(context: Path, root: Path):
    os.utime(root / "etc", (5, 5))
    os.utime(root, (6, 6))
    copied(context, root, "a", "/etc/")
    copied(context, root, "b", "/new/")
    assert ((root / "etc").stat().st_mtime, root.stat().st_mtime) == (5, 6)
    assert (root / "new").stat().st_mtime == 1_000_000


def test_links_in_a_directory_arrive_as_links(context: Path, root: Path):
    (context / "d/link").symlink_to("/etc/passwd")
    (context / "d/gone").symlink_to("gone/too")
    copied(context, root, "d", "/x/")
    assert os.readlink(root / "x/link") == "/etc/passwd"
    assert os.readlink(root / "x/gone") == "gone/too"


def test_a_link_as_the_source_arrives_as_the_file_under_its_name(
    context: Path, root: Path
):
    (context / "link").symlink_to("d/c")
    copied(context, root, "link", "/x/")
    assert files(root / "x") == {"link": "c"}


def test_names_with_odd_bytes_arrive(context: Path, root: Path):
    odd = os.fsdecode(b"\xff \n*")
    write(context, {f"odd/{odd}": "odd"})
    copied(context, root, "odd", "/x/")
    assert files(root / "x") == {odd: "odd"}


def test_a_link_that_is_in_the_way_is_replaced_not_written_through(
    context: Path, root: Path, tmp_path: Path
):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (root / "c").symlink_to(outside)
    (root / "e").mkdir()
    (root / "e/f").symlink_to("/etc/passwd")
    copied(context, root, "d", "/")
    assert (root / "c").read_text() == "c"
    assert not (root / "e/f").is_symlink()
    assert outside.read_text() == "mine"
    assert "root" in (root / "etc/passwd").read_text()


@pytest.mark.parametrize(
    "to", ["{out}", "../../../../../../..{out}", "/proc/self/root{out}"]
)
@pytest.mark.parametrize("words", [("a", "/trap/in"), ("d", "/trap"), ("a", "/trap")])
def test_a_link_out_of_the_image_stays_inside(
    context: Path, root: Path, tmp_path: Path, to: str, words: tuple[str, ...]
):
    out = tmp_path / "out"
    out.mkdir()
    (root / "trap").symlink_to(to.format(out=out))
    copied(context, root, *words)
    assert list(out.iterdir()) == []
    assert any(text in {"a", "c"} for text in files(root).values())


def test_a_link_to_the_hosts_etc_stays_inside(context: Path, root: Path):
    before = sorted(os.listdir("/etc"))
    (root / "conf").symlink_to("../../../../../../../../etc")
    copied(context, root, "a", "/conf/minidocker-test-trap")
    assert (root / "etc/minidocker-test-trap").read_text() == "a"
    assert sorted(os.listdir("/etc")) == before


def test_a_final_link_to_a_file_is_followed_inside(context: Path, root: Path):
    (root / "etc/link").symlink_to("passwd")
    copied(context, root, "a", "/etc/link")
    assert (root / "etc/passwd").read_text() == "a"
    assert (root / "etc/link").is_symlink()


def test_what_a_dangling_link_leads_to_is_made_inside(context: Path, root: Path):
    (root / "deep").symlink_to("../../very/deep")
    copied(context, root, "a", "/deep/x/y")
    assert (root / "very/deep/x/y").read_text() == "a"


@pytest.mark.parametrize("to", ["/loop", "/loop/", "/loop/x/y", "/one/x"])
def test_links_in_a_circle_are_refused(context: Path, root: Path, to: str):
    (root / "loop").symlink_to("loop")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    with pytest.raises(BuildError, match="too many levels of links"):
        copied(context, root, "a", to)


@pytest.mark.parametrize("words", [("a", "/etc/passwd/"), ("d", "/etc/passwd")])
def test_a_file_in_the_place_of_a_directory_is_refused(
    context: Path, root: Path, words: tuple[str, ...]
):
    with pytest.raises(BuildError, match='"/etc/passwd" is not a directory'):
        copied(context, root, *words)
    assert "root" in (root / "etc/passwd").read_text()


def test_a_copied_file_replaces_a_directory_of_its_name(context: Path, root: Path):
    (root / "x/c/deep").mkdir(parents=True)
    copied(context, root, "d", "/x")
    assert (root / "x/c").read_text() == "c"


def test_directories_are_merged(context: Path, root: Path):
    (root / "x/e").mkdir(parents=True)
    (root / "x/e/kept").write_text("kept")
    copied(context, root, "d", "/x")
    assert files(root / "x") == {"c": "c", "e/f": "f", "e/kept": "kept"}


def test_an_ignored_file_does_not_arrive(context: Path, root: Path):
    (context / ".dockerignore").write_text("d\n!d/e/f\n.dockerignore\n")
    copied(context, root, ".", "/x/")
    assert files(root / "x") == {"a": "a", "b": "b", "d/e/f": "f"}


def test_a_pipe_arrives_as_a_pipe_and_a_socket_not_at_all(context: Path, root: Path):
    os.mkfifo(context / "d/pipe", 0o640)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(context / "d/socket"))
        copied(context, root, "d", "/x/")
        assert stat.filemode((root / "x/pipe").stat().st_mode) == "prw-r-----"
        assert sorted(os.listdir(root / "x")) == ["c", "e", "pipe"]
        with pytest.raises(BuildError, match="neither a file"):
            copied(context, root, "d/socket", "/x/")


def test_two_names_of_a_file_stay_two_names(context: Path, root: Path):
    os.link(context / "d/c", context / "d/e/again")
    (root / "x/e").mkdir(parents=True)
    (root / "x/e/again").write_text("in the way")
    copied(context, root, "d", "/x/")
    assert files(root / "x") == {"c": "c", "e/f": "f", "e/again": "c"}
    assert (root / "x/c").samefile(root / "x/e/again")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, bz2.compress])
def test_add_unpacks_an_archive_by_its_content(context: Path, root: Path, pack: object):
    data = pack(tar_of({"in": None, "in/file": b"packed"}))  # type: ignore[operator]
    (context / "any.name").write_bytes(data)
    if os.geteuid() == 0:
        copied(context, root, "any.name", "/x", unpacks=True)
        assert files(root / "x") == {"in/file": "packed"}
    copied(context, root, "any.name", "/plain")
    assert (root / "plain").read_bytes() == data


@pytest.mark.parametrize(
    "data", [b"", b"text", gzip.compress(b"text", mtime=0), b"\x1f\x8bbroken", BROKEN]
)
def test_add_copies_what_is_no_archive(context: Path, root: Path, data: bytes):
    (context / "some.tar").write_bytes(data)
    copied(context, root, "some.tar", "/x/", unpacks=True)
    assert (root / "x/some.tar").read_bytes() == data


@pytest.mark.parametrize("name", ["../out", "/../../out", "in/../../out"])
def test_a_hostile_archive_is_refused(
    context: Path, root: Path, tmp_path: Path, name: str
):
    (context / "evil").write_bytes(tar_of({name: b"evil"}))
    with pytest.raises(IntegrityError):
        copied(context, root, "evil", "/x/y/", unpacks=True)
    assert not list(tmp_path.rglob("out"))


def test_a_great_file_is_copied_whole(tmp_path: Path):
    data = os.urandom(1 << 20) * 3
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "from/great").write_bytes(data)
    copied(tmp_path / "from", tmp_path / "to", "great", "/great")
    assert (tmp_path / "to/great").read_bytes() == data


def test_where_the_kernel_cannot_copy_we_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "other device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    test_a_great_file_is_copied_whole(tmp_path)


def test_an_owner_that_cannot_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "not mapped")

    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(BuildError, match="cannot own files as 1001:1002"):
        set_owner(0, (1001, 1002))


def test_no_descriptor_is_left_open(context: Path, root: Path):
    (root / "loop").symlink_to("loop")
    before = sorted(os.listdir("/proc/self/fd"))
    for to in ("/x/", "/y/deep/er", "/loop/x", "/etc/passwd/"):
        with suppress(BuildError):
            copied(context, root, "a", "d", to if to.endswith("/") else f"{to}/")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_target_makes_directories_once(root: Path):
    with Target(str(root), 7_000_000_000, ME) as target:
        os.close(target.directory("/a/b/c"))
        os.close(target.directory("/a/b/c/"))
        assert target.is_directory("/a/b")
        assert not target.is_directory("/etc/passwd")
    assert (root / "a/b/c").stat().st_mtime == 7


def test_what_was_written_is_known_by_its_name_and_forgotten_when_replaced(
    context: Path, root: Path
):
    (context / "t").write_bytes(tar_of({"a": b"A"}))
    written: dict[bytes, bytes] = {}
    with open_context(str(context)) as tree:
        for name in ("a", "d", "t"):
            for item in find_sources(tree, (name,))[0].items:
                if stat.S_ISREG(item.info.st_mode):
                    tree.keep(item.path, (context / item.path).read_bytes())
        manner = Manner(owner=ME)
        for words in [("a",), ("d",)]:
            sources = find_sources(tree, words)
            copy_sources(tree, sources, str(root), "/x/", manner, written=written)
        assert written == {b"x/a": b"a", b"x/c": b"c", b"x/e/f": b"f"}
        sources = find_sources(tree, ("t",))
        unpacking = manner.replace(unpacks=True, ignore_owner=os.geteuid() != 0)
        copy_sources(tree, sources, str(root), "/x/", unpacking, written=written)
    assert written == {}
    assert (root / "x/a").read_bytes() == b"A"
