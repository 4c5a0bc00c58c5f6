"""A layer and its tar made in one pass are what the tree says when it is asked."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from scenery import write
from workbench import Workbench

from minidocker import arrivals, moves
from minidocker.archive import TarWriter
from minidocker.drivers import DRIVERS, StorageDriver
from minidocker.errors import BuildError, IntegrityError, MinidockerError
from minidocker.overlayfs import supported


pytestmark = pytest.mark.root
BASE: dict[str, bytes | str | None] = {
    "etc": None,
    "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
    "srv": None,
    "srv/old": b"old",
    "way": "srv/deep",
    "srv/deep": None,
}


@pytest.fixture(params=sorted(DRIVERS))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Workbench:
    if request.param == "overlay2":
        (tmp_path / "scratch").mkdir()
        try:
            supported(str(tmp_path / "scratch"))
        except (MinidockerError, OSError):
            pytest.skip("the kernel or this user's rights allow no overlay mounts")
    driver: type[StorageDriver] = DRIVERS[request.param]
    bench = Workbench(tmp_path, driver)
    bench.base("base", BASE)
    return bench


def odd_files(context: Path) -> None:
    """Names, modes, times and sizes that a tar may stumble over."""
    write(
        context,
        {
            "d/a.txt": "1",
            "d/a/b": "2",
            "d/a-b": "3",
            "d/empty": "",
            "d/etc/hosts": "",
            f"d/{'long' * 30}/{'name' * 40}": "4",
            "d/blank line\n": "5",
            "d/\U0001f40b": "whale",
            "d/large": b"large " * 60_000,
            "d/e/f/g": "6",
        },
    )
    raw = os.fsencode(context / "d")
    for name in (b"/\xff", b"/\xc3"):
        with open(raw + name, "wb") as file:
            file.write(b"no text")
    (context / "d/link").symlink_to("/etc/passwd")
    (context / "d/dangling").symlink_to("x" * 150)
    (context / "d/nothing").mkdir()
    (context / "d/a").chmod(0o2750)
    (context / "d/a.txt").chmod(0o4711)
    (context / "d/a-b").chmod(0o000)
    with (context / "d/sparse").open("wb") as file:
        file.truncate(3 << 20)
    os.utime(context / "d/e/f/g", ns=(1, 1_234_567_890_987_654_321))
    os.utime(context / "d/e", ns=(1, -5_000_000_001))


def many_files(context: Path, count: int = 900) -> None:
    for number in range(count):
        path = context / f"d/{number % 7}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * (number % 900))
        os.utime(path, (number, number))
    (context / "d/3/large").write_bytes(b"large" * 30_000)
    (context / "d/5/link").symlink_to("0")


def layer_of(bench: Workbench, line: str) -> tuple[str, int, dict[str, object]]:
    """Build; the newest layer's digest and size, and the tree. Its tar is checked."""
    id = bench.build(f"FROM base\n{line}", no_cache=True)
    layer = bench.layers.stack(bench.images.get(id).diff_ids)[-1]
    bench.layers.tar_of(layer.chain_id, lambda data: None)  # checks the digest
    assert bench.driver.size(layer.cache_id) == layer.size
    return layer.diff_id, layer.size, dict(bench.tree(id))


def both_ways(
    bench: Workbench, line: str, monkeypatch: pytest.MonkeyPatch, *, lands: bool = True
) -> None:
    """Build in one pass and in two, and compare the layers."""
    landed: list[object] = []
    find = arrivals.find_landing

    def watched(*words: object) -> object:
        landed.append(find(*words))  # type: ignore[arg-type]
        return landed[-1]

    with monkeypatch.context() as patch:
        patch.setattr(moves, "find_landing", watched)
        one = layer_of(bench, line)
    assert bool(landed and landed[-1]) is lands
    last = bench.layers.ids()
    with monkeypatch.context() as patch:
        patch.setattr(moves, "find_landing", lambda *_: None)
        assert layer_of(bench, line) == one
    assert bench.layers.ids() == last


