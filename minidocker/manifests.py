# From book/260-manifests.md. Edit there and tangle, or here and tangle --back.

# %% Manifests: which bytes make an image
"""Manifests and indexes: descriptors of blobs, platforms, what a document may be.

Digests in a value of these types have been checked: they are safe in a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from minidocker.errors import IntegrityError, NotFoundError, UsageError
from minidocker.oci import hex_of, parse_image, sha256_text
from minidocker.records import Enum, Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.oci import ImageConfig


# %% The nouns
class Media(Enum):
    """The media types of image documents and layers."""

    OCI_INDEX = "application/vnd.oci.image.index.v1+json"
    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
    OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
    OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
    OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
    DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
    DOCKER_LAYER_TAR = "application/vnd.docker.image.rootfs.diff.tar"
    DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


INDEXES = frozenset({Media.OCI_INDEX.value, Media.DOCKER_LIST.value})
MANIFESTS = frozenset({Media.OCI_MANIFEST.value, Media.DOCKER_MANIFEST.value})
CONFIGS = frozenset({Media.OCI_CONFIG.value, Media.DOCKER_CONFIG.value})
LAYERS = frozenset(
    {
        Media.OCI_LAYER.value,
        Media.OCI_LAYER_GZIP.value,
        Media.OCI_LAYER_ZSTD.value,
        Media.DOCKER_LAYER_TAR.value,
        Media.DOCKER_LAYER.value,
        Media.DOCKER_LAYER.value.replace("gzip", "zstd"),
    }
)


# %% The nouns
class Platform(Record):
    """What an image runs on, in Go's words."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in self.parts() if part)

    def parts(self) -> tuple[str, str, str]:
        """Return the three parts, the variant that arm64 has anyway left out."""
        usual = (self.architecture, self.variant) == ("arm64", "v8")
        return self.os, self.architecture, "" if usual else self.variant


# %% The nouns
MACHINES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
}


def host_platform() -> Platform:
    """Return what this machine runs."""
    machine = os.uname().machine
    return Platform("linux", *MACHINES.get(machine, (machine, "")))


def parse_platform(text: str) -> Platform:
    """Return the platform of ``os[/arch[/variant]]`` or of an architecture alone.

    >>> str(parse_platform("linux/arm64/v8")), str(parse_platform("linux/x86_64"))
    ('linux/arm64', 'linux/amd64')
    """
    parts = text.lower().split("/")
    if not all(part.replace("_", "").replace("-", "").isalnum() for part in parts):
        one = "linux/amd64, or linux/arm64/v8" + ", one at a time" * ("," in text)
        raise UsageError(f'"{text}" is no platform', hint=one)
    if len(parts) == 1:
        parts = [parts[0], host_platform().architecture]
        if text.lower() != "linux":
            parts = ["linux", text.lower()]
    if len(parts) > 3:
        raise UsageError(f'"{text}" has too many parts', hint="OS/ARCHITECTURE/VARIANT")
    architecture, variant = MACHINES.get(parts[1], (parts[1], ""))
    return Platform(parts[0], architecture, parts[2] if parts[2:] else variant)


# %% The nouns
class Descriptor(Record):
    """A blob: what it is, its digest, its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of a descriptor."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            found["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform:
            system, architecture, variant = self.platform.parts()
            found["platform"] = {"architecture": architecture, "os": system}
            if variant:
                found["platform"]["variant"] = variant
        return found


class Manifest(Record):
    """One image: its config and its layers, bottom-first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = Media.OCI_MANIFEST.value

    def to_json(self) -> bytes:
        """Return the document that names these blobs."""
        return document(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": self.config.to_dict(),
                "layers": [layer.to_dict() for layer in self.layers],
            }
        )


# %% The nouns
class Index(Record):
    """A list of manifests, or of further indexes."""

    manifests: tuple[Descriptor, ...]
    media_type: str = Media.OCI_INDEX.value

    def to_json(self) -> bytes:
        """Return the document that lists these manifests."""
        return document(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "manifests": [one.to_dict() for one in self.manifests],
            }
        )


