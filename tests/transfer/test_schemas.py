"""The documents that we write validate against the OCI's own schemas (Debian's copy)."""

import json
import tarfile
from pathlib import Path

import pytest
from cli.store import Store
from jsonschema import Draft4Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

from minidocker.manifests import Media


pytestmark = pytest.mark.root
SCHEMAS = Path(
    "/usr/share/gocode/src/github.com/opencontainers/image-spec/schema",
)
BASE = "https://opencontainers.org/schema/image/"


@pytest.fixture(scope="module")
def registry() -> Registry:
    assert SCHEMAS.is_dir(), "apt install golang-github-opencontainers-image-spec-dev"
    found = [
        (BASE + path.name, DRAFT4.create_resource(json.loads(path.read_text())))
        for path in SCHEMAS.glob("*.json")
    ]
    resources: list[tuple[str, Resource[object]]] = found
    return Registry().with_resources(resources)


def check(registry: Registry, name: str, text: bytes) -> dict[str, object]:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    schema["id"] = BASE + f"{name}.json"
    found = json.loads(text)
    Draft4Validator(schema, registry=registry).validate(found)
    return found


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_every_document_of_a_layout_is_valid(
    built: tuple[Store, str], registry: Registry, tmp_path: Path, codec: str
):
    store, id = built
    where = tmp_path / "layout"
    words = ["--format", "oci-dir", "--compression", codec, "-o", str(where)]
    store.says("save", *words, "site:v1")
    check(registry, "image-layout-schema", (where / "oci-layout").read_bytes())
    index = check(registry, "image-index-schema", (where / "index.json").read_bytes())
    (line,) = index["manifests"]
    assert line["mediaType"] == Media.OCI_MANIFEST.value
    manifest = check(registry, "image-manifest-schema", read(where, line))
    assert manifest["config"]["digest"] == id
    check(registry, "config-schema", read(where, manifest["config"]))
    for layer in manifest["layers"]:
        assert len(read(where, layer)) == layer["size"]


def test_an_imported_image_is_valid_too(
    built: tuple[Store, str], registry: Registry, tmp_path: Path
):
    """Docker writes ``"Env":null`` here, which the schema refuses."""
    store, _ = built
    tar = tmp_path / "t.tar"
    with tarfile.open(tar, "w") as file:
        file.addfile(tarfile.TarInfo("empty"))
    for changes in ((), ("--change", "ENV A=b"), ("--change", "CMD x")):
        store.says("import", *changes, str(tar), "imported")
        where = tmp_path / f"layout{len(list(tmp_path.iterdir()))}"
        store.says("save", "--format", "oci-dir", "-o", str(where), "imported")
        index = json.loads((where / "index.json").read_text())
        manifest = json.loads(read(where, index["manifests"][0]))
        check(registry, "config-schema", read(where, manifest["config"]))


def read(where: Path, descriptor: dict[str, str]) -> bytes:
    return (where / "blobs/sha256" / descriptor["digest"][7:]).read_bytes()


def test_the_schemas_refuse_what_is_wrong(registry: Registry):
    from jsonschema import ValidationError

    with pytest.raises(ValidationError):
        check(registry, "image-index-schema", b'{"schemaVersion": 2, "manifests": 5}')
    with pytest.raises(ValidationError):
        check(registry, "config-schema", b'{"os": 1, "rootfs": {}}')
