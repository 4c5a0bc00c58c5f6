"""Archives from people who mean no good: refused in a line, the store as it was."""

import gzip
import hashlib
import io
import json
import os
import resource
import tarfile
import zlib
from pathlib import Path

import pytest
import zstandard

from minidocker.drivers import Vfs
from minidocker.durable import Batch
from minidocker.errors import IntegrityError, MinidockerError, NotFoundError
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.loading import LoadReport, load
from minidocker.manifests import parse_platform
from minidocker.parcels import directory_source, source_of


Files = dict[str, bytes]
OCI = "application/vnd.oci.image."
MANIFEST, INDEX = f"{OCI}manifest.v1+json", f"{OCI}index.v1+json"
CONFIG, LAYER = f"{OCI}config.v1+json", f"{OCI}layer.v1.tar"


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(
    name: str, body: bytes = b"", **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.size = len(body)
    for key, value in more.items():
        setattr(found, key, value)
    return found, body


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as out:
        for info, body in members:
            out.addfile(info, io.BytesIO(body))
    return raw.getvalue()


LAYERS = [
    tar(member("one", b"1" * 700)),
    tar(member("two", b"2"), member("dir/x", b"x")),
]


def image(layers: list[bytes] = LAYERS, **more: object) -> bytes:
    found = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/one"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in layers]},
    }
    return json.dumps(found | more).encode()


def docker_files(text: bytes = image(), layers: list[bytes] = LAYERS) -> Files:
    line = {
        "Config": f"{digest(text)[7:]}.json",
        "RepoTags": ["evil:v1"],
        "Layers": [f"{n}/layer.tar" for n in range(len(layers))],
    }
    files = {f"{n}/layer.tar": one for n, one in enumerate(layers)}
    return {f"{digest(text)[7:]}.json": text, "manifest.json": as_json([line]), **files}


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def blob(data: bytes, kind: str, **more: object) -> dict[str, object]:
    return {"mediaType": kind, "digest": digest(data), "size": len(data)} | more


def oci_files(
    text: bytes = image(), layers: list[bytes] = LAYERS, kind: str = LAYER
) -> Files:
    manifest = as_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": blob(text, CONFIG),
            "layers": [blob(one, kind) for one in layers],
        }
    )
    return shipped(manifest, text, *layers)


def shipped(manifest: bytes, *blobs: bytes, **note: object) -> Files:
    """An OCI layout of a manifest (or whatever it is) and blobs."""
    kind = json.loads(manifest).get("mediaType", MANIFEST)
    name = {"annotations": {"org.opencontainers.image.ref.name": "evil:v1"}}
    lines = [blob(manifest, kind, **name) | note]
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": as_json({"schemaVersion": 2, "manifests": lines}),
        **{f"blobs/sha256/{digest(b)[7:]}": b for b in (manifest, *blobs)},
    }


def archive(files: Files) -> bytes:
    return tar(*(member(name, body) for name, body in files.items()))