def document(found: Mapping[str, Any]) -> bytes:
    """Return a JSON text, the same for the same content."""
    return json.dumps(found, separators=(",", ":")).encode()


def described(data: bytes, media_type: str) -> Descriptor:
    """Return the descriptor of a document."""
    return Descriptor(media_type, sha256_text(data), len(data))


# %% Reading what a stranger wrote
DOCUMENT_LIMIT = 4 << 20


def clean(text: object, most: int = 200) -> str:
    """Return a stranger's text fit for a terminal: printable, of limited length.

    >>> clean("a\\x1b[2J" + "b" * 9, 8)
    'a?[2Jbbb'
    """
    return "".join(c if c.isprintable() else "?" for c in str(text)[:most])


def parse_document(
    data: bytes, where: str = "manifest", media_type: str = ""
) -> Manifest | Index:
    """Return the manifest or the index that a text is.

    ``media_type`` is what somebody said that it is, if anybody did. Raises
    IntegrityError for anything else, and for one that could be read as both.
    """
    found = parse_object(data, where)
    said = str(found.get("mediaType") or media_type)
    if media_type and said != media_type:
        what = f'the document says it is "{clean(said)}", its descriptor "{media_type}"'
        raise IntegrityError(what, where=where)
    is_index, is_manifest = "manifests" in found, "layers" in found or "config" in found
    if is_index and is_manifest:
        raise IntegrityError("a manifest and an index at once", where=where)
    if found.get("schemaVersion") != 2:
        hint = "schema 1 is from before 2016" if "fsLayers" in found else None
        raise IntegrityError("schemaVersion is not 2", where=where, hint=hint)
    wrong = said and said not in (INDEXES if is_index else MANIFESTS)
    if wrong or not (is_index or is_manifest):
        raise IntegrityError(f'no image: "{clean(said)}"', where=where)
    try:
        return index_from(found) if is_index else manifest_from(found)
    except (ValueError, TypeError, KeyError, AttributeError) as why:
        raise IntegrityError(f"malformed: {clean(repr(why))}", where=where) from why


