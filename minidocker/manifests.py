# From book/25-manifests.md. Edit there and tangle, or here and tangle --back.

# %% Manifests: the packing list of an image
"""Descriptors, manifests, indexes and platforms: what an image is while it travels.

What is read comes from strangers: every field is checked before it is believed, and
what is wrong is an IntegrityError.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from minidocker.errors import IntegrityError, NotFoundError, UsageError
from minidocker.oci import go_json, is_digest
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Media types
DOCKER, OCI = "application/vnd.docker.", "application/vnd.oci.image."
DOCKER_MANIFEST = DOCKER + "distribution.manifest.v2+json"
DOCKER_INDEX = DOCKER + "distribution.manifest.list.v2+json"
DOCKER_CONFIG = DOCKER + "container.image.v1+json"
DOCKER_LAYER = DOCKER + "image.rootfs.diff.tar.gzip"
OCI_MANIFEST = OCI + "manifest.v1+json"
OCI_INDEX = OCI + "index.v1+json"
OCI_CONFIG = OCI + "config.v1+json"
OCI_LAYER = OCI + "layer.v1.tar"  # and +gzip, +zstd

MANIFESTS = (DOCKER_MANIFEST, OCI_MANIFEST)
INDEXES = (DOCKER_INDEX, OCI_INDEX)
CONFIGS = (DOCKER_CONFIG, OCI_CONFIG)
ACCEPT = ", ".join(MANIFESTS + INDEXES)
DOCUMENT_LIMIT = 4 << 20  # bytes of a manifest, an index or an image JSON
LAYER_LIMIT = 1000  # no kernel stacks more, and no image has them


# %% The nouns
class Platform(Record):
    """For which machine an image is: ``linux/arm64/v8``, in Go's words."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


class Descriptor(Record):
    """A pointer to bytes elsewhere: what they are, their digest, how many.

    ``annotations`` and ``platform`` are None where not given. ``urls`` are other places
    that claim to have the bytes; minidocker never follows them.
    """

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] | None = None
    urls: tuple[str, ...] = ()


class Manifest(Record):
    """The packing list of one image. ``layers`` are bottom-first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


class Index(Record):
    """A list of manifests, mostly one for each platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]


# %% Writing
def descriptor_fields(it: Descriptor) -> dict[str, Any]:
    """Return the JSON object of a descriptor."""
    found: dict[str, Any] = {
        "mediaType": it.media_type,
        "digest": it.digest,
        "size": it.size,
    }
    if it.annotations:
        found["annotations"] = dict(it.annotations)
    if it.platform:
        fields = ((n, getattr(it.platform, n)) for n in Platform.__match_args__)
        found["platform"] = {name: value for name, value in fields if value}
    return found


def document_json(it: Manifest | Index) -> bytes:
    """Return the bytes of a manifest or an index; the same one, the same bytes."""
    found: dict[str, Any] = {"schemaVersion": 2, "mediaType": it.media_type}
    if isinstance(it, Manifest):
        found["config"] = descriptor_fields(it.config)
        found["layers"] = [descriptor_fields(layer) for layer in it.layers]
    else:
        found["manifests"] = [descriptor_fields(one) for one in it.manifests]
    return go_json(found)


# %% Reading, with a stranger in mind
def clean(text: object, most: int = 200) -> str:
    """Return a stranger's text fit for a terminal: printable, of limited length.

    >>> clean("a\\x1b[2J" + "b" * 9, 8)
    'a?[2Jbbb'
    """
    return "".join(c if c.isprintable() else "?" for c in str(text)[:most])


def bad(what: str, where: str) -> IntegrityError:
    """Phrase what is wrong with a document."""
    return IntegrityError(what, where=where)


def fields_of(value: Any, where: str) -> dict[str, Any]:
    """Return a JSON object; IntegrityError for any other value."""
    if not isinstance(value, dict):
        raise bad("a JSON object is expected", where)
    return value


def read_platform(value: Any, where: str) -> Platform | None:
    """Return the platform of a descriptor, if it says one."""
    if value is None:
        return None
    found = fields_of(value, where)
    texts = {n: found.get(n) or "" for n in Platform.__match_args__}
    if not all(isinstance(text, str) for text in texts.values()):
        raise bad("a platform is not made of texts", where)
    return Platform(**{name: clean(text, 40) for name, text in texts.items()})


def read_descriptor(value: Any, where: str) -> Descriptor:
    """Return a descriptor with all its fields checked."""
    found = fields_of(value, where)
    kind, digest, size = (found.get(n) for n in ("mediaType", "digest", "size"))
    if not isinstance(kind, str) or not isinstance(digest, str):
        raise bad("a descriptor lacks its media type or digest", where)
    if not is_digest(digest):
        raise bad(f'"{clean(digest, 80)}" is no sha256 digest', where)
    if type(size) is not int or not 0 <= size < 1 << 53:
        raise bad(f"{digest[:19]} has the impossible size {clean(size, 30)}", where)
    notes, urls = found.get("annotations"), found.get("urls")
    return Descriptor(
        kind,
        digest,
        size,
        read_platform(found.get("platform"), where),
        {str(k): str(v) for k, v in fields_of(notes, where).items()} if notes else None,
        tuple(str(url) for url in urls) if isinstance(urls, list) else (),
    )