class Target:
    """A store with one innocent image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        batch = Batch(str(root), str(root / "tmp"))
        self.images = ImageStore(str(root), "vfs", batch)
        self.layers = LayerStore(str(root), Vfs(str(root), rootless=True), batch)
        innocent = tar(member("innocent", b"me"))
        self.load(archive(docker_files(image([innocent]), [innocent])))
        self.before = self.state()

    def load(self, data: bytes, **more: object) -> list[LoadReport]:
        path = self.root.parent / "archive"
        path.write_bytes(data)
        with path.open("rb") as file:
            tmp = str(self.root / "tmp")
            with source_of(file.fileno(), tmp, limit=more.get("limit")) as source:
                return load(self.images, self.layers, source, **more)

    def state(self) -> dict[str, object]:
        found = {}
        for here, dirs, files in os.walk(self.root):
            for name in dirs + files:
                path = Path(here, name)
                inside = path.read_bytes() if path.is_file() else None
                found[str(path.relative_to(self.root))] = inside
        return found

    def refuses(self, data: bytes, says: str, **more: object) -> None:
        with pytest.raises(MinidockerError) as refused:
            self.load(data, **more)
        assert says in str(refused.value)
        assert "\n" not in refused.value.what
        assert self.state() == self.before
        assert not self.layers.batch.staged


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(tmp_path / "store")


def test_the_innocent_ones_are_loaded(target: Target):
    for files in (docker_files(), oci_files()):
        (report,) = target.load(archive(files))
        assert report.id == digest(image())
        assert report.names == ("evil:v1",)
        assert target.images.raw(report.id) == image()


def test_a_name_that_moves_is_told(target: Target):
    (report,) = target.load(archive(oci_files()))
    old = target.images.resolve("evil:v1")
    assert report.id == old
    (again,) = target.load(archive(docker_files(image(author="x"))))
    assert again.lines() == [
        f"The image evil:v1 already exists, renaming the old one with ID {old} to "
        "empty string",
        "Loaded image: evil:v1",
    ]


def line_with(**more: object) -> bytes:
    files = docker_files()
    line = json.loads(files["manifest.json"])[0]
    return archive(files | {"manifest.json": as_json([line | more])})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"Layers": ["0/layer.tar"]}, "1 layers, but the image JSON has 2"),
        ({"Layers": None}, "0 layers"),
        ({"Layers": "0/layer.tar"}, "lacks"),
        ({"Layers": [1, 2]}, "lacks"),
        ({"Layers": ["1/layer.tar", "0/layer.tar"]}, "the layer is"),
        ({"Layers": ["0/layer.tar", "2/layer.tar"]}, "no such file"),
        ({"Layers": ["0/layer.tar", "../../etc/passwd"]}, "climbs"),
        ({"Layers": ["0/layer.tar", "/etc/passwd"]}, "no such file"),
        ({"Layers": ["0/layer.tar", ""]}, "no such file"),
        ({"Config": "../../etc/passwd"}, "climbs"),
        ({"Config": "0/layer.tar"}, "no JSON"),
        ({"Config": None}, "lacks"),
        ({"RepoTags": ["evil"]}, "no name with a tag"),
        ({"RepoTags": ["EVIL:v1"]}, "lowercase"),
        ({"RepoTags": ["evil:v1@" + digest(b"")]}, "no name with a tag"),
        ({"RepoTags": ["../evil:v1"]}, "invalid reference"),
        ({"RepoTags": "evil:v1"}, "lacks"),
    ],
)
def test_a_line_that_lies(target: Target, more: dict[str, object], says: str):
    target.refuses(line_with(**more), says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (image(os="windows"), "only Linux"),
        (image(os=""), "only Linux"),
        (
            image(rootfs={"type": "layers", "diff_ids": ["sha256:../../x"] * 2}),
            "no sha256",
        ),
        (image(LAYERS[::-1]), "the layer is"),
        (image(config={"Cmd": "/bin/sh"}), "wrong type"),
        (image() + b" " * (4 << 20), "over 4194304 bytes"),
        (b"null", "not a JSON object"),
    ],
)
def test_an_image_json_that_lies(target: Target, text: bytes, says: str):
    target.refuses(archive(docker_files(text)), says)
    target.refuses(archive(oci_files(text)), says)


def test_an_image_json_that_is_not_the_one_of_its_name(target: Target):
    files = docker_files()
    name = next(iter(files))
    target.refuses(archive(files | {name: image(author="other")}), "not the one")


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (b"[]", "not a list of images"),
        (b"{}", "not a list of images"),
        (b"[1]", "not an object"),
        (b"[" * 100_000, "no JSON"),
        (b" " * ((4 << 20) + 1), "over"),
        (as_json([{}] * 2000), "not a list of images"),
    ],
)
def test_a_manifest_json_that_is_none(target: Target, manifest: bytes, says: str):
    target.refuses(archive(docker_files() | {"manifest.json": manifest}), says)


SPECIAL = {
    "a link out": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "a link up": {"type": tarfile.SYMTYPE, "linkname": "../../../etc/passwd"},
    "a link in a circle": {"type": tarfile.SYMTYPE, "linkname": "layer.tar"},
    "a hard link": {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
    "a fifo": {"type": tarfile.FIFOTYPE},
    "a device": {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5},
    "a directory": {"type": tarfile.DIRTYPE},
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["manifest.json", "1/layer.tar"])
def test_something_else_in_the_place_of_a_file(target: Target, kind: str, name: str):
    files = docker_files()
    del files[name]
    data = tar(
        *(member(n, body) for n, body in files.items()), member(name, **SPECIAL[kind])
    )
    with pytest.raises(MinidockerError):
        target.load(data)
    assert target.state() == target.before


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "directory", "socket"])
@pytest.mark.parametrize(
    "name", ["index.json", "blobs/sha256/" + digest(LAYERS[1])[7:]]
)
@pytest.mark.root
def test_something_else_in_a_directory(
    target: Target, tmp_path: Path, kind: str, name: str
):
    where = tmp_path / "layout"
    for each, body in oci_files().items():
        (where / each).parent.mkdir(parents=True, exist_ok=True)
        (where / each).write_bytes(body)
    path = where / name
    path.rename(tmp_path / "outside")
    if kind == "link":
        path.symlink_to(tmp_path / "outside")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, 0o20666, os.makedev(1, 5))
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o140666)
    with directory_source(str(where)) as source, pytest.raises(IntegrityError):
        load(target.images, target.layers, source)
    assert target.state() == target.before


def test_older_dockers_links_between_layers_are_followed(target: Target):
    layers = [LAYERS[0], LAYERS[0]]
    files = docker_files(image(layers), layers)
    del files["1/layer.tar"]
    link = member("1/layer.tar", type=tarfile.SYMTYPE, linkname="../0/layer.tar")
    data = tar(*(member(n, body) for n, body in files.items()), link)
    assert target.load(data)[0].id == digest(image(layers))


def oci_document(**more: object) -> Files:
    """The layout of a manifest with other fields; its digest is right."""
    found = json.loads(oci_files()["blobs/sha256/" + digest(good_manifest())[7:]])
    return shipped(as_json(found | more), image(), *LAYERS)


def good_manifest() -> bytes:
    lines = json.loads(oci_files()["index.json"])["manifests"]
    return oci_files()["blobs/sha256/" + lines[0]["digest"][7:]]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"manifests": []}, "at once"),
        ({"layers": [blob(LAYERS[0], LAYER)]}, "1 layers"),
        ({"layers": [blob(one, LAYER, size=5) for one in LAYERS]}, "says 5"),
        (
            {"layers": [blob(LAYERS[0], LAYER), blob(LAYERS[1], LAYER, size=10**12)]},
            "says 1000000000000",
        ),
        (
            {"layers": [blob(one, LAYER, digest="sha256:../x") for one in LAYERS]},
            "no sha256",
        ),
        (
            {"layers": [blob(one, LAYER, digest=digest(b"")) for one in LAYERS]},
            "no such file",
        ),
        ({"layers": [blob(LAYERS[1], LAYER)] * 2}, "the layer is"),
        (
            {"layers": [blob(one, "application/x-encrypted") for one in LAYERS]},
            "unknown",
        ),
        (
            {"config": blob(image(), "application/vnd.cncf.helm.config.v1+json")},
            "no container",
        ),
        ({"config": blob(image(), CONFIG, size=3)}, "not what its descriptor says"),
        ({"config": blob(image(), CONFIG, digest=digest(LAYERS[0]))}, "not what its"),
        ({"schemaVersion": 1}, "schemaVersion"),
    ],
)
def test_an_oci_manifest_that_lies(target: Target, more: dict[str, object], says: str):
    target.refuses(archive(oci_document(**more)), says)


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ({"size": 7}, "not what its descriptor says"),
        ({"digest": digest(LAYERS[0])}, "not what its descriptor says"),
        ({"digest": "sha512:" + "0" * 128}, "no sha256"),
        ({"mediaType": INDEX}, "says it is"),
        ({"annotations": {"org.opencontainers.image.ref.name": "E/E:v"}}, "lowercase"),
        ({"annotations": {"org.opencontainers.image.ref.name": 5}}, "texts"),
    ],
)
def test_an_index_that_lies(target: Target, note: dict[str, object], says: str):
    files = shipped(good_manifest(), image(), *LAYERS, **note)
    target.refuses(archive(files), says)


def nested(depth: int) -> Files:
    document, blobs = good_manifest(), [image(), *LAYERS]
    for _ in range(depth):
        blobs.append(document)
        kind = json.loads(document)["mediaType"]
        lines = [blob(document, kind)]
        document = as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": lines})
    return shipped(document, *blobs)


def test_indexes_within_indexes_have_an_end(target: Target):
    assert target.load(archive(nested(2)))[0].names == ("evil:v1",)
    fresh = {**nested(9)}
    with pytest.raises(IntegrityError, match="indexes within"):
        target.load(archive(fresh))


def test_an_index_chooses_by_platform(target: Target):
    texts = {name: image(architecture=name) for name in ("arm64", "s390x")}
    lines, blobs = [], list(LAYERS)
    for name, text in texts.items():
        manifest = as_json(json.loads(good_manifest()) | {"config": blob(text, CONFIG)})
        platform = {"os": "linux", "architecture": name}
        lines.append(blob(manifest, MANIFEST, platform=platform))
        blobs += [text, manifest]
    index = as_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": lines})
    data = archive(shipped(index, *blobs))
    for name, text in texts.items():
        (report,) = target.load(data, platform=parse_platform(f"linux/{name}"))
        assert report.id == digest(text)
    with pytest.raises(NotFoundError, match="no image for linux/mips"):
        target.load(data, platform=parse_platform("linux/mips"))


def damaged(body: bytes) -> Files:
    """The second layer's blob is compressed and damaged; its descriptor is right."""
    manifest = json.loads(good_manifest())
    manifest["layers"][1] = blob(body, LAYER + "+gzip")
    return shipped(as_json(manifest), image(), LAYERS[0], body)


