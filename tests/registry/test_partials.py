"""Pulls that go on in a later process; bounds; registries that are known as insecure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.store import Store

from minidocker.errors import IntegrityError, RegistryError, UsageError
from minidocker.partials import DOWNLOADS, Partial
from minidocker.trust import VARIABLE, daemon_file, is_insecure, listed_in
from registry.fake import Fake, Handler, sha256
from registry.test_client import breaking
from registry.test_exchange import Bench, Image, name


NOISE = os.urandom(4 << 20)


@pytest.fixture
def bench(tmp_path: Path, home: Path) -> Bench:
    (tmp_path / "one").mkdir()
    return Bench(tmp_path / "one")


def ranges(fake: Fake, digest: str) -> list[str | None]:
    return [h.get("Range") for _, path, h in fake.asked if path.endswith(digest)]


@pytest.fixture
def image(fake: Fake) -> Image:
    image = Image(fake, {"noise": NOISE})
    image.manifest()
    return image


def kept(bench: Bench) -> list[Path]:
    home = bench.store / DOWNLOADS
    return sorted(home.iterdir()) if home.exists() else []


def breaks_off(fake: Fake, bench: Bench, at: int = 1_500_000) -> None:
    """Let a pull fail for good after some bytes of the layer; then answer again."""
    one, times = breaking(at, 1), [0]

    def fault(it: Handler) -> bool:
        if (
            "/blobs/" not in it.path
            or len(it.fake.blobs["a/b", it.path.rpartition("/")[2]]) < 1 << 20
        ):
            return False
        times[0] += 1
        if times[0] == 1:
            return one(it)
        it.drop()
        return True

    fake.fault = fault
    with pytest.raises(RegistryError):
        bench.pull(name(fake))
    fake.fault = None
    fake.asked.clear()


def test_a_later_pull_asks_for_the_rest(fake: Fake, bench: Bench, image: Image) -> None:
    breaks_off(fake, bench)
    digest = sha256(image.blobs[0])
    assert [path.name for path in kept(bench)] == [digest[7:], f"{digest[7:]}.lock"]
    have = kept(bench)[0].stat().st_size
    assert 1_000_000 < have <= 1_500_000
    assert bench.pull(name(fake)) == image.id
    assert ranges(fake, digest) == [f"bytes={have}-"]
    assert kept(bench) == []


def test_what_was_damaged_meanwhile_is_fetched_anew(
    fake: Fake,
    bench: Bench,
    image: Image,
) -> None:
    breaks_off(fake, bench)
    path = kept(bench)[0]
    data = path.read_bytes()
    path.write_bytes(b"x" + data[1:])
    assert bench.pull(name(fake)) == image.id
    assert ranges(fake, sha256(image.blobs[0])) == [f"bytes={len(data)}-", None]


@pytest.mark.parametrize("size", ["whole", "long", "whole and wrong"])
def test_a_file_that_is_long_enough_is_believed_only_by_its_digest(
    fake: Fake,
    bench: Bench,
    image: Image,
    size: str,
) -> None:
    breaks_off(fake, bench)
    blob = image.blobs[0]
    kept(bench)[0].write_bytes(
        {"whole": blob, "long": blob + b"x", "whole and wrong": bytes(len(blob))}[size]
    )
    assert bench.pull(name(fake)) == image.id
    assert ranges(fake, sha256(blob)) == ([] if size == "whole" else [None])
    assert kept(bench) == []


def test_a_blob_that_is_not_what_was_asked_for_is_not_kept(
    fake: Fake,
    bench: Bench,
    image: Image,
) -> None:
    digest = sha256(image.blobs[0])
    good = fake.blobs["a/b", digest]
    fake.blobs["a/b", digest] = bytes(len(good))
    with pytest.raises(IntegrityError):
        bench.pull(name(fake))
    assert kept(bench) == []


def test_two_pulls_of_one_blob_do_not_meet(
    fake: Fake, bench: Bench, image: Image
) -> None:
    digest = sha256(image.blobs[0])
    other = Partial(str(bench.store), digest, "/none")
    with other.open() as file:
        file.write(b"what another pull has")
    assert bench.pull(name(fake)) == image.id
    assert Path(other.path).read_bytes() == b"what another pull has"
    other.close()
    assert bench.leavings()[-1] == []


def test_a_link_in_the_place_of_a_partial_blob_is_not_followed(tmp_path: Path) -> None:
    digest = sha256(b"")
    home = tmp_path / DOWNLOADS
    home.mkdir(parents=True)
    (tmp_path / "victim").write_bytes(b"mine")
    (home / digest[7:]).symlink_to(tmp_path / "victim")
    partial = Partial(str(tmp_path), digest, "/none")
    with pytest.raises(OSError, match="symbolic links"):
        partial.open()
    assert (tmp_path / "victim").read_bytes() == b"mine"
    partial.remove()


# bounds


@pytest.mark.root
def test_more_than_the_bound_is_refused_and_leaves_nothing(
    fake: Fake,
    tmp_path: Path,
    image: Image,
    small_tree: Path,
) -> None:
    store = Store(tmp_path / "store", "vfs")
    done = store("pull", "--max-size", "1m", str(name(fake)))
    assert done.returncode == 1
    assert "exceed the size limit" in done.stderr
    assert store.says("images", "-aq") == ""
    store.says("pull", "--max-size", "5m", str(name(fake)))
    store.says("save", "-o", str(tmp_path / "a.tar"), str(name(fake)))
    other = Store(tmp_path / "other", "vfs")
    for words in (
        ("load", "-i", str(tmp_path / "a.tar")), ("import", str(small_tree)),
    ):  # fmt: skip
        done = other(*words, "--max-size", "1k")
        assert (done.returncode, "exceed the size limit" in done.stderr) == (1, True)
        assert other.says("images", "-aq") == ""
    assert not list((tmp_path / "other/vfs/dir").iterdir())
    done = other("load", "--max-size", "much", "-i", str(tmp_path / "a.tar"))
    assert done.returncode == 125


@pytest.mark.root
def test_the_layers_of_an_image_share_the_bound(fake: Fake, tmp_path: Path) -> None:
    image = Image(fake, {"a": NOISE[: 1 << 20]}, {"b": NOISE[1 << 20 : 2 << 20]})
    image.manifest()
    store = Store(tmp_path / "store", "vfs")
    done = store("pull", "--max-size", "1500k", str(name(fake)))
    assert (done.returncode, store.says("images", "-aq")) == (1, "")
    store.says("pull", "--max-size", "2100k", str(name(fake)))


# registries without a certificate


def test_the_list_is_that_of_docker_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "daemon.json"
    settings.write_text(json.dumps({"insecure-registries": ["lab:5000", "10.0.0.0/8"]}))
    monkeypatch.setattr("minidocker.trust.daemon_file", lambda: str(settings))
    monkeypatch.delenv(VARIABLE, raising=False)
    assert [is_insecure(one) for one in ("lab:5000", "lab", "10.9.9.9:1", "11.0.0.1")] == [
        True, False, True, False,
    ]  # fmt: skip
    listed_in.cache_clear()
    settings.write_text('{"insecure-registries": "lab"}')
    with pytest.raises(UsageError, match="not a list"):
        is_insecure("lab")
    listed_in.cache_clear()


def test_dockers_own_file_is_the_one_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert daemon_file() == "/etc/docker/daemon.json"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    assert daemon_file() == "/config/docker/daemon.json"


NETWORK = """
set -e
ip link set lo up
ip address add 192.0.2.7/32 dev lo
docker-registry serve "$1" & registry=$!
trap 'kill $registry; wait $registry || true' EXIT
for _ in $(seq 200); do
  if "$PYTHON" -c 'import socket; socket.create_connection(("192.0.2.7", 5000)).close()' 2>/dev/null
  then break; fi
  sleep 0.05