def read_list(value: Any, where: str) -> tuple[Descriptor, ...]:
    """Return the descriptors of a JSON array."""
    if not isinstance(value, list):
        raise bad("a list of descriptors is expected", where)
    return tuple(read_descriptor(one, where) for one in value)


# %% Reading, with a stranger in mind
def parse_document(data: bytes, media_type: str, where: str) -> Manifest | Index:
    """Return the manifest or index in ``data``.

    ``media_type`` is what the sender called it, empty if nothing; the text's own word
    must agree. Raises IntegrityError for anything else.
    """
    if len(data) > DOCUMENT_LIMIT:
        raise bad(f"a manifest of more than {DOCUMENT_LIMIT} bytes", where)
    try:
        found = fields_of(json.loads(data), where)
    except (ValueError, RecursionError) as why:
        raise bad(f"no manifest: {clean(why)}", where) from why
    if "config" in found and "manifests" in found:
        raise bad("both a manifest and an index: ambiguous, so refused", where)
    own = found.get("mediaType")
    kind = own if isinstance(own, str) and own else media_type
    if media_type in MANIFESTS + INDEXES and kind != media_type:
        raise bad(f'sent as "{media_type}", but says it is "{clean(kind)}"', where)
    if found.get("schemaVersion") != 2:
        raise bad("not a manifest of schema version 2; older ones are not read", where)
    if "manifests" in found and kind not in MANIFESTS:
        kind = kind if kind in INDEXES else OCI_INDEX
        return Index(kind, read_list(found["manifests"], where))
    if "config" in found and kind not in INDEXES:
        kind = kind if kind in MANIFESTS else OCI_MANIFEST
        return read_manifest(kind, found, where)
    raise bad("neither a manifest nor an index", where)


def read_manifest(kind: str, found: Mapping[str, Any], where: str) -> Manifest:
    """Return the manifest of a JSON object; it must be one of an image."""
    config = read_descriptor(found["config"], where)
    layers = read_list(found.get("layers"), where)
    if config.media_type not in CONFIGS:
        raise bad(f'an artifact "{clean(config.media_type)}", and no image', where)
    if config.size > DOCUMENT_LIMIT:
        raise bad(f"an image JSON of more than {DOCUMENT_LIMIT} bytes", where)
    if len(layers) > LAYER_LIMIT:
        raise bad(f"an image of {len(layers)} layers", where)
    return Manifest(kind, config, layers)


# %% Which one is for this machine
VARIANTS = {"armv7l": "v7", "armv6l": "v6", "aarch64": "v8"}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm"}
OTHER_WORDS = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386"}


def this_platform() -> Platform:
    """Return the platform of this machine."""
    machine = os.uname().machine
    name = MACHINES.get(machine, "386" if machine == "i686" else machine)
    return Platform("linux", name, VARIANTS.get(machine, ""))


def parse_platform(text: str) -> Platform:
    """Return the platform of ``OS[/ARCHITECTURE[/VARIANT]]``; one word may be either.

    >>> str(parse_platform("linux/arm/v7")), str(parse_platform("aarch64"))
    ('linux/arm/v7', 'linux/arm64')
    """
    parts = text.lower().split("/")
    if not all(parts) or len(parts) > 3:
        raise UsageError(f'"{text}" is no platform', hint="such as linux/arm64")
    if parts == ["linux"]:
        return this_platform()
    if len(parts) == 1:
        parts = ["linux", *parts]
    parts[1] = OTHER_WORDS.get(parts[1], parts[1])
    return Platform(*parts)


def suits(found: Platform | None, wanted: Platform) -> bool:
    """Whether what is for ``found`` can be taken where ``wanted`` is asked for."""
    if found is None:
        return False
    same = (found.os, found.architecture) == (wanted.os, wanted.architecture)
    variants = found.variant, wanted.variant
    implied = wanted.architecture == "arm64" and set(variants) == {"", "v8"}
    return same and (found.variant == wanted.variant or not all(variants) or implied)


def choose(index: Index, wanted: Platform, where: str) -> Descriptor:
    """Return the manifest for a platform; NotFoundError says which there are."""
    fitting = [one for one in index.manifests if suits(one.platform, wanted)]
    exact = [one for one in fitting if one.platform == wanted]
    if fitting:
        return (exact or fitting)[0]
    there = {str(one.platform) for one in index.manifests if one.platform}
    listed = ", ".join(sorted(there - {"unknown/unknown"})) or "none that says so"
    what = f"no image for the platform {wanted}"
    raise NotFoundError(what, where=where, hint=f"there are: {listed}"[:1000])
