"""Whole images to and from registries: real ones with their peers, and hostile ones."""

import contextlib
import gzip
import json
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.store import Store
from peers import Docker, docker_daemon
from scenery import tar_of
from workbench import Workbench

from minidocker.drivers import Vfs
from minidocker.errors import (
    IntegrityError,
    MinidockerError,
    NotFoundError,
)
from minidocker.exchange import Event, Puller, Pusher, client_for
from minidocker.manifests import Descriptor, Index, Manifest, Media, Platform, described
from minidocker.oci import Reference, parse_reference
from minidocker.uploads import CHUNK
from minidocker.wire import Limits
from registry.fake import Fake, Handler, fake_registry, sha256, without_end


PLAIN = Media.DOCKER_CONFIG
LAYER = Media.DOCKER_LAYER


# our own stores, and registries in memory


class Bench(Workbench):
    """A workbench that pulls and pushes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, Vfs)
        self.told: list[Event] = []

    def client(self, registry: str):
        client = client_for(registry)
        client.limits = client.wire.limits = Limits(idle=1.0, pause=0.001)
        return client

    def pull(self, reference: Reference, wanted: Platform | None = None) -> str:
        self.told.clear()
        client = self.client(reference.registry)
        with self.layers.batch:
            puller = Puller(client, self.images, self.layers, self.told.append, wanted)
            return puller.pull(reference).id

    def push(self, reference: Reference) -> str:
        self.told.clear()
        client = self.client(reference.registry)
        pusher = Pusher(client, self.images, self.layers, self.told.append)
        return pusher.push(reference).digest

    def statuses(self) -> list[str]:
        return [event.status for event in self.told if event.total is None]


@pytest.fixture
def bench(tmp_path: Path, home: Path) -> Bench:
    (tmp_path / "one").mkdir()
    return Bench(tmp_path / "one")


@pytest.fixture
def other(tmp_path: Path, home: Path) -> Bench:
    (tmp_path / "two").mkdir()
    return Bench(tmp_path / "two")


def name(fake: Fake, text: str = "a/b:v1") -> Reference:
    return parse_reference(f"{fake.host}/{text}")


class Image:
    """An image in a registry in memory, which a test then spoils."""

    def __init__(
        self, fake: Fake, *trees: dict[str, bytes | str | None], repository: str = "a/b"
    ) -> None:
        self.fake, self.repository = fake, repository
        self.tars = [tar_of(tree) for tree in trees]
        self.config = {
            "architecture": os.uname()
            .machine.replace("x86_64", "amd64")
            .replace("aarch64", "arm64"),
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [sha256(tar) for tar in self.tars],
            },
        }
        self.blobs = [gzip.compress(tar, 1, mtime=0) for tar in self.tars]

    def manifest(self, tag: str = "v1", **changes: object) -> str:
        text = json.dumps(self.config).encode()
        config = self.fake.add_blob(self.repository, text, PLAIN)
        layers = tuple(
            self.fake.add_blob(self.repository, b, LAYER) for b in self.blobs
        )
        it = Manifest(config, layers, Media.DOCKER_MANIFEST.value).replace(**changes)
        return self.fake.add_manifest(self.repository, tag, it)

    @property
    def id(self) -> str:
        return sha256(json.dumps(self.config).encode())


TREES = (
    {"etc/motd": b"hello\n", "bin": None},
    {"etc/motd": b"bye\n"},
    {"x": "etc/motd"},
)


def test_an_image_comes_with_its_id_its_names_and_its_tree(
    fake: Fake, bench: Bench
) -> None:
    image = Image(fake, *TREES)
    digest = image.manifest()
    id = bench.pull(name(fake))
    assert id == image.id, "the image JSON is kept byte for byte"
    assert bench.images.tags_of(id) == [f"{fake.host}/a/b:v1"]
    assert bench.images.digests_of(id) == [f"{fake.host}/a/b@{digest}"]
    assert bench.tree(id)["etc/motd"] == ("file", 0o755, "bye\n")
    assert bench.tree(id)["x"][0] == "link"
    assert bench.images.parent(id) is None
    words = ["Pulling fs layer", "Download complete", "Pull complete"]
    assert sorted(bench.statuses()) == sorted(["Pulling from a/b", *words * 3])


def test_what_is_here_is_not_fetched_again(fake: Fake, bench: Bench) -> None:
    Image(fake, *TREES[:2]).manifest("v1")
    bench.pull(name(fake))
    Image(fake, *TREES).manifest("v2")
    fake.asked.clear()
    bench.pull(name(fake, "a/b:v2"))
    assert bench.statuses().count("Already exists") == 2
    assert len([p for p in fake.paths("GET") if "/blobs/" in p]) == 2, (
        "config and a layer"
    )
    fake.asked.clear()
    bench.pull(name(fake, "a/b:v2"))
    assert not [p for p in fake.paths("GET") if "/blobs/" in p]


def test_a_push_gives_back_what_was_pulled(fake: Fake, bench: Bench) -> None:
    image = Image(fake, *TREES)
    image.manifest()
    id = bench.pull(name(fake))
    with fake_registry() as target:
        there = name(target, "c/d:v2")
        bench.images.tag(there, id)
        digest = bench.push(there)
        assert sorted(bench.statuses()) == ["Preparing"] * 3 + ["Pushed"] * 3
        again = Image(target, *TREES, repository="c/d")
        sent = json.loads(target.manifests["c/d", "v2"][1])
        tars = [
            gzip.decompress(target.blobs["c/d", one["digest"]])
            for one in sent["layers"]
        ]
        assert tars == again.tars, "foreign tars go out as they came in"
        assert sent["config"]["digest"] == id
        assert f"{target.host}/c/d@{digest}" in bench.images.digests_of(id)


def test_connections_are_used_again(fake: Fake, bench: Bench, other: Bench) -> None:
    image = Image(fake, *({f"file{n}": b"x" * n} for n in range(8)))
    image.manifest()
    id = bench.pull(name(fake))
    bench.images.tag(name(fake, "c/d:v1"), id)
    with fake_registry() as target:
        there = name(target, "c/d:v1")
        bench.images.tag(there, id)
        bench.push(there)
        assert len(target.asked) > 24
        assert target.connections <= 4
    assert len(fake.asked) > 10
    assert fake.connections <= 4


def test_a_second_push_compresses_nothing(
    fake: Fake, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.base(f"{fake.host}/a/b:v1", {"etc/motd": b"hello"})
    first = bench.push(name(fake))
    monkeypatch.setattr("minidocker.exchange.compress_layer", None)
    assert bench.push(name(fake)) == first
    assert bench.statuses() == ["Preparing", "Layer already exists"]
    bench.images.tag(name(fake, "c/d:v1"), bench.images.resolve(f"{fake.host}/a/b:v1"))
    assert bench.push(name(fake, "c/d:v1")) == first
    assert bench.statuses() == ["Preparing", "Mounted from a/b"]


def test_a_blob_that_the_registry_has_lost_is_sent_again(
    fake: Fake, bench: Bench
) -> None:
    bench.base(f"{fake.host}/a/b:v1", {"etc/motd": b"hello"})
    first = bench.push(name(fake))
    fake.blobs.clear()
    assert bench.push(name(fake)) == first
    assert bench.statuses() == ["Preparing", "Pushed"]


def test_a_damaged_memory_of_blobs_does_no_harm(fake: Fake, bench: Bench) -> None:
    bench.base(f"{fake.host}/a/b:v1", {"etc/motd": b"hello"})
    first = bench.push(name(fake))
    for file in bench.store.rglob("v2metadata-by-diffid/sha256/*"):
        file.write_text('[{"Digest":"../../etc/passwd","SourceRepository":"x"}]')
    assert bench.push(name(fake)) == first


def test_a_large_layer_goes_up_in_chunks_and_comes_back(
    fake: Fake, bench: Bench, other: Bench
) -> None:
    noise = os.urandom(CHUNK + (1 << 20))
    bench.base(f"{fake.host}/a/b:v1", {"noise": noise, "more": b"x" * (1 << 20)})
    bench.push(name(fake))
    assert fake.paths("PATCH")
    id = other.pull(name(fake))
    assert id == bench.images.resolve(f"{fake.host}/a/b:v1")
    tree = other.layers.driver.tree(other.layers.get(other.layers.ids()[0]).cache_id)
    assert Path(tree, "noise").read_bytes() == noise


def test_an_image_without_layers(fake: Fake, bench: Bench) -> None:
    Image(fake).manifest()
    id = bench.pull(name(fake))
    bench.images.tag(name(fake, "c/d:v1"), id)
    bench.push(name(fake, "c/d:v1"))


def test_the_same_layer_twice(fake: Fake, bench: Bench) -> None:
    Image(fake, TREES[0], TREES[0]).manifest()
    id = bench.pull(name(fake))
    bench.images.tag(name(fake, "c/d:v1"), id)
    bench.push(name(fake, "c/d:v1"))
    assert len(json.loads(fake.manifests["c/d", "v1"][1])["layers"]) == 2


def test_a_zstd_layer_keeps_its_type(fake: Fake, bench: Bench) -> None:
    import zstandard

    image = Image(fake, TREES[0])
    image.blobs = [zstandard.compress(image.tars[0])]
    layer = fake.add_blob("a/b", image.blobs[0], Media.OCI_LAYER_ZSTD)
    image.manifest(layers=(layer,), media_type=Media.OCI_MANIFEST.value)
    id = bench.pull(name(fake))
    bench.images.tag(name(fake, "a/b:v2"), id)
    bench.push(name(fake, "a/b:v2"))
    kind, text = fake.manifests["a/b", "v2"]
    assert kind == Media.OCI_MANIFEST.value
    assert json.loads(text)["layers"][0]["mediaType"] == Media.OCI_LAYER_ZSTD.value


# what is refused


def left(bench: Bench) -> tuple[object, ...]:
    return (
        bench.leavings(),
        bench.images.ids(),
        bench.layers.ids(),
        bench.images.names.read(),
    )


def refuses(bench: Bench, fake: Fake, kind: type[MinidockerError], says: str) -> None:
    before = left(bench)
    with pytest.raises(kind, match=says):
        bench.pull(name(fake))
    assert left(bench) == before


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_layer_of_other_bytes(fake: Fake, bench: Bench, which: int) -> None:
    image = Image(fake, *TREES)
    image.manifest()
    digest = sha256(image.blobs[which])
    blob = fake.blobs["a/b", digest]
    fake.blobs["a/b", digest] = blob[:-1] + bytes([blob[-1] ^ 1])
    refuses(bench, fake, IntegrityError, "not what was asked for")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_layer_that_is_not_the_diff_id_of_the_image(
    fake: Fake, bench: Bench, which: int
) -> None:
    image = Image(fake, *TREES)
    image.config["rootfs"]["diff_ids"][which] = sha256(b"else")
    image.manifest()
    refuses(bench, fake, IntegrityError, "the layer is sha256:")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda b: b[: len(b) // 2], "damaged"),
        (lambda b: b"\x1f\x8b" + b, "damaged"),
        (lambda b: gzip.compress(gzip.decompress(b)[:-1024]) , "the layer is"),
        (lambda b: b"", "."),
    ],
)  # fmt: skip
def test_a_layer_that_cannot_be_unpacked(
    fake: Fake, bench: Bench, spoil: Callable[[bytes], bytes], says: str
) -> None:
    image = Image(fake, *TREES)
    image.blobs[1] = spoil(image.blobs[1])
    image.manifest()
    refuses(bench, fake, IntegrityError, says)


def test_a_layer_that_climbs(fake: Fake, bench: Bench, tmp_path: Path) -> None:
    Image(fake, TREES[0], {"../../../../escaped": b"x"}).manifest()
    refuses(bench, fake, IntegrityError, "escaped")
    assert not list(tmp_path.rglob("escaped"))


def test_an_image_json_that_is_none(fake: Fake, bench: Bench) -> None:
    image = Image(fake, *TREES)
    image.config["os"] = "plan9"
    image.manifest()
    refuses(bench, fake, IntegrityError, "plan9")
    image.config = {"os": "linux", "rootfs": {"diff_ids": ["sha256:../.."] * 3}}
    image.manifest()
    refuses(bench, fake, IntegrityError, "no sha256 digest")
    image = Image(fake, *TREES)
    image.config["rootfs"]["diff_ids"].pop()
    image.manifest()
    refuses(bench, fake, IntegrityError, "3 layers, but the image JSON has 2")


def test_sizes_that_lie(fake: Fake, bench: Bench) -> None:
    image = Image(fake, *TREES)
    for number in (-1, 1):
        layers = [Descriptor(LAYER.value, sha256(b), len(b)) for b in image.blobs]
        layers[1] = layers[1].replace(size=layers[1].size + number)
        image.manifest(layers=tuple(layers))
        refuses(bench, fake, IntegrityError, "bytes, and the manifest says")
    config = Descriptor(PLAIN.value, image.id, 5 << 20)
    image.manifest(config=config)
    refuses(bench, fake, IntegrityError, "more than 4194304 bytes")


def test_a_layer_that_never_ends_stops_the_others(fake: Fake, bench: Bench) -> None:
    image = Image(fake, *TREES)
    image.manifest()
    endless = sha256(image.blobs[0])

    def fault(it: Handler) -> bool:
        if not it.path.endswith(endless):
            return False
        it.send_response(200)
        it.end_headers()
        return without_end(it, b"\0" * (1 << 20))

    fake.fault = fault
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses(bench, fake, IntegrityError, "more than the")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_foreign_layers_are_not_fetched_from_where_they_say(
    fake: Fake, bench: Bench
) -> None:
    with fake_registry() as elsewhere:
        image = Image(fake, TREES[0])
        image.manifest()
        kind, text = fake.manifests["a/b", "v1"]
        found = json.loads(text)
        found["layers"][0]["urls"] = [f"http://{elsewhere.host}/layer"]
        fake.manifests["a/b", "v1"] = (kind, json.dumps(found).encode())
        assert bench.pull(name(fake)) == image.id
        bench.images.untag(name(fake))
        found["layers"][0]["mediaType"] = (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
        )
        fake.manifests["a/b", "v1"] = (kind, json.dumps(found).encode())
        refuses(bench, fake, IntegrityError, "foreign")
        assert not elsewhere.asked


# indexes


def an_index(fake: Fake, *entries: tuple[str, str], **changes: object) -> None:
    """Give ``a/b:v1`` an index of manifests that are there by digest."""
    found = []
    for digest, platform in entries:
        kind, text = fake.manifests["a/b", digest]
        system, architecture = platform.split("/")
        one = described(text, kind).replace(platform=Platform(system, architecture))
        found.append(one.replace(**changes))
    it = Index(tuple(found))
    fake.manifests["a/b", "v1"] = (it.media_type, it.to_json())
    fake.manifests["a/b", sha256(it.to_json())] = (it.media_type, it.to_json())


def two_platforms(fake: Fake) -> tuple[Image, Image]:
    ours, theirs = Image(fake, TREES[0]), Image(fake, TREES[1])
    theirs.config["architecture"] = "s390x"
    here = f"linux/{ours.config['architecture']}"
    an_index(
        fake, (theirs.manifest("s390x"), "linux/s390x"), (ours.manifest("ours"), here)
    )
    return ours, theirs


def test_of_an_index_the_platform_is_taken(fake: Fake, bench: Bench) -> None:
    ours, theirs = two_platforms(fake)
    assert bench.pull(name(fake)) == ours.id
    index = sha256(fake.manifests["a/b", "v1"][1])
    assert bench.images.digests_of(ours.id) == [f"{fake.host}/a/b@{index}"]
    assert bench.pull(name(fake), Platform("linux", "s390x")) == theirs.id
    refused = pytest.raises(
        NotFoundError,
        match=r"no image for linux/riscv64\nhint: there are linux/.*, linux/s390x",
    )
    with refused:
        bench.pull(name(fake), Platform("linux", "riscv64"))


def test_one_manifest_for_another_platform_than_asked_for(
    fake: Fake, bench: Bench
) -> None:
    Image(fake, TREES[0]).manifest()
    with pytest.raises(
        NotFoundError, match=r"no image for linux/s390x\nhint: there is linux/"
    ):
        bench.pull(name(fake), Platform("linux", "s390x"))


def test_an_index_that_lies_about_sizes(fake: Fake, bench: Bench) -> None:
    ours = Image(fake, TREES[0])
    an_index(fake, (ours.manifest("x"), f"linux/{ours.config['architecture']}"), size=7)
    refuses(bench, fake, IntegrityError, "another size than the index says")


def test_an_index_that_names_itself(fake: Fake, bench: Bench) -> None:
    """A digest of itself is not to be had, so the registry has to lie about it."""
    ours = Image(fake, TREES[0])
    an_index(fake, (ours.manifest("x"), f"linux/{ours.config['architecture']}"))
    kind, text = fake.manifests["a/b", "v1"]
    for which in list(fake.manifests):
        fake.manifests[which] = (kind, text)
    refuses(bench, fake, IntegrityError, "the manifest is not")


def test_indexes_in_indexes_without_end(fake: Fake, bench: Bench) -> None:
    ours = Image(fake, TREES[0])
    digest = ours.manifest("x")
    for _ in range(10):
        an_index(fake, (digest, f"linux/{ours.config['architecture']}"))
        digest = sha256(fake.manifests["a/b", "v1"][1])
    refuses(bench, fake, IntegrityError, "indexes in each other")


def test_an_index_too_large(fake: Fake, bench: Bench) -> None:
    fake.manifests["a/b", "v1"] = (Media.OCI_INDEX.value, b" " * (5 << 20))
    refuses(bench, fake, IntegrityError, "more than 4194304 bytes")


# the command line, a real registry and its other users


@pytest.fixture
def store(tmp_path: Path, small_tree: Path, home: Path) -> Store:
    one = Store(tmp_path / "store")
    one.says("import", "-c", 'CMD ["cat", "/etc/passwd"]', str(small_tree), "small:v1")
    return one


@pytest.fixture
def second(tmp_path: Path, store: Store) -> Store:
    return Store(tmp_path / "second")


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    with docker_daemon(tmp_path_factory.mktemp("docker")) as one:
        yield one


def id_of(store: Store, image: str) -> str:
    return store.says("inspect", "-f", "{{.Id}}", image).strip()


@pytest.mark.root
def test_push_and_pull_print_what_docker_prints(
    store: Store, second: Store, docker: Docker, real: str
) -> None:
    image = f"{real}/lines/ours"
    store.says("tag", "small:v1", image)
    docker.says("import", "-", f"{real}/lines/docker", stdin=tar_of({"x": b"y"}))
    ours, theirs = (
        store.says("push", image),
        docker.says("push", f"{real}/lines/docker"),
    )
    assert shape(ours) == shape(theirs.replace("lines/docker", "lines/ours"))
    again = shape(store.says("push", image))
    assert again == shape(
        docker.says("push", f"{real}/lines/docker").replace(
            "lines/docker", "lines/ours"
        )
    )
    docker.says("rmi", f"{real}/lines/docker")
    theirs = [docker.says("pull", f"{real}/lines/docker") for _ in range(2)]
    ours_ = [second.says("pull", image) for _ in range(2)]
    theirs = [t.replace("lines/docker", "lines/ours") for t in theirs]
    assert shape(ours_[0]) == [
        line for line in shape(theirs[0]) if "Verifying" not in line
    ]
    assert shape(ours_[1]) == shape(theirs[1])
    assert second.says("pull", "-q", image) == f"{image}:latest\n"
    assert store.says("push", "-q", image) == f"{image}:latest\n"


def shape(text: str) -> list[str]:
    """Lines without what differs: digests, ids and sizes."""
    import re

    text = re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "LAYER", text)
    return re.sub(r"size: \d+", "size: N", text).splitlines()


@pytest.mark.root
def test_what_we_push_docker_podman_and_skopeo_take(
    store: Store, docker: Docker, real: str, tmp_path: Path, short: Path
) -> None:
    image = f"{real}/peers/small:v1"
    store.says("tag", "small:v1", image)
    store.says("push", image)
    id = id_of(store, image)
    docker.says("pull", image)
    assert docker.says("inspect", "-f", "{{.Id}}", image).strip() == id
    assert (
        docker.says("run", "--rm", "--net", "none", image, "echo", "hello") == "hello\n"
    )
    podman = [
        "podman",
        "--root",
        f"{short}/pod",
        "--runroot",
        f"{short}/run",
        "--storage-driver",
        "vfs",
    ]
    said = output([*podman, "pull", "-q", "--tls-verify=false", image])
    assert f"sha256:{said.strip()}" == id
    output([*podman, "rmi", "-f", id])
    found = json.loads(
        output(["skopeo", "inspect", "--tls-verify=false", f"docker://{image}"])
    )
    [digest] = json.loads(store.says("inspect", image))[0]["RepoDigests"]
    assert digest.endswith(found["Digest"])
    output(
        [
            "skopeo",
            "copy",
            "-q",
            "--src-tls-verify=false",
            f"docker://{image}",
            f"dir:{tmp_path}/copy",
        ]
    )


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name, as podman wants it."""
    with tempfile.TemporaryDirectory(prefix="pod") as place:
        yield Path(place)


