"""COPY --link: one layer on whatever base, found again when only the base is new."""

import io
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
from kernel.test_building import driver, many_ids  # noqa: F401 - fixtures
from scenery import tar_of, write
from workbench import Workbench

from minidocker.drivers import StorageDriver
from minidocker.oci import sha256_text


pytestmark = pytest.mark.root
TEXT = "FROM base\nCOPY --link a d /srv/\nCOPY b /b\n"


@pytest.fixture
def bench(driver: type[StorageDriver], tmp_path: Path) -> Workbench:  # noqa: F811
    bench = Workbench(tmp_path, driver)
    bench.base("base", {"etc": None, "etc/passwd": b"root:x:0:0::/:/bin/sh\n"})
    write(bench.context, {"a": "a", "b": "b", "d/c": "c", "d/e/f": "f"})
    return bench


def top(bench: Workbench, id: str) -> str:
    return bench.images.get(id).diff_ids[-1]


def test_a_new_base_keeps_a_linked_copy(bench: Workbench):
    before = bench.build(TEXT)
    assert bench.hits() == [False, False]
    old = bench.images.get(before).diff_ids
    bench.base("base", {"srv": "data", "data/x": b"x", "tmp": None})
    after = bench.build(TEXT)
    new = bench.images.get(after).diff_ids
    assert bench.hits() == [True, False]
    assert " ---> Using cache (linked)" in bench.said
    assert new[1] == old[1] and new[0] != old[0]  # noqa: PT018
    tree = bench.tree(after)
    assert tree["srv"][0] == "dir"
    assert tree["srv/a"][2] == "a" and tree["srv/e/f"][2] == "f"  # noqa: PT018
    assert tree["data/x"][2] == "x"
    assert bench.build(TEXT) == after
    assert bench.hits() == [True, True]


def test_the_layer_is_that_of_a_copy_onto_nothing(bench: Workbench):
    linked = bench.build("FROM base\nCOPY --link a d /srv/\n")
    alone = bench.build("FROM scratch\nCOPY a d /srv/\n")
    assert top(bench, linked) == top(bench, alone)
    got = io.BytesIO()
    bench.layers.tar_of(
        bench.layers.stack(bench.images.get(linked).diff_ids)[-1].chain_id, got.write
    )
    got.seek(0)
    with tarfile.open(fileobj=got) as tar:
        assert sorted(tar.getnames()) == ["srv", "srv/a", "srv/c", "srv/e", "srv/e/f"]


def test_a_step_before_it_that_missed_does_not_matter(bench: Workbench):
    text = "FROM base\nENV A={}\nCOPY --link a /srv/\nCOPY --link d /d\nENV B=1\n"
    bench.build(text.format(1))
    bench.build(text.format(2))
    assert bench.hits() == [False, True, True, False]


@pytest.mark.parametrize(
    "change",
    [
        "content",
        "mode",
        "destination",
        "owner",
        "chmod",
        "exclude",
        "parents",
        "workdir",
        "no cache",
    ],
)
def test_whatever_counts_makes_another_layer(
    bench: Workbench,
    change: str,
    many_ids: None,  # noqa: F811
):
    text = "FROM base\nWORKDIR /w\nCOPY --link d x/\n"
    first = top(bench, bench.build(text))
    bench.base("base", {"other": b"base"})
    options = {}
    if change == "content":
        (bench.context / "d" / "c").write_text("C")
    elif change == "mode":
        (bench.context / "d" / "c").chmod(0o600)
    elif change == "no cache":
        options["no_cache"] = True
    else:
        old, new = {
            "destination": ("x/", "y/"), "owner": ("--link", "--link --chown=7:8"),
            "chmod": ("--link", "--link --chmod=700"), "exclude": ("--link", "--link --exclude=c"),
            "parents": ("--link", "--link --parents"), "workdir": ("/w", "/v"),
        }[change]  # fmt: skip
        text = text.replace(old, new)
    second = top(bench, bench.build(text, **options))
    assert "Using cache" not in "\n".join(bench.said)
    assert (second == first) == (change == "no cache")


def test_a_name_is_looked_up_on_each_base(bench: Workbench, many_ids: None):  # noqa: F811
    text = "FROM base\nCOPY --link --chown=www a /a\n"
    passwd = "root:x:0:0::/:/bin/sh\nwww:x:{0}:{0}::/:/bin/sh\n"
    seen = []
    for number in (33, 33, 44):
        files: dict[str, bytes | str | None] = {
            "etc/passwd": passwd.format(number).encode(),
            "etc/group": f"www:x:{number}:\n".encode(),
            f"round{len(seen)}": b"",
        }
        bench.base("base", files)
        bench.build(text)
        seen.append(bench.hits()[-1])
    assert seen == [False, True, False]


def test_a_layer_that_is_gone_is_made_anew(bench: Workbench):
    first = bench.build(TEXT)
    linked = bench.images.get(first).diff_ids[1]
    for id, _ in reversed(bench.family(first)):
        bench.images.delete(id)
    shutil.rmtree(bench.layers.chains)
    for id in bench.driver.ids():
        bench.driver.remove(id)
    bench.base("base", {"new": b"base"})
    again = bench.build(TEXT)
    assert bench.hits() == [False, False]
    assert bench.images.get(again).diff_ids[1] == linked


def test_a_damaged_note_is_no_answer(bench: Workbench):
    bench.build(TEXT)
    for note in Path(bench.store, "buildcache/links").iterdir():
        note.write_text(sha256_text(b"other"))
    bench.base("base", {"new": b"base"})
    bench.build(TEXT)
    assert bench.hits() == [False, False]


def test_files_of_a_stage_and_an_archive_are_linked_too(bench: Workbench):
    (bench.context / "t.tar").write_bytes(tar_of({"in/it": b"it"}))
    text = (
        "FROM scratch AS made\nCOPY a /out/a\nFROM base\nCOPY --link --from=made /out /o\n"
        "ADD --link t.tar /u\nADD --link --unpack=false t.tar /p/\n"
    )
    first = bench.images.get(bench.build(text)).diff_ids[1:]
    bench.base("base", {"new": b"base"})
    id = bench.build(text)
    assert bench.images.get(id).diff_ids[1:] == first
    assert bench.hits()[-3:] == [True, True, True]
    assert {"o/a", "u/in/it", "p/t.tar"} <= set(bench.tree(id))


def test_a_copy_of_nothing_has_no_layer(bench: Workbench):
    (bench.context / "empty").mkdir()
    id = bench.build("FROM base\nCOPY --link empty /\n")
    assert len(bench.images.get(id).diff_ids) == 1


def test_a_failed_link_leaves_nothing(bench: Workbench):
    before = bench.leavings()
    write(bench.context, {"x": "x"})
    (bench.context / "odd").mkdir()
    os.mknod(bench.context / "odd/whiteout", stat.S_IFCHR)
    with pytest.raises(Exception, match="COPY failed"):
        bench.build("FROM base\nCOPY --link odd /x\n")
    assert bench.leavings() == before
