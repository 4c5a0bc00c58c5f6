# From book/570-loading.md. Edit there and tangle, or here and tangle --back.

# %% Loading: an image from a stranger's file
"""Read images from a tar or a directory that anybody wrote, and keep them.

Docker's archive and the OCI layout. Constant memory. The image JSON is kept byte for
byte, so that the image has the id that its maker gave it. What is refused is an
``IntegrityError``, and leaves the store as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from minidocker.archive import Tally
from minidocker.compression import decompressed
from minidocker.errors import (
    IntegrityError,
    MinidockerError,
    NotFoundError,
    did_you_mean,
)
from minidocker.images import ImageStore
from minidocker.layers import Layer, LayerStore, chain_on, rest_of
from minidocker.legacy import REPOSITORIES, OldImage, old_images
from minidocker.manifests import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    choose,
    clean,
    is_for,
    parse_config,
    parse_document,
)
from minidocker.oci import (
    ImageConfig,
    Reference,
    is_digest,
    parse_reference,
    sha256_text,
)
from minidocker.parcels import Source
from minidocker.records import Record
from minidocker.transfer import NAME_NOTE, REF_NOTE, blob_name


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class Blob(Record):
    """A layer in a shipment: its name there, and what its descriptor says, if any."""

    name: str
    said: Descriptor | None = None


class Found(Record):
    """An image in a shipment. ``layers`` are bottom-first."""

    text: bytes
    image: ImageConfig
    layers: tuple[Blob, ...]
    names: tuple[Reference, ...]


class LoadReport(Record):
    """What became of an image: its id, its names, and who had these names before."""

    id: str
    names: tuple[str, ...]
    moved: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """Return what `docker load` prints."""
        told = [
            f"The image {name} already exists, renaming the old one with ID {old} "
            "to empty string"
            for name, old in self.moved
        ]
        told += [f"Loaded image: {name}" for name in self.names]
        return told if self.names else [f"Loaded image ID: {self.id}"]


# %% Docker's documents
MOST_IMAGES = 1000


def docker_images(source: Source, platform: Platform | None) -> list[Found]:
    """Return the images that `manifest.json` lists."""
    where = "manifest.json"
    try:
        lines = json.loads(source.text(where))
    except (ValueError, RecursionError) as why:
        raise IntegrityError(f"no JSON: {clean(why)}", where=where) from why
    if not isinstance(lines, list) or not 0 < len(lines) <= MOST_IMAGES:
        raise IntegrityError("not a list of images", where=where)
    found = [docker_image(source, line) for line in lines]
    if platform is not None:
        found = [one for one in found if is_for(one.image, platform)]
        if not found:
            raise NotFoundError(f"no image for {platform}", where=where)
    return found


def docker_image(source: Source, line: Any) -> Found:
    """Return the image of one line of `manifest.json`."""
    where = "manifest.json"
    if not isinstance(line, dict):
        raise IntegrityError("a line is not an object", where=where)
    config, layers, tags = line.get("Config"), line.get("Layers"), line.get("RepoTags")
    named = isinstance(config, str) and are_names(layers) and are_names(tags or [])
    if not named:
        raise IntegrityError("a line lacks its config, layers or tags", where=where)
    text = source.text(str(config))
    claim = f"sha256:{str(config).rpartition('/')[2].removesuffix('.json')}"
    if is_digest(claim) and sha256_text(text) != claim:
        what = "the image JSON is not the one that its name says"
        raise IntegrityError(what, where=clean(config))
    image = parse_config(text, len(layers or ()), clean(config))
    blobs = tuple(Blob(name) for name in layers or ())
    return Found(text, image, blobs, tuple(tag_of(tag) for tag in tags or ()))


# %% Docker's documents
def are_names(found: object) -> bool:
    """Whether this is a list of texts, or nothing."""
    if not isinstance(found, list):
        return found is None
    return len(found) <= 4096 and all(isinstance(one, str) for one in found)


def tag_of(text: str) -> Reference:
    """Return the name that a shipment gives an image: with a tag, and no digest."""
    try:
        name = parse_reference(text)
    except MinidockerError as why:
        raise IntegrityError(why.what, where="manifest.json") from why
    if name.digest or not name.tag:
        what = f'"{clean(text)}" is no name with a tag'
        raise IntegrityError(what, where="manifest.json")
    return name


# %% The OCI's documents
MOST_DEPTH = 4


def oci_images(source: Source, platform: Platform | None) -> list[Found]:
    """Return the images that `index.json` lists, each once, with all its names."""
    layout = source.maybe("oci-layout")
    if layout is None or b'"1.' not in layout:
        raise IntegrityError("neither Docker's archive nor an OCI layout")
    index = parse_document(source.text("index.json"), "index.json")
    if not isinstance(index, Index) or not 0 < len(index.manifests) <= MOST_IMAGES:
        raise IntegrityError("not a list of images", where="index.json")
    groups: dict[str, list[Descriptor]] = {}
    for line in index.manifests:
        groups.setdefault(name_note(line), []).append(line)
    found: dict[str, Found] = {}
    for lines in groups.values():
        for place in chosen(lines, platform):
            one = oci_image(source, place, platform, 0)
            key, names = sha256_text(one.text), oci_names(place)
            before = found[key].names if key in found else ()
            found[key] = one.replace(names=tuple(dict.fromkeys(before + names)))
    return list(found.values())


# %% The OCI's documents
def name_note(line: Descriptor) -> str:
    """Return what an index calls an image, or ""."""
    notes = line.annotations or {}
    return notes.get(NAME_NOTE) or notes.get(REF_NOTE) or ""


def chosen(lines: list[Descriptor], platform: Platform | None) -> list[Descriptor]:
    """Return those of the lines with one name that are meant."""
    told = all(line.platform for line in lines)
    if platform is not None or (told and len({one.platform for one in lines}) > 1):
        return [choose(Index(tuple(lines)), platform, "index.json")]
    return lines


def oci_names(line: Descriptor) -> tuple[Reference, ...]:
    """Return the name of an image in an index.

    A tag alone names the image as podman does: ``localhost/TAG:latest``.
    """
    text = name_note(line)
    if not text:
        return ()
    try:
        name = parse_reference(text if ":" in text or "/" in text else local(text))
        name = name.tagged
    except MinidockerError as why:
        raise IntegrityError(why.what, where="index.json") from why
    return () if name.digest else (name,)


# %% The OCI's documents
def local(tag: str) -> str:
    """Return the name that a bare tag stands for; repositories have no capitals."""
    return f"localhost/{tag.lower()}"


def oci_image(
    source: Source, place: Descriptor, platform: Platform | None, depth: int
) -> Found:
    """Return the image of a descriptor, through indexes, every blob checked."""
    text = blob_text(source, place)
    it = parse_document(text, place.digest, place.media_type)
    if isinstance(it, Manifest):
        config = blob_text(source, it.config)
        image = parse_config(config, len(it.layers), it.config.digest)
        blobs = tuple(Blob(blob_name(one.digest), one) for one in it.layers)
        return Found(config, image, blobs, ())
    if depth >= MOST_DEPTH:
        raise IntegrityError("indexes within indexes within indexes")
    return oci_image(source, choose(it, platform, place.digest), platform, depth + 1)


def blob_text(source: Source, said: Descriptor) -> bytes:
    """Return a small blob that is what its descriptor says."""
    text = source.text(blob_name(said.digest))
    if len(text) != said.size or sha256_text(text) != said.digest:
        what = "the blob is not what its descriptor says"
        raise IntegrityError(what, where=said.digest)
    return text


# %% Layers
def add_layer(
    layers: LayerStore,
    source: Source,
    blob: Blob,
    parent: str | None,
    diff_id: str,
    *,
    limit: int | None = None,
    told: Callable[[int], object] = int,
) -> Layer:
    """Keep a layer of a shipment; blob and tar are digested in the one reading.

    ``told`` is called with the bytes read so far. Raises IntegrityError, and the layer
    is not kept.
    """
    part, tally = source.part(blob.name), Tally()
    said, done = blob.said, 0
    if said and said.size != part.size:
        what = f"{part.size} bytes, and its descriptor says {said.size}"
        raise IntegrityError(what, where=said.digest)
    twice = said is not None and said.digest != diff_id

    def counted(size: int) -> bytes:
        nonlocal done
        data = part.read(size)
        done += len(data)
        told(done)
        if twice:
            tally(data)
        return data

    layer = layers.add(
        decompressed(counted, clean(blob.name)), parent, diff_id=diff_id, limit=limit
    )
    if said and twice and tally.digest != said.digest:
        layers.forget(layer)
        raise IntegrityError(f"the blob is {tally.digest}", where=said.digest)
    return layer


# %% All of it
def images_in(source: Source, platform: Platform | None = None) -> list[Found]:
    """Return the images of a shipment, all their documents checked."""
    if source.maybe("manifest.json") is not None:
        return docker_images(source, platform)
    if source.maybe("oci-layout") is None and source.maybe(REPOSITORIES) is not None:
        return [old_image(one) for one in old_images(source)]
    return oci_images(source, platform)


def old_image(one: OldImage) -> Found:
    """Return an image of before there were ids."""
    image = parse_config(one.text, len(one.layers), REPOSITORIES)
    return Found(one.text, image, tuple(map(Blob, one.layers)), one.names)


def layout_image(
    images: ImageStore, layers: LayerStore, source: Source, which: str
) -> str:
    """Keep one image of an OCI layout, without a name; return its id.

    ``which`` is a tag or the digest of a manifest; "" for the only image, or
    ``latest``. Raises NotFoundError.
    """
    index = parse_document(source.text("index.json"), "index.json")
    lines = index.manifests if isinstance(index, Index) else ()
    wanted = which or ("latest" if len(lines) > 1 else "")
    found = [line for line in lines if not wanted or wanted in marks_of(line)]
    if not found:
        known = sorted({mark for line in lines for mark in marks_of(line)})
        hint = did_you_mean(wanted, known, other=f"there are {', '.join(known[:9])}")
        raise NotFoundError(f'no image "{wanted}" in the layout', hint=hint)
    one, made = oci_image(source, found[0], None, 0), list[Layer]()
    try:
        add_layers(layers, source, one, made, limit=None, told=lambda *said: None)
    except BaseException:
        for layer in reversed(made):
            layers.forget(layer)
        raise
    return images.keep(one.text)


def marks_of(line: Descriptor) -> set[str]:
    """Return the tag and the digest that a line of an index is found by."""
    tag = (line.annotations or {}).get(REF_NOTE, "")
    return {line.digest, *([tag] if tag else [])}


def load(
    images: ImageStore,
    layers: LayerStore,
    source: Source,
    *,
    platform: Platform | None = None,
    limit: int | None = None,
    told: Callable[[str, int, int], object] = lambda name, done, size: None,
) -> list[LoadReport]:
    """Keep the images of a shipment and their names; all of them, or none.

    ``told`` is called with a diff id, the bytes of its blob read so far, and its size.
    """
    found, made = images_in(source, platform), list[Layer]()
    try:
        for one in found:
            add_layers(layers, source, one, made, limit=limit, told=told)
    except BaseException:
        for layer in reversed(made):
            layers.forget(layer)
        raise
    return [keep(images, one) for one in found]


# %% All of it
def add_layers(
    layers: LayerStore,
    source: Source,
    one: Found,
    made: list[Layer],
    *,
    limit: int | None,
    told: Callable[[str, int, int], object],
) -> None:
    """Keep the layers of an image that are not there yet; add them to ``made``."""
    chain: str | None = None
    for blob, diff_id in zip(one.layers, one.image.diff_ids, strict=True):
        below, chain = chain, chain_on(chain, diff_id)
        try:
            layers.get(chain)
        except NotFoundError:
            size = source.part(blob.name).size

            def tell(done: int, diff_id: str = diff_id, size: int = size) -> None:
                told(diff_id, done, size)

            left = rest_of(limit, made)
            made.append(
                add_layer(layers, source, blob, below, diff_id, limit=left, told=tell)
            )


def keep(images: ImageStore, one: Found) -> LoadReport:
    """Keep an image JSON and its names."""
    id = images.keep(one.text)
    moved = []
    for name in one.names:
        old = images.names.find(name)
        if old and old != id:
            moved.append((name.familiar, old))
        images.tag(name, id, told=False)
    images.tell("load", id)
    return LoadReport(id, tuple(n.familiar for n in one.names), tuple(moved))