ZIPPED = gzip.compress(LAYERS[1])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (ZIPPED[:-1], "truncated"),
        (ZIPPED[:-9], ""),
        (ZIPPED[:30], ""),
        (zstandard.compress(LAYERS[1])[:-1], "truncated"),
        (gzip.compress(LAYERS[1][:1000]), "truncated"),
        (gzip.compress(b""), "truncated"),
        (b"", "truncated"),
        (gzip.compress(LAYERS[1] + b"x"), "the layer is"),
        (ZIPPED + b"trailing", ""),
        (gzip.compress(b"no tar at all" * 100), ""),
    ],
)
def test_a_layer_that_is_damaged(target: Target, body: bytes, says: str):
    target.refuses(archive(damaged(body)), says)


def test_a_blob_that_is_not_the_one_of_its_digest(target: Target):
    """The tar inside has the right diff id: only the blob was made anew."""
    files = damaged(ZIPPED)
    other = gzip.compress(LAYERS[1], 1, mtime=5)
    other += bytes(len(ZIPPED) - len(other)) if len(other) < len(ZIPPED) else b""
    if len(other) != len(ZIPPED):
        other = ZIPPED[:4] + b"\x01\x02\x03\x04" + ZIPPED[8:]
    name = f"blobs/sha256/{digest(ZIPPED)[7:]}"
    assert files[name] == ZIPPED
    target.refuses(archive(files | {name: other}), "the blob is")