done
run() { echo "== $*"; "$PYTHON" -m minidocker --root "$2" "${@:3}" 2>&1 && echo ok || echo "status $?"; }
image=192.0.2.7:5000/team/small:v1
run "no list" "$STORE" tag small:v1 "$image"
run plain "$STORE" push -q "$image"
run flag "$STORE" push -q --insecure-registry 192.0.2.7:5000 "$image"
run other "$OTHER" pull -q --insecure-registry 192.0.2.8 "$image"
export MINIDOCKER_INSECURE_REGISTRIES=192.0.2.0/24
run network "$OTHER" pull -q "$image"
run logged "$OTHER" run --rm --network none "$image" echo ran
run bad "$OTHER" pull -q --insecure-registry http://x "$image"
"""
SETTINGS = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{root}/registry"}}}}
http: {{addr: "192.0.2.7:5000"}}
"""


@pytest.mark.root
def test_a_registry_that_is_not_this_machine_needs_a_word(
    tmp_path: Path,
    small_tree: Path,
) -> None:
    """A network of its own, where 192.0.2.7 is a registry that speaks plain http."""
    store = Store(tmp_path / "store", "vfs")
    store.says("import", str(small_tree), "small:v1")
    settings = tmp_path / "registry.yml"
    settings.write_text(SETTINGS.format(root=tmp_path))
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", NETWORK, "bash", str(settings)],
        env={
            **os.environ, "PYTHON": sys.executable, "STORE": str(store.root),
            "OTHER": str(tmp_path / "other"), "DOCKER_CONFIG": str(tmp_path / "none"),
        },
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    parts = dict(text.partition("\n")[::2] for text in done.stdout.split("== ")[1:])
    said = {title.split()[0]: text for title, text in parts.items()}
    assert "status 1" in said["plain"], done.stdout + done.stderr
    assert "192.0.2.7:5000" in said["plain"]
    assert said["flag"].endswith("ok\n")
    assert "status 1" in said["other"]
    assert said["network"].endswith("ok\n")
    assert said["logged"] == "ran\nok\n"
    assert "status 125" in said["bad"]