def output(argv: list[str]) -> str:
    env = {key: value for key, value in os.environ.items() if key != "DOCKER_CONFIG"}
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=120, env=env
    )
    assert done.returncode == 0, (argv, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.root
@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_what_skopeo_puts_there_we_take(
    second: Store, store: Store, real: str, tmp_path: Path, form: str
) -> None:
    source = Image(Fake(), *TREES)
    place = tmp_path / "dir"
    place.mkdir()
    for data in (json.dumps(source.config).encode(), *source.blobs):
        (place / sha256(data)[7:]).write_bytes(data)
    text = json.dumps(source.config).encode()
    layers = tuple(described(b, LAYER.value) for b in source.blobs)
    it = Manifest(described(text, PLAIN.value), layers, Media.DOCKER_MANIFEST.value)
    (place / "manifest.json").write_bytes(it.to_json())
    (place / "version").write_text("Directory Transport Version: 1.1\n")
    image = f"{real}/skopeo/{form}:v1"
    output(
        [
            "skopeo",
            "copy",
            "-q",
            "--format",
            form,
            "--dest-tls-verify=false",
            f"dir:{place}",
            f"docker://{image}",
        ]
    )
    second.says("pull", image)
    if form == "v2s2":
        assert id_of(second, image) == source.id
    diff_ids = json.loads(
        second.says("inspect", "-f", "{{json .RootFS.Layers}}", image)
    )
    assert diff_ids == [sha256(tar) for tar in source.tars]


@pytest.mark.root
def test_what_docker_built_and_pushed_runs_here(
    store: Store, docker: Docker, real: str, tmp_path: Path, small_tree: Path
) -> None:
    image, context = f"{real}/built/by-docker", tmp_path / "context"
    context.mkdir()
    docker.says("import", str(small_tree), "small:v1")
    (context / "Dockerfile").write_text(
        "FROM small:v1\nRUN echo made by docker > /note\nCMD cat /note\n"
    )
    docker.says("build", "-q", "--network", "none", "-t", image, str(context))
    docker.says("push", image)
    done = store("run", "--rm", image)
    assert done.stdout == "made by docker\n"
    assert f"Unable to find image '{image}:latest' locally\n" in done.stderr
    assert f"Status: Downloaded newer image for {image}:latest\n" in done.stderr
    assert id_of(store, image) == docker.says("inspect", "-f", "{{.Id}}", image).strip()
    (context / "Dockerfile").write_text(f"FROM {image}\nRUN echo and by us >> /note\n")
    other = Store(tmp_path / "builds")
    other.says("build", "-q", "-t", "mine", str(context))
    assert other.says("run", "--rm", "mine") == "made by docker\nand by us\n"


@pytest.mark.root
def test_all_tags(store: Store, second: Store, real: str) -> None:
    image = f"{real}/many/tags"
    for number in range(1, 4):
        store.says("tag", "small:v1", f"{image}:v{number}")
    said = store.says("push", "-a", image)
    assert [
        line.partition(": digest")[0] for line in said.splitlines() if "digest" in line
    ] == ["v1", "v2", "v3"]
    said = second.says("pull", "-a", image)
    assert said.splitlines()[-2:] == [
        f"Status: Downloaded newer image for {image}",
        image,
    ]
    tags = json.loads(second.says("inspect", f"{image}:v1"))[0]["RepoTags"]
    assert tags == [f"{image}:v{number}" for number in range(1, 4)]
    for words in (("push", "-a"), ("pull", "-a")):
        done = second(*words, f"{image}:v1")
        assert (done.returncode, done.stderr) == (
            1,
            "minidocker: tag can't be used with --all-tags/-a\n",
        )


@pytest.mark.root
def test_by_digest(store: Store, second: Store, real: str) -> None:
    image = f"{real}/by/digest"
    store.says("tag", "small:v1", image)
    said = store.says("push", image)
    digest = said.split("digest: ")[1].split()[0]
    second.says("pull", f"{image}@{digest}")
    assert (
        second.says(
            "inspect", "-f", "{{.RepoTags}} {{.RepoDigests}}", f"{image}@{digest}"
        )
        == f"[] [{image}@{digest}]\n"
    )
    said = second.says("rmi", f"{image}@{digest}")
    assert said.startswith(f"Untagged: {image}@{digest}\nDeleted: sha256:")


@pytest.mark.root
def test_login_pull_and_logout(
    store: Store, second: Store, docker: Docker, guarded: str, home: Path
) -> None:
    image = f"{guarded}/secret/small"
    store.says("tag", "small:v1", image)
    done = store("push", image)
    assert done.returncode == 1
    assert (
        f"access is denied: authentication required\nhint: `minidocker login {guarded}`"
        in done.stderr
    )
    done = store("login", "-u", "moby", "-p", "wail", guarded)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n"
    )
    assert "access is denied" in done.stderr
    assert not (home / "config.json").exists()
    done = store("login", "-u", "moby", "--password-stdin", guarded, stdin=b"whale\n")
    assert done.stdout == "Login Succeeded\n"
    assert "stored unencrypted" in done.stderr
    store.says("push", image)
    second.says("pull", image)
    shutil.copytree(home, docker.root / "client", dirs_exist_ok=True)
    docker.says("pull", image)
    assert store.says("login", guarded).startswith("Authenticating with existing")
    assert (
        store.says("logout", guarded) == f"Removing login credentials for {guarded}\n"
    )
    assert store("pull", image).returncode == 1
    done = store("login", guarded)
    assert done.stderr.startswith(
        "minidocker: cannot perform an interactive login from a non TTY device"
    )
    docker.says("login", "-u", "moby", "--password-stdin", guarded, stdin=b"whale")
    second.says("pull", image, DOCKER_CONFIG=str(docker.root / "client"))