@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_an_archive_that_is_cut_off(target: Target, part: float):
    data = archive(docker_files()).rstrip(b"\0")
    with pytest.raises(MinidockerError):
        target.load(data[: int(part * len(data))])
    assert target.state() == target.before


@pytest.mark.parametrize(
    "data", [b"", b"hello", bytes(10240), gzip.compress(b""), tar(member("x", b"y"))]
)
def test_what_is_no_shipment(target: Target, data: bytes):
    with pytest.raises(MinidockerError):
        target.load(data)
    assert target.state() == target.before


def test_a_name_that_comes_twice(target: Target):
    files = docker_files()
    twice = [member(n, body) for n, body in files.items()]
    twice.append(member("./manifest.json", b"[]"))
    target.refuses(tar(*twice), "twice")


def test_a_name_that_climbs(target: Target):
    files = docker_files() | {"../../outside": b"x"}
    target.refuses(archive(files), "climbs")


def test_a_bomb_is_stopped_by_the_limit(target: Target):
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = tarfile.TarInfo("bomb")
    head.size = 8 << 30
    body = press.compress(head.tobuf(tarfile.GNU_FORMAT))
    zeros = bytes(1 << 20)
    body += b"".join(press.compress(zeros) for _ in range(64)) + press.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    target.refuses(archive(damaged(body)), "size limit", limit=1 << 20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_compressed_archive_is_stopped_by_the_limit(target: Target):
    data = gzip.compress(archive(docker_files() | {"more": bytes(5 << 20)}))
    target.refuses(data, "size limit", limit=1 << 20)


def test_a_layer_that_climbs_is_refused_after_a_good_one(target: Target):
    layers = [LAYERS[0], tar(member("../../x", b"x"))]
    target.refuses(archive(docker_files(image(layers), layers)), "climbs")


def test_of_several_images_a_bad_one_spoils_all(target: Target):
    bad = [LAYERS[0], b"no tar"]
    files = docker_files()
    other = docker_files(image(bad, author="x"), bad)
    lines = json.loads(files["manifest.json"]) + json.loads(other["manifest.json"])
    lines[1]["Layers"] = ["0/layer.tar", "bad"]
    merged = other | files | {"manifest.json": as_json(lines), "bad": bad[1]}
    target.refuses(archive(merged), "")


def test_a_corrupted_image_is_noticed_by_every_reader(target: Target):
    (report,) = target.load(archive(docker_files()))
    path = Path(target.images.content) / report.id[7:]
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="does not match"):
        target.images.get(report.id)


def test_a_loaded_image_has_no_parent(target: Target):
    (report,) = target.load(archive(docker_files()))
    assert target.images.parent(report.id) is None
