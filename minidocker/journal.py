# From book/558-journal.md. Edit there and tangle, or here and tangle --back.

# %% Journal: which blob was that layer?
"""The journal of blobs: in which form, and where, a layer has been seen."""

from __future__ import annotations

from collections.abc import Mapping

from minidocker.credentials import write_private
from minidocker.durable import marked
from minidocker.errors import IntegrityError
from minidocker.layers import LayerStore
from minidocker.manifests import Media
from minidocker.oci import hex_of
from minidocker.records import Record, json_text, parse_json


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The noun: a blob
class Blob(Record):
    """A layer's compressed form, and a repository that has it."""

    source: str
    media_type: str
    digest: str
    size: int


# %% The journal
KEPT = 50


class Journal:
    """Which blobs a layer is in which repositories, below ``distribution``."""

    def __init__(self, layers: LayerStore) -> None:
        self.root, self.by_diff_id = layers.root, layers.origins

    def blobs(self, diff_id: str) -> list[Blob]:
        """Return what is known of a layer, the newest first."""
        try:
            with open(f"{self.by_diff_id}/{hex_of(diff_id)}", encoding="utf-8") as file:
                return [self.blob(one) for one in parse_json(file.read())]
        except (OSError, ValueError, KeyError, TypeError, IntegrityError):
            return []

    def blob(self, found: Mapping[str, Any]) -> Blob:
        """Return the blob of a JSON object."""
        hex_of(found["Digest"])
        kind = str(found.get("MediaType", Media.DOCKER_LAYER.value))
        size = int(found.get("Size", 0))
        return Blob(str(found["SourceRepository"]), kind, found["Digest"], size)

    def note(self, diff_id: str, new: Blob) -> None:
        """Write down that a repository has a layer in this form."""
        others = [
            one
            for one in self.blobs(diff_id)
            if (one.source, one.digest) != (new.source, new.digest)
        ]
        found = [
            {
                "Digest": one.digest,
                "SourceRepository": one.source,
                "HMAC": "",
                "MediaType": one.media_type,
                "Size": one.size,
            }
            for one in [new, *others][:KEPT]
        ]
        text = json_text(found).encode()
        with marked(self.root):  # a half written one is swept
            write_private(f"{self.by_diff_id}/{hex_of(diff_id)}", text)
