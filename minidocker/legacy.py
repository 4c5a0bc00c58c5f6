# From book/565-legacy.md. Edit there and tangle, or here and tangle --back.

# %% Legacy: images from before there were image ids
"""Read archives of Docker before 1.10: make image JSONs of layers that know parents."""

from __future__ import annotations

from minidocker.archive import Tally
from minidocker.compression import decompressed
from minidocker.errors import IntegrityError, MinidockerError
from minidocker.manifests import clean, parse_object
from minidocker.oci import (
    HistoryEntry,
    Reference,
    go_json,
    image_from,
    is_hex,
    parse_reference,
)
from minidocker.parcels import Source
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
REPOSITORIES = "repositories"
MOST_LAYERS = 500


class Ancestor(Record):
    """A layer of then: its id, and its JSON."""

    id: str
    found: dict[str, Any]

    @property
    def tar(self) -> str:
        """The name of its tar in the archive."""
        return f"{self.id}/layer.tar"


class OldImage(Record):
    """An image of then as today's: JSON, names of its tars bottom-first, its names."""

    text: bytes
    layers: tuple[str, ...]
    names: tuple[Reference, ...]


# %% Names and ancestors
def checked_id(id: object, where: str) -> str:
    """Return the id of a layer. Raises IntegrityError."""
    if not (isinstance(id, str) and len(id) == 64 and is_hex(id)):
        raise IntegrityError(f'"{clean(id)}" is no id of a layer', where=where)
    return id


def tops_in(source: Source) -> dict[str, list[Reference]]:
    """Return the names of an archive by the id of the layer that they mean."""
    found: dict[str, list[Reference]] = {}
    for name, tags in parse_object(source.text(REPOSITORIES), REPOSITORIES).items():
        if not isinstance(tags, dict):
            raise IntegrityError("a name without tags", where=REPOSITORIES)
        for tag, id in tags.items():
            try:
                reference = parse_reference(f"{name}:{tag}")
            except MinidockerError as why:
                raise IntegrityError(why.what, where=REPOSITORIES) from why
            found.setdefault(checked_id(id, REPOSITORIES), []).append(reference)
    return found


def ancestry(source: Source, id: str) -> list[Ancestor]:
    """Return a layer and those below it, bottom-first."""
    found: list[Ancestor] = []
    seen: set[str] = set()
    at: object = id
    while at:
        where = f"{clean(at)}/json"
        one = checked_id(at, where)
        if one in seen or len(seen) >= MOST_LAYERS:
            raise IntegrityError("the parents have no end", where=where)
        seen.add(one)
        found.insert(0, Ancestor(one, parse_object(source.text(f"{one}/json"), where)))
        at = found[0].found.get("parent")
    return found


# %% An image of today
GONE = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")
TAKEN_AS_IT_IS = (1, 8, 3)


def version_of(text: object) -> tuple[int, ...]:
    """Return the numbers of a version; none for what is no version.

    >>> version_of("1.9.1-rc2"), version_of(None)
    ((1, 9, 1), ())
    """
    parts = str(text or "").partition("-")[0].split(".")
    return tuple(int(part) for part in parts if part.isascii() and part.isdecimal())


def history_line(found: dict[str, Any]) -> HistoryEntry:
    """Return the line of history that a layer of then becomes."""
    command = (found.get("container_config") or {}).get("Cmd") or ()
    return HistoryEntry(
        created=found.get("created"),
        author=found.get("author") or "",
        created_by=" ".join(map(str, command)),
        comment=found.get("comment") or "",
    )


def image_text(layers: list[Ancestor], diff_ids: list[str]) -> bytes:
    """Return the image JSON that Docker makes of layers, bottom-first."""
    top = dict(layers[-1].found)
    for key in ("config", "container_config"):
        if not isinstance(top.get(key, {}), dict | None):
            raise TypeError(f'"{key}" is no object')
    lines = tuple(history_line(layer.found) for layer in layers)
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    image = image_from({**top, "rootfs": rootfs}).replace(history=lines)
    today = image.to_dict()
    if version_of(top.get("docker_version")) < TAKEN_AS_IT_IS:
        known = image.replace(extra=None).to_dict()
        return go_json(known)
    kept = {key: value for key, value in top.items() if key not in GONE}
    kept |= {"history": today["history"], "rootfs": rootfs}
    return go_json(dict(sorted(kept.items())))


# %% An image of today
def tar_digest(source: Source, name: str) -> str:
    """Return the digest of a layer's tar, which may be compressed."""
    read, tally = decompressed(source.part(name).read, clean(name)), Tally()
    while data := read(1 << 18):
        tally(data)
    return tally.digest


def old_images(source: Source) -> list[OldImage]:
    """Return the images of an archive. Raises IntegrityError, NotFoundError."""
    found, digests = list[OldImage](), dict[str, str]()
    for id, names in tops_in(source).items():
        layers = ancestry(source, id)
        for layer in layers:
            if layer.tar not in digests:
                digests[layer.tar] = tar_digest(source, layer.tar)
        try:
            text = image_text(layers, [digests[layer.tar] for layer in layers])
        except (TypeError, ValueError, KeyError, AttributeError) as why:
            raise IntegrityError(f"no image: {clean(why)}", where=f"{id}/json") from why
        tars = tuple(layer.tar for layer in layers)
        found.append(OldImage(text, tars, tuple(names)))
    return found