@pytest.mark.root
def test_run_and_pull(store: Store, second: Store, real: str) -> None:
    image = f"{real}/runs/small:v1"
    store.says("tag", "small:v1", image)
    store.says("push", image)
    done = second("run", "--rm", "--pull", "never", image, "true")
    assert done.returncode == 125
    assert f'no such image: "{image}"' in done.stderr
    assert second.says("run", "--rm", image, "echo", "hi") == "hi\n"
    done = second("run", "--rm", image, "echo", "hi")
    assert done.stderr == ""
    done = second("run", "--rm", "--pull", "always", image, "echo", "hi")
    assert "Status: Image is up to date for" in done.stderr
    done = second("run", "--rm", f"{real}/no/such:v1", "true")
    assert done.returncode == 125
    assert "and it cannot be pulled" in done.stderr
    assert "not found: manifest unknown" in done.stderr
    assert second("run", "--pull", "now", image).returncode == 125


@pytest.mark.root
def test_a_bare_name_comes_from_the_hub_or_its_mirror(
    store: Store, second: Store, real: str
) -> None:
    store.says("tag", "small:v1", f"{real}/library/hubbed")
    store.says("push", f"{real}/library/hubbed")
    done = second("run", "--rm", "hubbed", "echo", "hi")
    assert done.returncode == 125
    assert (
        'no such image: "hubbed", and it cannot be pulled: 127.0.0.1:1: cannot be reached'
        in done.stderr
    )
    assert (
        second.says("pull", "hubbed", MINIDOCKER_HUB=real).splitlines()[-1]
        == "docker.io/library/hubbed:latest"
    )
    assert second.says("run", "--rm", "hubbed", "echo", "hi") == "hi\n"


