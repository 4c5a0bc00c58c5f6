"""Names by digest, what is counted, and what a prune frees; Docker is asked in tests/cli."""

import io
from pathlib import Path

import pytest
from scenery import tar_of

from minidocker.engine import Engine
from minidocker.errors import ConflictError
from minidocker.oci import ContainerConfig, HistoryEntry, parse_reference
from minidocker.removal import (
    Remover,
    begins_id,
    costs_of,
    is_single,
    prune_containers,
    prune_images,
)


DIGEST = "sha256:" + "5" * 64


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(str(tmp_path / "store"), "vfs")


def base(engine: Engine, tag: str, size: int = 100) -> str:
    data = tar_of({f"file-{size}": b"x" * size})
    return engine.import_(io.BytesIO(data).read, parse_reference(tag))


def child(engine: Engine, parent: str, tag: str = "", **labels: str) -> str:
    image = engine.images.get(parent)
    line = HistoryEntry(created_by=f"LABEL {labels} {tag}", empty_layer=True)
    config = (image.config or ContainerConfig()).replace(labels=labels or None)
    id = engine.images.add(
        image.replace(config=config, history=(*image.history, line)), parent
    )
    if tag:
        engine.images.tag(parse_reference(tag), id)
    return id


def removed(
    engine: Engine, text: str, *, force: bool = False, prune: bool = True
) -> list[str]:
    return [str(one) for one in Remover(engine).remove(text, force=force, prune=prune)]


@pytest.mark.parametrize(
    ("names", "single"),
    [([], True), (["a:1"], True), (["a:1", "a:2"], False), (["a:1", f"a@{DIGEST}"], True), ([f"a@{DIGEST}"], True),
     (["a:1", f"b@{DIGEST}"], False), ([f"a@{DIGEST}", f"b@{DIGEST}"], False), (["a:1", "b:1", f"a@{DIGEST}"], False)],
)  # fmt: skip
def test_one_tag_and_the_digests_of_its_repository_are_one_name(
    names: list[str], single: bool
) -> None:
    assert is_single(names) is single


def test_how_an_id_is_told_from_a_name() -> None:
    id = "sha256:abc" + "0" * 61
    assert all(
        begins_id(id, text)
        for text in ("abc", "sha256:abc", id, "abc0", "web@3", "web:v1@12")
    )
    assert not any(
        begins_id(id, text) for text in ("abc1", "web", f"web@{DIGEST}", "web@x")
    )


def test_digests_go_with_the_last_tag_of_their_repository(engine: Engine) -> None:
    id = base(engine, "web:v1")
    engine.images.tag(parse_reference("web:v2"), id)
    engine.images.note_digest(parse_reference("web"), DIGEST, id)
    assert removed(engine, "web:v2") == ["Untagged: web:v2"]
    gone = removed(engine, "web:v1")
    assert gone[:3] == ["Untagged: web:v1", f"Untagged: web@{DIGEST}", f"Deleted: {id}"]
    assert engine.images.names.read() == {}


def test_a_digest_alone_can_go(engine: Engine) -> None:
    id = base(engine, "web:v1")
    engine.images.note_digest(parse_reference("web"), DIGEST, id)
    assert removed(engine, f"web@{DIGEST}") == [f"Untagged: web@{DIGEST}"]
    assert engine.images.tags_of(id) == ["web:v1"]


def test_an_id_with_one_tag_and_its_digest_goes_whole(engine: Engine) -> None:
    id = base(engine, "web:v1")
    engine.images.note_digest(parse_reference("web"), DIGEST, id)
    assert len(removed(engine, id[7:19])) == 4
    assert engine.images.ids() == []


def test_nothing_goes_where_something_forbids_it(engine: Engine) -> None:
    id = base(engine, "web:v1")
    child(engine, id, "top")
    with pytest.raises(ConflictError, match="dependent child") as caught:
        removed(engine, id, force=True)
    assert caught.value.hint is None
    assert engine.images.tags_of(id) == ["web:v1"]


def test_idle_ancestors_go_unless_they_are_kept(engine: Engine) -> None:
    bottom = base(engine, "base")
    step = child(engine, bottom, number="1")
    top = child(engine, step, "top")
    assert removed(engine, "top", prune=False) == [
        "Untagged: top:latest",
        f"Deleted: {top}",
    ]
    top = child(engine, step, "top")
    assert removed(engine, "top") == [
        "Untagged: top:latest",
        f"Deleted: {top}",
        f"Deleted: {step}",
    ]
    assert engine.images.ids() == [bottom]


def test_layers_that_a_container_shows_stay(engine: Engine) -> None:
    id = base(engine, "base")
    box = engine.create("base", ContainerConfig(cmd=("true",)), name="box")
    assert removed(engine, "base", force=True) == [
        "Untagged: base:latest",
        f"Deleted: {id}",
    ]
    engine.tidy()
    assert engine.layers.rw_parent(box.id) in engine.layers.ids()
    (gone,) = prune_containers(engine, {})
    assert gone.name == box.id
    engine.tidy()
    assert engine.layers.ids() == []


def test_costs_count_a_layer_once(engine: Engine) -> None:
    one, _ = base(engine, "one", 1000), base(engine, "two", 20)
    child(engine, one, "other", k="v")
    engine.create("two", ContainerConfig(cmd=("true",)), name="box")
    costs = costs_of(engine)
    assert (costs.layers, costs.needed, len(costs.boxes)) == (1020, 20, 1)
    found = {c.entry.tags[0]: (c.shared, c.unique, c.containers) for c in costs.images}
    assert found == {
        "one:latest": (1000, 0, 0), "other:latest": (1000, 0, 0), "two:latest": (0, 20, 1),
    }  # fmt: skip
    freed = sum(gone.size for gone in prune_images(engine, {}, everything=True))
    assert freed == costs.layers - costs.needed


def test_prune_obeys_its_filters(engine: Engine) -> None:
    id = base(engine, "base")
    kept, gone = child(engine, id, keep="yes"), child(engine, id, keep="no")
    assert prune_images(engine, {"until": ["1h"]}, everything=True) == []
    assert [
        one.name
        for one in prune_images(engine, {"label": ["keep=no"]}, everything=False)
    ] == [gone]
    assert prune_images(engine, {"label!": ["keep"]}, everything=False) == []
    assert kept in engine.images.ids()
    names = [one.name for one in prune_images(engine, {}, everything=True)]
    assert names[:2] == [kept, "base:latest"]
    assert engine.images.ids() == engine.layers.ids() == engine.driver.ids() == []
