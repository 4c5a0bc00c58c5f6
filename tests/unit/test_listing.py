"""The catalog's page is a cache: whatever happens to it, the answer is right."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from workbench import Workbench

from minidocker import catalog
from minidocker.catalog import (
    LIST_FILTERS,
    Entry,
    all_entries,
    chosen_entries,
    entries_of,
    forest,
    known_entries,
)
from minidocker.drivers import Vfs
from minidocker.errors import MinidockerError, UsageError
from minidocker.filters import moment_of, parse_filters, pattern_of
from minidocker.oci import parse_reference


pytestmark = pytest.mark.root  # COPY gives files to root

DOCKERFILE = "FROM base\nLABEL stage=test\nCOPY note /\nUSER 1\n"


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    bench = Workbench(tmp_path, Vfs)
    bench.base("base", {"etc": None, "etc/motd": b"hello"})
    (bench.context / "note").write_text("a note")
    bench.build(DOCKERFILE, tags=("web:v1",))
    return bench


def listed(bench: Workbench) -> list[Entry]:
    return entries_of(bench.images, bench.layers)


def settle(bench: Workbench) -> Path:
    """Make the page, with times that are old enough."""
    home = Path(bench.images.home)
    for path in (home / "imagedb/content/sha256", home / "repositories.json"):
        os.utime(path, (1, 1))
    listed(bench)
    assert known_entries(str(home)) is not None
    return home / "catalog"


def test_what_is_listed(bench: Workbench) -> None:
    entries = {entry.names: entry for entry in listed(bench) if entry.names}
    web, base = entries[("web:v1",)], entries[("base:latest",)]
    assert (base.size, base.has_child, base.is_step) == (5, True, False)
    assert (web.size, web.labels, web.has_child) == (11, '{"stage":"test"}', False)
    assert sum(entry.is_step for entry in listed(bench)) == 2
    assert web.id == bench.images.resolve("web:v1")


def test_the_page_says_what_the_store_says(bench: Workbench) -> None:
    page = settle(bench)
    fresh = known_entries(bench.images.home)
    page.unlink()
    assert fresh == all_entries(bench.images, bench.layers)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b.images.tag(parse_reference("more"), b.images.resolve("web:v1")),
        lambda b: b.images.untag(parse_reference("web:v1")),
        lambda b: b.images.tag(parse_reference("web:v1"), b.images.resolve("base")),
        lambda b: b.build(DOCKERFILE + "EXPOSE 80\n", tags=("new",)),
        lambda b: b.images.delete(b.images.untag(parse_reference("web:v1"))),
        lambda b: b.images.note_digest(
            parse_reference("web"), "sha256:" + "1" * 64, b.images.resolve("web:v1")
        ),
        lambda b: b.images.add(b.images.get(b.images.resolve("base")), b.images.resolve("web:v1")),
    ],
    ids=["tag", "untag", "retag", "build", "delete", "digest", "parent"],
)  # fmt: skip
def test_a_change_is_seen_at_once(bench: Workbench, change: object) -> None:
    page = settle(bench)
    before = listed(bench)
    change(bench)  # type: ignore[operator]
    after = listed(bench)
    page.unlink(missing_ok=True)
    assert after == all_entries(bench.images, bench.layers)
    assert after != before


@pytest.mark.parametrize("at", [0, 25, 40, 200, -1])
def test_a_flipped_bit_is_noticed(bench: Workbench, at: int) -> None:
    page = settle(bench)
    data = bytearray(page.read_bytes())
    data[at] ^= 1
    page.write_bytes(data)
    assert known_entries(bench.images.home) is None
    right = listed(bench)
    page.unlink(missing_ok=True)
    assert right == all_entries(bench.images, bench.layers)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"minidocker catalog 1 00000000\n", b"x\ny\nz"]
)
def test_rubbish_is_no_page(bench: Workbench, data: bytes) -> None:
    page = settle(bench)
    page.write_bytes(data)
    assert known_entries(bench.images.home) is None
    assert len(listed(bench)) == 4


def test_any_label_can_be_written_on_the_page(bench: Workbench) -> None:
    strange = "a\tb\nc\x0b\x1c\x85\u2028\u00e9"
    id = bench.keep(
        "odd",
        (),
        bench.config(bench.images.resolve("base")).replace(labels={strange: strange}),
    )
    settle(bench)
    (odd,) = [
        entry for entry in known_entries(bench.images.home) or () if entry.id == id
    ]
    assert json.loads(odd.labels) == {strange: strange}
    assert id in [
        e.id for e in chosen_entries([odd], {"label": [f"{strange}={strange}"]}, {})
    ]


def test_a_young_time_is_not_trusted(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = settle(bench)
    page.unlink()
    os.utime(Path(bench.images.home) / "repositories.json")
    now = time.time_ns()
    monkeypatch.setattr(catalog.time, "time_ns", lambda: now)
    listed(bench)
    assert not page.exists()
    monkeypatch.setattr(catalog.time, "time_ns", lambda: now + 10**9)
    listed(bench)
    assert page.exists()


def test_where_the_page_cannot_be_written_the_list_is_right(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = listed(bench)
    page = settle(bench)
    page.unlink()

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(catalog.os, "rename", refuse)
    assert listed(bench) == right


def test_an_image_without_its_layer_is_not_shown(bench: Workbench) -> None:
    id = bench.keep(
        "broken", ("sha256:" + "3" * 64,), bench.config(bench.images.resolve("base"))
    )
    entries = listed(bench)
    assert [entry.size for entry in entries if entry.id == id] == [-1]
    assert id not in [entry.id for entry in chosen_entries(entries, {}, {})]


def names(bench: Workbench, *words: str, **times: int) -> list[tuple[str, ...]]:
    filters = parse_filters(words, LIST_FILTERS)
    return sorted(
        entry.names for entry in chosen_entries(listed(bench), filters, times)
    )


def test_filters(bench: Workbench) -> None:
    bench.images.tag(parse_reference("team/web:v2"), bench.images.resolve("web:v1"))
    everything = [("base:latest",), ("team/web:v2", "web:v1")]
    assert names(bench) == everything
    assert (
        names(bench, "label=stage")
        == names(bench, "label=stage=test")
        == everything[1:]
    )
    assert (
        names(bench, "label=stage", "label=other")
        == names(bench, "label=stage=x")
        == []
    )
    assert (
        names(bench, "reference=web")
        == names(bench, "reference=w*:v?")
        == [("web:v1",)]
    )
    assert names(bench, "reference=base", "reference=*/web") == [
        ("base:latest",),
        ("team/web:v2",),
    ]
    assert names(bench, "dangling=true") == []
    assert names(bench, "dangling=false") == everything
    web = next(entry for entry in listed(bench) if "web:v1" in entry.names)
    assert names(bench, before=web.created) == everything[:1]
    assert names(bench, since=web.created) == []


@pytest.mark.parametrize(
    ("word", "status"), [("x=1", 1), ("label", 125), ("dangling=maybe", 1)]
)
def test_a_bad_filter_is_refused(bench: Workbench, word: str, status: int) -> None:
    with pytest.raises(MinidockerError) as caught:
        names(bench, word)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("pattern", "name", "same"),
    [("*", "a", True), ("*", "a/b", False), ("a?c", "abc", True), ("a?c", "a/c", False), ("[a-c]x", "bx", True),
     ("[^a-c]x", "bx", False), (r"a\*", "a*", True), (r"a\*", "ab", False), ("a.c", "abc", False), ("**", "a/b", False)],
)  # fmt: skip
def test_patterns_are_go_s(pattern: str, name: str, same: bool) -> None:
    assert pattern_of(pattern)(name) is same


@pytest.mark.parametrize("pattern", ["[", "[]", "a[", "\\"])
def test_a_pattern_that_is_none(pattern: str) -> None:
    with pytest.raises(MinidockerError, match="syntax error in pattern"):
        pattern_of(pattern)


def test_a_time_that_is_none_is_refused_before_anything_is_pruned() -> None:
    with pytest.raises(UsageError, match="cannot read the time"):
        parse_filters(["until=soon"], ("until",))


def test_moments() -> None:
    now = 10**18
    assert moment_of("10m", now) == now - 600 * 10**9
    assert moment_of("1h0.5s", now) == now - 3600_500_000_000
    assert moment_of("-1m", now) == now + 60 * 10**9
    assert moment_of("1517818401", now) == 1517818401 * 10**9
    assert moment_of("2018-02-05T08:13:21Z", now) == 1517818401 * 10**9
    for text in ("soon", "10x", "", "h"):
        with pytest.raises(UsageError):
            moment_of(text, now)


def test_the_forest_is_the_family_where_it_is_shown(bench: Workbench) -> None:
    bench.images.tag(parse_reference("half"), bench.images.resolve("web:v1@3"))
    shown = list(chosen_entries(listed(bench), {}, {}))
    (base,) = forest(bench.images, shown)
    assert (base.entry.names, base.own, base.own_size) == (("base:latest",), 1, 5)
    (half,) = base.above
    assert (half.entry.names, half.own, half.own_size) == (("half:latest",), 1, 6)
    assert [(b.entry.names, b.own, b.own_size, b.layers) for b in half.above] == [
        (("web:v1",), 0, 0, 2)
    ]


def test_an_image_whose_parent_is_unknown_stands_on_what_it_begins_with(
    bench: Workbench,
) -> None:
    """Loaded or pulled images have no parents; histories and layers tell."""
    for path in Path(bench.images.metadata).glob("*/parent"):
        path.unlink()
    bench.images._parents = None
    os.utime(bench.images.content)
    shown = [entry for entry in listed(bench) if entry.names]
    (base,) = forest(bench.images, shown)
    assert [branch.entry.names for branch in base.above] == [("web:v1",)]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
def test_a_time_without_a_zone_is_local(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for text, words in (
            ("2018-02-05", "2018-02-05 00:00"), ("2018-07-05T08:30", "2018-07-05 08:30"),
            ("2018-07-05T08:30:01", "2018-07-05 08:30:01"), ("2018-03-25T03:30", "2018-03-25 03:30"),
            ("2018-07-05T08:30+02:00", "2018-07-05 06:30 UTC"),
        ):  # fmt: skip
            said = subprocess.run(
                ["date", "-d", words, "+%s"], capture_output=True, text=True, check=True
            )
            assert moment_of(text, 0) == int(said.stdout) * 10**9, text
    finally:
        monkeypatch.undo()
        time.tzset()