@pytest.mark.root
def test_a_pull_that_is_killed_leaves_nothing_that_lasts(
    store: Store, second: Store, fake: Fake
) -> None:
    image = Image(fake, {"noise": os.urandom(4 << 20)}, TREES[1])
    image.manifest()
    slow = sha256(image.blobs[0])

    def fault(it: Handler) -> bool:
        if it.path.endswith(slow):
            it.begin(len(image.blobs[0]))
            it.wfile.write(image.blobs[0][: 2 << 20])
            it.wfile.flush()
            process.kill()
            return True
        return False

    second.says("images")
    fake.fault = fault
    process = subprocess.Popen(
        second.argv("pull", str(name(fake))), stdout=subprocess.DEVNULL
    )
    assert process.wait(20) == -9
    fake.fault = None
    second.says("pull", str(name(fake)))
    assert id_of(second, str(name(fake))) == image.id
    second.says("rmi", str(name(fake)))
    tmp = second.root / "tmp"
    assert not tmp.exists() or not any(tmp.iterdir())
    assert not any((second.root / "image/overlay2/layerdb/sha256").iterdir())


@pytest.mark.root
def test_an_image_from_tar_and_registry_has_one_id(
    store: Store, second: Store, real: str
) -> None:
    """What we import and push and pull is the same image, and the same tree."""
    image = f"{real}/same/id:v1"
    store.says("tag", "small:v1", image)
    store.says("push", image)
    second.says("pull", image)
    assert id_of(second, image) == id_of(store, "small:v1")
    listing = ["run", "--rm", "--entrypoint", "ls", image, "-lan", "/bin", "/tmp"]
    assert second.says(*listing) == store.says(*listing)