@pytest.mark.parametrize(
    "line",
    [
        "COPY d /new",
        "FROM scratch\nCOPY d /",
        "COPY . /srv/app/deep/",
        "COPY d /way",
        "COPY d /etc",
        "COPY --chown=7:8 --chmod=u=rwX,go=rX d /new",
        "COPY --chmod=2775 d /new",
        "COPY --link d /srv",
        "COPY d/large /",
        "COPY d/a.txt /srv/",
        "COPY d/a.txt /way/other",
        "COPY d/empty /etc/hosts",
        "COPY d/etc /etc",
        "ADD d /added",
        "FROM base AS other\nCOPY --chown=3:4 d /d\nFROM base\nCOPY --from=other /d /e",
    ],
)
def test_one_pass_and_two_make_the_same_layer(
    bench: Workbench, line: str, monkeypatch: pytest.MonkeyPatch
):
    odd_files(bench.context)
    both_ways(bench, line, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "COPY d /",
        "COPY d/a.txt /srv/old",
        "COPY d/a.txt d/empty /new/",
        "COPY old /srv",
    ],
)
def test_files_with_something_in_their_way_take_the_other_way(
    bench: Workbench, line: str, monkeypatch: pytest.MonkeyPatch
):
    odd_files(bench.context)
    write(bench.context / "old", {"old": "new"})
    both_ways(bench, line, monkeypatch, lands=False)


@pytest.mark.parametrize("line", ["COPY d /new", "COPY d/a /new/.wh.a"])
def test_a_name_that_means_a_deletion_is_refused(bench: Workbench, line: str):
    write(bench.context, {"d/a": "a", "d/e/.wh.b": "b"})
    with pytest.raises(IntegrityError, match="it means a deletion"):
        bench.build(f"FROM base\n{line}")


def test_a_file_whose_directory_is_ignored_gets_one(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
):
    odd_files(bench.context)
    (bench.context / ".dockerignore").write_text("d/e\n!d/e/f/g\n")
    both_ways(bench, "COPY . /new", monkeypatch, lands=False)


def test_a_directory_that_was_there_keeps_its_time(bench: Workbench):
    odd_files(bench.context)
    id = bench.build("FROM base\nCOPY d/a /srv/deep")
    layer = bench.layers.stack(bench.images.get(id).diff_ids)[-1]
    with bench.driver.opened(layer.cache_id) as tree:
        assert os.stat(f"{tree}/srv/deep").st_mtime == 0
        assert os.stat(f"{tree}/srv").st_mtime == 0


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The children that are forked; parts are small, processors two."""
    made: list[int] = []
    fork = os.fork

    def forked() -> int:
        child = fork()
        made.append(child)
        return child

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(os, "fork", forked)
    monkeypatch.setattr(arrivals, "PART", 1 << 20)
    return made


def test_two_processes_make_the_same_layer(
    bench: Workbench, forks: list[int], monkeypatch: pytest.MonkeyPatch
):
    many_files(bench.context)
    both_ways(bench, "COPY d /new/place", monkeypatch)
    assert len(forks) == 1
    assert not Path(f"/proc/{forks[0]}").exists()


@pytest.mark.parametrize("at", [0, 1])
def test_a_child_that_fails_leaves_its_parts_to_us(
    bench: Workbench, forks: list[int], at: int, monkeypatch: pytest.MonkeyPatch
):
    many_files(bench.context)
    work = arrivals.Helper.work

    def worked(
        self: arrivals.Helper,
        carry: Callable[[arrivals.Part, TarWriter], None],
        parts: list[arrivals.Part],
        hear: int,
        tell: int,
    ) -> None:
        def some(part: arrivals.Part, tar: TarWriter) -> None:
            if part is parts[at]:
                carry(part[:3], tar)
                raise OSError("out of luck")
            carry(part, tar)

        work(self, some, parts, hear, tell)

    monkeypatch.setattr(arrivals.Helper, "work", worked)
    both_ways(bench, "COPY d /new/place", monkeypatch)
    assert len(forks) == 1


@pytest.mark.parametrize("name", ["0/0", "6/895", "3/large"])
def test_a_file_that_changes_meanwhile_fails_the_build_and_leaves_nothing(
    bench: Workbench, forks: list[int], name: str, monkeypatch: pytest.MonkeyPatch
):
    many_files(bench.context)
    bench.build("FROM base\nENV a=b")
    before = bench.leavings()
    make = arrivals.make_directories

    def changing(*words: object) -> object:
        with (bench.context / "d" / name).open("ab") as file:
            file.write(b"more")
        return make(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(arrivals, "make_directories", changing)
    monkeypatch.setattr(moves.Workshop, "index_of", lambda *_: None)
    monkeypatch.setattr(arrivals.SourceTree, "keep", lambda *_: None)
    with pytest.raises(BuildError, match=f'"d/{name}" was changed while it was copied'):
        bench.build("FROM base\nCOPY d /new")
    assert bench.leavings() == before
