"""Manifests and indexes from strangers: believed field by field, or refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.errors import IntegrityError, MinidockerError, NotFoundError, UsageError
from minidocker.manifests import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    DOCUMENT_LIMIT,
    INDEXES,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    document_json,
    parse_document,
    parse_platform,
)


DIGEST = "sha256:" + "a" * 64
CONFIG = Descriptor(DOCKER_CONFIG, DIGEST, 2)
IMAGE = Manifest(DOCKER_MANIFEST, CONFIG, (Descriptor(DOCKER_LAYER, DIGEST, 7),))

platforms = st.builds(
    Platform,
    st.just("linux"),
    st.sampled_from(["amd64", "arm"]),
    st.sampled_from(["", "v7"]),
)
descriptors = st.builds(
    Descriptor,
    st.just(DOCKER_LAYER),
    st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}"),
    st.integers(0, 1 << 50),
    st.none() | platforms,
    st.none() | st.dictionaries(st.text(min_size=1), st.text(), min_size=1),
)


@given(st.sampled_from(MANIFESTS), st.lists(descriptors, max_size=4))
def test_a_manifest_reads_back(kind: str, layers: list[Descriptor]) -> None:
    it = Manifest(kind, CONFIG, tuple(layers))
    assert parse_document(document_json(it), kind, "here") == it
    assert parse_document(document_json(it), "", "here") == it


@given(st.sampled_from(INDEXES), st.lists(descriptors, max_size=4))
def test_an_index_reads_back(kind: str, manifests: list[Descriptor]) -> None:
    it = Index(kind, tuple(manifests))
    assert parse_document(document_json(it), kind, "here") == it


def changed(**changes: object) -> bytes:
    found = json.loads(document_json(IMAGE))
    found.update(changes)
    return json.dumps(found).encode()


def layer(**changes: object) -> bytes:
    found = json.loads(document_json(IMAGE))
    found["layers"][0].update(changes)
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"", "", "no manifest"),
        (b"[]", "", "a JSON object"),
        (b'{"schemaVersion":2}', "", "neither"),
        (changed(manifests=[]), "", "both a manifest and an index"),
        (changed(schemaVersion=1), "", "schema version 2"),
        (changed(), OCI_MANIFEST, "but says it is"),
        (changed(mediaType=OCI_INDEX), "", "neither"),
        (changed(layers=None), "", "a list"),
        (changed(layers=[1]), "", "a JSON object"),
        (changed(config={"mediaType": "x/helm", "digest": DIGEST, "size": 1}), "", "no image"),
        (changed(config={"mediaType": DOCKER_CONFIG, "digest": DIGEST, "size": 5 << 20}), "", "more than"),
        (layer(size=-1), "", "impossible size"),
        (layer(size=True), "", "impossible size"),
        (layer(size=1.5), "", "impossible size"),
        (layer(size=10**30), "", "impossible size"),
        (layer(digest="sha256:../../../etc/passwd"), "", "no sha256 digest"),
        (layer(digest="sha256:" + "A" * 64), "", "no sha256 digest"),
        (layer(digest="\x1b[2J"), "", '"?[2J"'),
        (layer(mediaType=None), "", "lacks its media type"),
        (changed(layers=[json.loads(layer())["layers"][0]] * 1001), "", "1001 layers"),
        (b" " * (DOCUMENT_LIMIT + 1), "", "more than 4194304 bytes"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(data: bytes, kind: str, says: str) -> None:
    with pytest.raises(IntegrityError) as refused:
        parse_document(data, kind, "evil/image")
    assert says in str(refused.value)
    assert str(refused.value).startswith("evil/image: ")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: (
    st.lists(inner) | st.dictionaries(st.sampled_from(
        ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "urls",
         "platform", "annotations"]), inner)
)))  # fmt: skip
def test_any_json_is_read_or_refused(value: object) -> None:
    if isinstance(value, dict):
        value["schemaVersion"] = 2
    try:
        parse_document(json.dumps(value).encode(), "", "x")
    except MinidockerError:
        pass


def test_urls_of_a_layer_are_kept_as_texts_and_no_more() -> None:
    found = parse_document(layer(urls=["http://evil.example"]), "", "x")
    assert isinstance(found, Manifest)
    assert found.layers[0].urls == ("http://evil.example",)


def an_index(*names: str) -> Index:
    return Index(
        OCI_INDEX,
        tuple(Descriptor(OCI_MANIFEST, DIGEST, 1, parse_platform(n)) for n in names),
    )


@pytest.mark.parametrize(
    ("there", "asked", "gets"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", "linux/amd64"),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", "linux/arm/v7"),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm", "linux/arm/v6"),
        (["linux/arm"], "linux/arm/v7", "linux/arm"),
        (["linux/arm64/v8"], "arm64", "linux/arm64/v8"),
        (["linux/amd64/v2", "linux/amd64"], "amd64", "linux/amd64"),
    ],
)
def test_the_platform_that_was_asked_for_is_chosen(there, asked, gets) -> None:
    found = choose(an_index(*there), parse_platform(asked), "x")
    assert str(found.platform) == gets


def test_a_platform_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NotFoundError) as refused:
        choose(an_index("linux/arm64", "unknown/unknown"), Platform(), "x")
    assert str(refused.value) == (
        "x: no image for the platform linux/amd64\nhint: there are: linux/arm64"
    )
    with pytest.raises(UsageError):
        parse_platform("linux//v7")