@pytest.mark.root
def test_a_pulled_image_is_no_cache_unless_it_is_named(
    store: Store, second: Store, real: str, tmp_path: Path
) -> None:
    context, image = tmp_path / "context", f"{real}/cache/image:v1"
    context.mkdir()
    (context / "x").write_text("hello")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY x /x\n")
    store.says("build", "-t", image, str(context))
    store.says("push", image)
    second.says("pull", image)
    assert "Using cache" not in second.says("build", str(context))
    third = Store(tmp_path / "third")
    third.says("pull", image)
    said = third.says("build", "--cache-from", image, str(context))
    assert "Using cache" in said


@pytest.mark.root
def test_build_pull_takes_the_newer_base(
    store: Store, second: Store, real: str, tmp_path: Path
) -> None:
    context, image = tmp_path / "context", f"{real}/fresh/base:v1"
    context.mkdir()
    (context / "Dockerfile").write_text(f"ARG TAG=v1\nFROM {real}/fresh/base:$TAG\n")
    store.says("tag", "small:v1", image)
    store.says("push", image)
    second.says("build", "-q", "-t", "old", str(context))
    (tmp_path / "new").mkdir()
    (tmp_path / "new/Dockerfile").write_text("FROM small:v1\nENV NEW=1\n")
    store.says("build", "-q", "-t", image, str(tmp_path / "new"))
    store.says("push", image)
    assert second.says("build", "-q", str(context)).strip() == id_of(second, "old")
    assert second.says("build", "-q", "--pull", str(context)).strip() == id_of(
        store, image
    )


@pytest.mark.root
def test_on_a_terminal_there_are_bars(store: Store, second: Store, real: str) -> None:
    image = f"{real}/on/terminal:v1"
    store.says("tag", "small:v1", image)
    store.says("push", image)
    main, end = os.openpty()
    process = subprocess.Popen(second.argv("pull", image), stdout=end, stderr=end)
    os.close(end)
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(main, 65536):
            seen += piece
    os.close(main)
    assert process.wait(20) == 0
    assert b"v1: Pulling from on/terminal" in seen
    assert "\u2501".encode() in seen, "a bar"
    assert b"Pull complete" in seen
    assert seen.decode().splitlines()[-1] == image