# %% Reading what a stranger wrote
def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object that a text of at most 4 MiB is."""
    if len(data) > DOCUMENT_LIMIT:
        raise IntegrityError(f"a document over {DOCUMENT_LIMIT} bytes", where=where)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as why:
        raise IntegrityError(f"no JSON: {clean(why)}", where=where) from why
    if not isinstance(found, dict):
        raise IntegrityError("not a JSON object", where=where)
    return found


# %% Reading what a stranger wrote
LIST_LIMIT = 4096


def index_from(found: Mapping[str, Any]) -> Index:
    """Return the index of a JSON object."""
    return Index(
        descriptors(found["manifests"]),
        found.get("mediaType") or Media.OCI_INDEX.value,
    )


def manifest_from(found: Mapping[str, Any]) -> Manifest:
    """Return the manifest of a JSON object; IntegrityError for what is no image."""
    config, layers = descriptor_from(found["config"]), descriptors(found["layers"])
    if config.media_type not in CONFIGS:
        what = f'the config is "{clean(config.media_type)}": this is no container image'
        raise IntegrityError(what)
    for layer in layers:
        if layer.media_type not in LAYERS:
            raise IntegrityError(
                f'layers of type "{clean(layer.media_type)}" are unknown'
            )
    kind = found.get("mediaType") or Media.OCI_MANIFEST.value
    return Manifest(config, layers, kind)


def descriptors(found: Any) -> tuple[Descriptor, ...]:
    """Return a list of descriptors, of bounded length."""
    if not isinstance(found, list) or len(found) > LIST_LIMIT:
        raise IntegrityError(f"not a list of at most {LIST_LIMIT} descriptors")
    return tuple(descriptor_from(one) for one in found)


# %% Reading what a stranger wrote
def descriptor_from(found: Mapping[str, Any]) -> Descriptor:
    """Return the descriptor of a JSON object; its digest and size are checked."""
    digest, size = found["digest"], found["size"]
    if not isinstance(digest, str) or type(size) is not int or not 0 <= size < 1 << 53:
        raise IntegrityError("a descriptor needs a digest and a size")
    hex_of(digest)
    notes = found.get("annotations") or {}
    if not all(isinstance(value, str) for value in notes.values()):
        raise IntegrityError("annotations are texts")
    return Descriptor(
        str(found["mediaType"]), digest, size, platform_from(found), notes or None
    )


def platform_from(found: Mapping[str, Any]) -> Platform | None:
    """Return the platform of a descriptor, if it tells one."""
    platform = found.get("platform")
    if platform is None:
        return None
    words = (platform.get(key) or "" for key in ("os", "architecture", "variant"))
    return Platform(*(str(word) for word in words))


# %% Choosing
def choose(index: Index, wanted: Platform | None, where: str = "index") -> Descriptor:
    """Return the manifest for a platform; for this machine's when none is wanted.

    The first that fits is taken. Raises NotFoundError, which lists what there is.
    """
    platform = wanted or host_platform()
    known = [
        one for one in index.manifests if one.platform != Platform("unknown", "unknown")
    ]
    for one in known:
        if one.platform and fits(one.platform, platform):
            return one
    if len(known) == 1 and (wanted is None or known[0].platform is None):
        return known[0]
    names = sorted({clean(one.platform, 40) for one in known if one.platform})
    what = f"no image for {platform}"
    raise NotFoundError(
        what, where=where, hint=f"there are {', '.join(names) or 'none'}"
    )


def fits(offered: Platform, wanted: Platform) -> bool:
    """Whether an image runs on a platform; one without variant runs on each.

    >>> fits(Platform("linux", "arm", "v7"), Platform("linux", "arm", "v6"))
    False
    """
    one, other = offered.parts(), wanted.parts()
    return one[:2] == other[:2] and (not one[2] or not other[2] or one[2] == other[2])


def platform_of(image: ImageConfig) -> Platform:
    """Return what an image says that it runs on."""
    variant = str((image.extra or {}).get("variant") or "")
    return Platform(image.os, image.architecture, variant)


def is_for(image: ImageConfig, wanted: Platform) -> bool:
    """Say whether an image runs on a platform."""
    return fits(platform_of(image), wanted)


# %% The image JSON of a stranger
def parse_config(data: bytes, layers: int, where: str = "image JSON") -> ImageConfig:
    """Return the image that somebody else's JSON describes, for ``layers`` layers.

    Raises IntegrityError: too large, not Linux, of the wrong types, or with another
    number of layers than the manifest.
    """
    parse_object(data, where)
    image = parse_image(data, where)
    if image.os != "linux":
        what = f'the image is for "{clean(image.os)}", and only Linux can run here'
        raise IntegrityError(what, where=where)
    if len(image.diff_ids) != layers:
        what = f"{layers} layers, but the image JSON has {len(image.diff_ids)}"
        raise IntegrityError(what, where=where)
    for record in (image.config, image.container_config, *image.history):
        if record:
            check_types(record, where)
    if type(image.created) not in (str, type(None)):
        raise IntegrityError('"created" is no time', where=where)
    return image


# %% The image JSON of a stranger
TEXTS = ("env", "cmd", "entrypoint", "on_build", "shell")
TABLES = ("exposed_ports", "volumes", "labels", "healthcheck")
MAYBE = {"stop_timeout": int, "created": str}


def check_types(config: Record, where: str) -> None:
    """Raise IntegrityError when a record of an image has values of the wrong kind."""
    for name in config.__match_args__:
        value = getattr(config, name)
        if name in TEXTS:
            right = value is None or are_texts(value)
        elif name in TABLES:
            right = value is None or isinstance(value, dict)
        elif name in MAYBE:
            right = value is None or type(value) is MAYBE[name]
        else:
            right = type(value) is type(config._defaults[name])
        if not right:
            raise IntegrityError(f'"{name}" is of the wrong type', where=where)


def are_texts(value: object) -> bool:
    """Whether a value is a list of texts without NUL."""
    return isinstance(value, tuple) and all(
        isinstance(one, str) and "\0" not in one for one in value
    )
