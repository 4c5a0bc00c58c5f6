"""What builds keep beside images: told by `system df`, removed by `builder prune`."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from cli.store import Store


@pytest.fixture(params=["overlay2", "vfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path, small_tree: Path) -> Store:
    """A store of the test's own: what is pruned here is nobody else's."""
    store = Store(tmp_path / "store", request.param)
    store.says("import", str(small_tree), "small:v1")
    return store


CACHED = (
    "FROM small:v1\nRUN --mount=type=cache,target=/c,id=big"
    " cat /bin/busybox > /c/copy; ls /c\nCOPY --link note /note\n"
)


def context(where: Path, text: str) -> str:
    where.mkdir(exist_ok=True)
    (where / "Dockerfile").write_text(text)
    (where / "note").write_text("note")
    os.utime(where / "note", (1, 1))
    return str(where)


def row(store: Store) -> list[str]:
    line = store.says("system", "df", "--format", "{{json .}}").splitlines()
    [found] = [text for text in line if "Build Cache" in text]
    import json

    fields = json.loads(found)
    return [fields[name] for name in ("TotalCount", "Active", "Size", "Reclaimable")]


def test_caches_are_told_and_pruned(store: Store, tmp_path: Path) -> None:
    path = context(tmp_path / "context", CACHED)
    store.says("builder", "prune", "-af")
    assert row(store) == ["0", "0", "0B", "0B"]
    store.says("build", "-t", "cached", path)
    size = os.path.getsize("/bin/busybox")
    count, active, whole, free = row(store)
    assert (count, active) == ("2", "0")
    assert whole == free
    assert abs(float(whole.removesuffix("MB")) * 1e6 - size) < 2000
    told = store.says("system", "df", "-v")
    assert "Build cache usage: " in told
    assert "exec.cachemount" in told

    asked = store.says("builder", "prune", stdin=b"n\n")
    assert asked.startswith("WARNING! This will remove all dangling build cache. Are")
    assert asked.endswith("Total reclaimed space: 0B\n")
    gone = store.says("builder", "prune", "-f").splitlines()
    assert gone[0] == "Deleted build cache objects:"
    assert (len(gone), len(gone[1])) == (4, 25)
    assert row(store)[0] == "1"
    assert "Using cache" in store.says("build", path).split("Step 2/3")[1]
    store.says("rmi", "-f", "cached")
    store.says("image", "prune", "-af")
    assert "Deleted build cache objects:" in store.says("builder", "prune", "-f")
    everything = store.says("system", "prune", "-a", stdin=b"y\n")
    assert "  - all build cache\n" in everything
    assert row(store)[0] == "0"
    left = [path for path in (store.root / "buildcache").rglob("*") if path.is_file()]
    assert left == []


def test_a_cache_that_is_mounted_stays(store: Store, tmp_path: Path) -> None:
    sleeping = CACHED.replace(
        "ls /c", "until [ -e /c/stop ]; do sleep 0.1; done"
    ).replace("id=big", "id=busy")
    path = context(tmp_path / "context", sleeping)
    mounts = store.root / "buildcache" / "mounts"
    building = subprocess.Popen(
        store.argv("build", "--no-cache", path), stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 30
        while not list(mounts.glob("*/copy")) and time.monotonic() < end:
            time.sleep(0.05)
        assert row(store)[:2] == ["1", "1"]
        store.says("builder", "prune", "-af")
        assert len(list(mounts.glob("*/copy"))) == 1
    finally:
        for copy in mounts.glob("*/copy"):
            copy.with_name("stop").touch()
        assert building.wait(30) == 0
    store.says("builder", "prune", "-af")
    assert row(store)[0] == "0"
    assert not list(mounts.iterdir())


def test_filters_spare_what_is_young_or_cannot_match(
    store: Store, tmp_path: Path
) -> None:
    store.says("build", context(tmp_path / "context", CACHED))
    for words in ("until=1h", "label=a"):
        store.says("builder", "prune", "-af", "--filter", words)
        assert row(store)[0] == "2"
    store.says("builder", "prune", "-af", "--filter", "until=1ns")
    assert row(store)[0] == "0"
