"""Manifests and indexes from strangers: believed field by field, or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.errors import IntegrityError, MinidockerError, NotFoundError, UsageError
from minidocker.manifests import (
    DOCUMENT_LIMIT,
    INDEXES,
    MANIFESTS,
    Descriptor,
    Index,
    Manifest,
    Media,
    Platform,
    choose,
    parse_config,
    parse_document,
    parse_platform,
)


DIGEST = "sha256:" + "a" * 64
CONFIG = Descriptor(Media.DOCKER_CONFIG.value, DIGEST, 2)
LAYER = Descriptor(Media.DOCKER_LAYER.value, DIGEST, 7)
IMAGE = Manifest(CONFIG, (LAYER,), Media.DOCKER_MANIFEST.value)

platforms = st.builds(
    Platform, st.just("linux"), st.sampled_from(["amd64", "arm"]), st.sampled_from(["", "v7"])
)  # fmt: skip
descriptors = st.builds(
    Descriptor,
    st.just(LAYER.media_type),
    st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}"),
    st.integers(0, 1 << 50),
    st.none() | platforms,
    st.none() | st.dictionaries(st.text(min_size=1), st.text(), min_size=1),
)


@given(st.sampled_from(sorted(MANIFESTS)), st.lists(descriptors, max_size=4))
def test_a_manifest_reads_back(kind: str, layers: list[Descriptor]) -> None:
    it = Manifest(CONFIG, tuple(layers), kind)
    assert parse_document(it.to_json(), "here", kind) == it
    assert parse_document(it.to_json(), "here") == it


@given(st.sampled_from(sorted(INDEXES)), st.lists(descriptors, max_size=4))
def test_an_index_reads_back(kind: str, manifests: list[Descriptor]) -> None:
    it = Index(tuple(manifests), kind)
    assert parse_document(it.to_json(), "here", kind) == it


def changed(**changes: object) -> bytes:
    return json.dumps({**json.loads(IMAGE.to_json()), **changes}).encode()


def layer(**changes: object) -> bytes:
    found = json.loads(IMAGE.to_json())
    found["layers"][0].update(changes)
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"", "", "no JSON"),
        (b"[]", "", "not a JSON object"),
        (b"[" * 100_000, "", "no JSON"),
        (b'{"schemaVersion":2}', "", "no image"),
        (changed(manifests=[]), "", "a manifest and an index at once"),
        (changed(schemaVersion=1), "", "schemaVersion is not 2"),
        (changed(), Media.OCI_MANIFEST.value, "says it is"),
        (changed(mediaType=Media.OCI_INDEX.value), "", "no image"),
        (changed(mediaType="\x1b[2J"), "", '"?[2J"'),
        (changed(layers=None), "", "not a list"),
        (changed(layers=[1]), "", "malformed"),
        (changed(config={"mediaType": "x/helm", "digest": DIGEST, "size": 1}), "", "no container"),
        (layer(size=-1), "", "a size"),
        (layer(size=True), "", "a size"),
        (layer(size=1.5), "", "a size"),
        (layer(size=10**30), "", "a size"),
        (layer(digest="sha256:../../../etc/passwd"), "", "no sha256 digest"),
        (layer(digest="sha256:" + "A" * 64), "", "no sha256 digest"),
        (layer(mediaType=None), "", "unknown"),
        (changed(layers=[json.loads(layer())["layers"][0]] * 5000), "", "at most"),
        (b" " * (DOCUMENT_LIMIT + 1), "", "over 4194304 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(data: bytes, kind: str, says: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        parse_document(data, "evil/image", kind)
    assert says in str(refused.value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: (
    st.lists(inner) | st.dictionaries(st.sampled_from(
        ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "urls",
         "platform", "annotations"]), inner)
)))  # fmt: skip
def test_any_json_is_read_or_refused(value: object) -> None:
    if isinstance(value, dict):
        value["schemaVersion"] = 2
    try:
        parse_document(json.dumps(value).encode())
    except MinidockerError:
        pass


def an_index(*names: str) -> Index:
    kind = Media.OCI_MANIFEST.value
    pairs = (Descriptor(kind, DIGEST, 1, parse_platform(n)) for n in names)
    return Index(tuple(pairs))


@pytest.mark.parametrize(
    ("there", "asked", "gets"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", "linux/amd64"),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", "linux/arm/v7"),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm", "linux/arm/v6"),
        (["linux/arm"], "linux/arm/v7", "linux/arm"),
        (["linux/arm64/v8"], "arm64", "linux/arm64"),
    ],
)
def test_the_platform_that_was_asked_for_is_chosen(there, asked, gets) -> None:
    found = choose(an_index(*there), parse_platform(asked), "x")
    assert str(found.platform) == gets


def test_a_platform_that_is_not_there_is_refused_with_those_that_are() -> None:
    index = an_index("linux/arm64", "linux/arm/v7")
    with pytest.raises(NotFoundError) as refused:
        choose(index, parse_platform("linux/amd64"), "x")
    assert str(refused.value) == (
        "x: no image for linux/amd64\nhint: there are linux/arm/v7, linux/arm64"
    )
    with pytest.raises(UsageError):
        parse_platform("linux//v7")


def image(**more: object) -> bytes:
    found = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers"}}
    return json.dumps(found | more).encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (image(os="windows"), "windows"),
        (image(rootfs={"diff_ids": ["sha256:0"]}), "no sha256"),
        (image(rootfs={"diff_ids": [5]}), "no image JSON"),
        (image(rootfs=None), "no image JSON"),
        (image(config={"Env": "PATH=/"}), "env"),
        (image(config={"Cmd": [1]}), "cmd"),
        (image(config={"Cmd": ["a\0b"]}), "cmd"),
        (image(config={"User": 5}), "user"),
        (image(config={"Labels": []}), "labels"),
        (image(config=[5]), "no image JSON"),
        (image(history=5), "no image JSON"),
        (image(history=[{"created_by": 5}]), "created_by"),
        (image(created=5), "created"),
        (image(rootfs={"diff_ids": [DIGEST]}), "0 layers"),
    ],
)
def test_an_image_json_that_makes_no_sense_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        parse_config(text, 0)
    assert says in str(refused.value)
