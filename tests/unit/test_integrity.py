"""Whatever is broken in a store is found, by a line that says what to do; doing it helps."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scenery import tar_of

from minidocker.durable import store_lock
from minidocker.engine import Engine
from minidocker.integrity import check_store, repair
from minidocker.oci import ContainerConfig, HistoryEntry, parse_reference
from minidocker.removal import Remover, prune_containers, prune_images
from minidocker.volumes import VolumeStore


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """A base, an image on it, a container of that."""
    engine = Engine(str(tmp_path / "store"), "vfs")
    base = engine.import_(
        io.BytesIO(tar_of({"a": b"x" * 100})).read, parse_reference("base")
    )
    below = engine.images.get(base)
    layer = engine.layers.add(
        io.BytesIO(tar_of({"b": b"y"})).read, engine.layers.ids()[0]
    )
    line = HistoryEntry(created_by="COPY b /")
    top = engine.images.add(
        below.replace(
            diff_ids=(*below.diff_ids, layer.diff_id), history=(*below.history, line)
        ),
        base,
    )
    engine.images.tag(parse_reference("top"), top)
    engine.create("top", ContainerConfig(cmd=("true",)), name="box")
    return engine


def home(engine: Engine) -> Path:
    return Path(engine.images.home)


def stack(engine: Engine) -> list[str]:
    image = engine.images.get(engine.images.resolve("top"))
    return [layer.chain_id for layer in engine.layers.stack(image.diff_ids)]


def chain_file(engine: Engine, number: int, name: str) -> Path:
    return Path(engine.layers.chains, stack(engine)[number][7:], name)


def tree(engine: Engine, number: int) -> Path:
    cache = chain_file(engine, number, "cache-id").read_text()
    return Path(engine.root, "vfs", "dir", cache)


def change_a_file(engine: Engine) -> None:
    (tree(engine, 0) / "a").write_bytes(b"z" * 100)


def lose_a_file(engine: Engine) -> None:
    (tree(engine, 1) / "b").unlink()


def lose_a_tree(engine: Engine) -> None:
    shutil.rmtree(tree(engine, 0))


def lose_a_record(engine: Engine) -> None:
    shutil.rmtree(chain_file(engine, 0, ""))


def cut_a_record(engine: Engine) -> None:
    chain_file(engine, 1, "diff").write_text("")


def swap_the_parent(engine: Engine) -> None:
    cache = chain_file(engine, 1, "cache-id").read_text()
    (Path(engine.root) / "vfs" / "parent" / cache).write_text("")


def share_a_tree(engine: Engine) -> None:
    other = chain_file(engine, 0, "cache-id").read_text()
    chain_file(engine, 1, "cache-id").write_text(other)


def change_an_image(engine: Engine) -> None:
    path = Path(engine.images.content, engine.images.resolve("base")[7:])
    path.write_bytes(path.read_bytes() + b" ")


def lose_a_parent(engine: Engine) -> None:
    Path(engine.images.content, engine.images.resolve("base")[7:]).unlink()


def tear_the_names(engine: Engine) -> None:
    (home(engine) / "repositories.json").write_text('{"Repos')


def lose_a_layer_of_a_container(engine: Engine) -> None:
    shutil.rmtree(Path(engine.layers.mounts, engine.containers.ids()[0]))


def lose_a_name(engine: Engine) -> None:
    os.unlink(f"{engine.containers.names}/box")


def tear_a_container(engine: Engine) -> None:
    path = engine.containers.path(engine.containers.ids()[0], "config.v2.json")
    Path(path).write_text('{"ID"')


def lose_a_record_of_a_volume(engine: Engine) -> None:
    store = VolumeStore(engine.root)
    Path(store.create("kept").path, "file").write_text("precious")
    os.truncate(store.path("kept", "opts.json"), 0)


def make_half_a_volume(engine: Engine) -> None:
    os.makedirs(VolumeStore(engine.root).path("half"))


def remove_half_a_volume(engine: Engine) -> None:
    place = Path(engine.root, "volumes", ".gone-1")
    place.mkdir(parents=True)
    (place / "file").write_text("nobody misses it")


def make_half_a_network(engine: Engine) -> None:
    place = Path(engine.root, "networks", "each", "bridge")
    place.mkdir(parents=True)
    (place / "network.json").write_text("")


def tear_a_network(engine: Engine) -> None:
    make_half_a_network(engine)
    Path(engine.root, "networks", "each", "bridge", "network.json").write_text('{"na')


def tear_one_that_removes_itself(engine: Engine) -> None:
    id = engine.containers.ids()[0]
    path = Path(engine.containers.path(id, "config.v2.json"))
    path.write_text(path.read_text().replace('"AutoRemove":false', '"AutoRemove":true'))
    os.truncate(engine.containers.path(id, "hostconfig.json"), 0)


DAMAGE: dict[Callable[[Engine], None], str] = {
    change_a_file: 'the file "a" is not the one that came',
    lose_a_file: "not the one that came",
    lose_a_tree: "the directory of its files is not here",
    lose_a_record: "is not here",
    cut_a_record: "the files of this layer are damaged",
    swap_the_parent: "does not lie on those of the layers below it",
    share_a_tree: "another layer has the same tree",
    change_an_image: "does not match its id",
    lose_a_parent: "its parent",
    tear_the_names: "not a list of names",
    lose_a_layer_of_a_container: "it has no read-write layer",
    lose_a_name: "its name is not its own",
    tear_a_container: "the record of this container is damaged",
    lose_a_record_of_a_volume: "its files are there",
    make_half_a_volume: "half made",
    remove_half_a_volume: "half removed",
    make_half_a_network: "half made",
    tear_one_that_removes_itself: "a power cut has torn it",
    tear_a_network: "its record cannot be read",
}


def test_a_store_that_was_used_is_clean(engine: Engine) -> None:
    assert check_store(engine) == []


@pytest.mark.parametrize(
    ("damage", "said"), DAMAGE.items(), ids=[one.__name__ for one in DAMAGE]
)
def test_damage_is_found_and_can_be_cleared_away(
    engine: Engine, damage: Callable[[Engine], None], said: str
) -> None:
    damage(engine)
    engine = Engine(engine.root)
    faults = check_store(engine)
    assert any(said in str(fault) for fault in faults), list(map(str, faults))
    for _ in range(3):
        obey(engine, list(map(str, repair(engine, check_store(engine)))))
    engine = Engine(engine.root)
    prune_containers(engine, {})
    prune_images(engine, {}, everything=True)
    assert list(map(str, check_store(engine))) == []
    assert engine.driver.ids() == []
    assert engine.images.ids() == []


def obey(engine: Engine, remedies: list[str]) -> None:
    """Do what the faults say; what is gone by an earlier one may be gone."""
    for line in remedies:
        words = line.replace("`", "").replace(",", "").split()
        if "create" in words:
            VolumeStore(engine.root).create(words[words.index("create") + 1])
        elif "remove" in words:
            path = Path(words[words.index("remove") + 1])
            if str(path) == "it":
                path = home(engine) / "repositories.json"
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif "rmi" in words:
            for word in words[words.index("-f") + 1 : words.index("then")]:
                if any(id[7:].startswith(word) for id in engine.images.ids()):
                    Remover(engine).remove(word, force=True, prune=True)
        elif "rm" in words:
            from minidocker.lifecycle import remove

            if any(id.startswith(words[-1]) for id in engine.containers.ids()):
                remove(engine.containers, engine.containers.resolve(words[-1]))
        else:
            raise AssertionError(line)


def leave_a_tree(engine: Engine) -> None:
    engine.driver.create("f" * 64, None)


def leave_a_layer(engine: Engine) -> None:
    engine.layers.add(io.BytesIO(tar_of({"c": b"c"})).read)
    engine.layers.batch.publish()


def leave_metadata(engine: Engine) -> None:
    os.mkdir(f"{engine.images.metadata}/{'0' * 64}")


def leave_scratch(engine: Engine) -> None:
    os.makedirs(f"{engine.root}/tmp/0123")
    os.makedirs(f"{engine.root}/changing", exist_ok=True)
    Path(engine.root, "changing", "0123").touch()
    os.mkdir(f"{engine.root}/overlay-check-1")


def leave_half_a_container(engine: Engine) -> None:
    id = "e" * 64
    os.makedirs(engine.containers.path(id, "rootfs"))
    os.symlink(id, f"{engine.containers.names}/half")
    engine.layers.create_rw(id, None)


def leave_a_name(engine: Engine) -> None:
    os.symlink("d" * 64, f"{engine.containers.names}/nobody")


ORPHANS = (leave_a_tree, leave_a_layer, leave_metadata, leave_scratch, leave_half_a_container, leave_a_name)  # fmt: skip


@pytest.mark.parametrize("leave", ORPHANS, ids=[one.__name__ for one in ORPHANS])
def test_what_nobody_names_is_an_orphan_and_swept(
    engine: Engine, leave: Callable[[Engine], None]
) -> None:
    before = sorted(os.listdir(engine.root))
    leave(engine)
    faults = check_store(engine)
    assert {fault.orphan for fault in faults} == {True}, list(map(str, faults))
    with store_lock(engine.root):
        assert check_store(engine) == [], "somebody may be making it"
    prune_images(engine, {}, everything=False)
    assert list(map(str, check_store(engine))) == []
    assert set(os.listdir(engine.root)) <= {*before, "changing"}


def test_records_of_where_layers_came_from_are_read(engine: Engine) -> None:
    place = home(engine) / "distribution/v2metadata-by-diffid/sha256"
    place.mkdir(parents=True)
    good = [{"Digest": "sha256:" + "5" * 64, "SourceRepository": "r", "HMAC": ""}]
    (place / ("5" * 64)).write_text(json.dumps(good))
    assert check_store(engine) == []
    (place / ("6" * 64)).write_text("[{}]")
    (fault,) = check_store(engine)
    assert "not a record" in fault.what
    assert repair(engine, [fault]) == []
    assert check_store(engine) == []


def test_what_a_leftover_gives_back_is_said(engine: Engine) -> None:
    engine.driver.create("stray", None)
    with engine.driver.opened("stray", writable=True) as top:
        Path(top, "file").write_bytes(b"x" * 50_000)
    [fault] = check_store(engine)
    found = re.search(
        r"tree stray: .*, and has ([\d.]+)kB; `minidocker system prune`", str(fault)
    )
    assert found, fault
    assert 50 <= float(found[1]) < 80
    engine.tidy()
    assert check_store(engine) == []


def test_a_volume_with_files_is_there_without_its_record(engine: Engine) -> None:
    store = VolumeStore(engine.root)
    lose_a_record_of_a_volume(engine)
    assert [one.name for one in store.list()] == ["kept"]
    repair(engine, check_store(engine))
    assert check_store(engine) == []
    assert Path(store.get("kept").path, "file").read_text() == "precious"
