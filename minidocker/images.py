# From book/230-images.md. Edit there and tangle, or here and tangle --back.

# %% Images: a JSON, its parent and its names
"""The image store: image JSONs by id, parent and child, names, history.

On disk below ``image/<driver>``, as in Docker: ``imagedb/content/sha256/<id>``,
``imagedb/metadata/sha256/<id>/parent`` and ``repositories.json``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType

from minidocker.durable import (
    Batch,
    claimed,
    event_fields,
    happened,
    turn,
    write_lasting,
)
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    ReferenceFault,
    UsageError,
    did_you_mean,
)
from minidocker.layers import LayerStore, read_text
from minidocker.oci import (
    ImageConfig,
    Reference,
    hex_of,
    is_digest,
    is_hex,
    parse_image,
    parse_reference,
    sha256_text,
)
from minidocker.records import Record, json_text, parse_json
from minidocker.trees import remove_path


TYPE_CHECKING = False


# %% The nouns
class HistoryRow(Record):
    """One line of `history`; the newest comes first.

    ``id`` is None where the image of that step is not on this machine. ``size`` is the
    bytes of the step's layer, 0 without one.
    """

    id: str | None
    created: str
    created_by: str
    size: int
    comment: str
    tags: tuple[str, ...] = ()


Repositories = dict[str, dict[str, str]]
BARE: Mapping[str, bytes] = MappingProxyType({})


# %% The names
def familiar_names(reference: Reference) -> tuple[str, str]:
    """Return the two keys under which a reference is kept; with a digest, no tag.

    >>> familiar_names(parse_reference("docker.io/library/kb:v1"))
    ('kb', 'kb:v1')
    """
    reference = reference.replace(tag=None) if reference.digest else reference.tagged
    return reference.name, reference.familiar


def whole_name(name: str) -> str:
    """Return a name with its registry, by which Docker sorts.

    >>> whole_name("kb:v1")
    'docker.io/library/kb:v1'
    """
    found = parse_reference(name)
    return f"{found.registry}/{found.repository}{name[len(found.name) :]}"


# %% The names
class Names:
    """The references of a store, in one file. Ids are image ids."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self) -> Repositories:
        """Return all names. Raises IntegrityError when the file is damaged."""
        try:
            with open(self.path, "rb") as file:
                found = parse_json(file.read().decode())["Repositories"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as why:
            raise IntegrityError("not a list of names", where=self.path) from why
        return {str(name): dict(tags) for name, tags in found.items()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody else change names, or delete images, for a ``with`` block."""
        os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
        with turn(f"{self.path}.lock"):
            yield

    @contextmanager
    def changed(self) -> Iterator[Repositories]:
        """Yield the names to be changed; they are written at the end of the block."""
        with self.locked():
            names = self.read()
            yield names
            kept = {name: tags for name, tags in sorted(names.items()) if tags}
            write_lasting(self.path, json_text({"Repositories": kept}))

    def find(self, reference: Reference) -> str | None:
        """Return the id that a reference stands for, or None."""
        name, whole = familiar_names(reference)
        return self.read().get(name, {}).get(whole)

    def exact(self, text: str) -> str | None:
        """Return the id of a name that is spelt as it is kept, or None; quickly."""
        for tags in self.read().values():
            if found := tags.get(text) or tags.get(f"{text}:latest"):
                return found
        return None

    def of(self, image: str, *, digests: bool = False) -> list[str]:
        """Return the tags of an image, or its names by digest, in Docker's order."""
        pairs = (pair for tags in self.read().values() for pair in tags.items())
        names = sorted((name for name, id in pairs if id == image), key=whole_name)
        return [name for name in names if ("@" in name) is digests]


# %% The store
def no_such_image(id: str) -> NotFoundError:
    """Phrase that there is no image of an id."""
    return NotFoundError(f'no such image: "{id}"')


class ImageTexts:
    """The images below ``root`` whose layers the driver ``driver_name`` keeps.

    New images are staged in ``batch``. An image is read by its id, a whole digest,
    and what is read is checked against it.
    """

    def __init__(self, root: str, driver_name: str, batch: Batch) -> None:
        self.home = f"{root}/image/{driver_name}"
        self.content = f"{self.home}/imagedb/content/sha256"
        self.metadata = f"{self.home}/imagedb/metadata/sha256"
        self.names = Names(f"{self.home}/repositories.json")
        self.batch = batch
        self._parents: dict[str, str | None] | None = None

    def place(self, id: str) -> str:
        """Return the path of an image JSON."""
        return self.batch.place(f"{self.content}/{hex_of(id)}")

    def raw(self, id: str) -> bytes:
        """Return the bytes of an image JSON. Raises NotFoundError, IntegrityError."""
        path = self.place(id)
        try:
            with open(path, "rb") as file:
                text = file.read()
        except FileNotFoundError as why:
            raise no_such_image(id) from why
        if sha256_text(text) != id:
            raise IntegrityError("the image JSON does not match its id", where=path)
        return text

    def get(self, id: str) -> ImageConfig:
        """Return the image of an id."""
        return parse_image(self.raw(id), where=f"image {id[7:19]}")

    def ids(self) -> list[str]:
        """Return the ids of all images, sorted."""
        names = self.batch.names(self.content)
        return [id for name in names if is_digest(id := f"sha256:{name}")]

    def newest(self) -> list[str]:
        """Return the ids of all images, the one that was written last first."""
        times: dict[str, int] = {}
        for id in self.ids():
            with suppress(FileNotFoundError):
                path = self.batch.place(f"{self.content}/{hex_of(id)}")
                times[id] = os.lstat(path).st_mtime_ns
        return sorted(times, key=lambda id: (-times[id], id))


# %% The store
class Families(ImageTexts):
    """Which image was built from which, and what else is noted beside an image."""

    def parent(self, id: str) -> str | None:
        """Return the image that this one was built from, if it was built here."""
        return read_text(self.batch.place(f"{self.metadata}/{hex_of(id)}/parent"))

    def note(self, id: str, name: str) -> bytes:
        """Return a file of an image's metadata; b"" when there is none."""
        try:
            place = self.batch.place(f"{self.metadata}/{hex_of(id)}/{name}")
            with open(place, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    @property
    def parents(self) -> dict[str, str | None]:
        """The parent of each image, as far as this process has looked."""
        if self._parents is None:
            self._parents = {one: self.parent(one) for one in self.ids()}
        return self._parents

    def children(self, id: str | None) -> list[str]:
        """Return the images that were built from this one; for None, from nothing."""
        return sorted(one for one, parent in self.parents.items() if parent == id)

    def has_child(self, id: str) -> bool:
        """Whether an image has a child now, whoever made it."""
        there = set(self.ids())
        for one in there - self.parents.keys():
            self.parents[one] = self.parent(one)
        return any(one in there for one in self.children(id))


# %% The store
class KeptImages(Families):
    """How images are kept, and how they go."""

    def add(
        self, image: ImageConfig, parent: str | None, notes: Mapping[str, bytes] = BARE
    ) -> str:
        """Keep an image and return its id; the same image twice is one image.

        ``notes`` are further files of its metadata.
        """
        return self.keep(image.to_json(), parent, notes)

    def keep(
        self,
        text: bytes,
        parent: str | None = None,
        notes: Mapping[str, bytes] = BARE,
    ) -> str:
        """Keep an image JSON, byte for byte as it came, and return its id."""
        id = sha256_text(text)
        if self.batch.mark >= 0:
            self.claim(id)
        for name, data in notes.items():
            self.batch.stage(f"{self.metadata}/{hex_of(id)}/{name}", data)
        if parent:
            hex_of(parent)
            place = f"{self.metadata}/{hex_of(id)}/parent"
            self.batch.stage(place, parent.encode())
        self.batch.stage(f"{self.content}/{hex_of(id)}", text)
        self.batch.settle()
        if self._parents is not None:
            self._parents[id] = parent
        return id

    def claim(self, id: str) -> bool:
        """Let nobody delete an image until the work that goes on here is done.

        False where somebody has deleted it already; it is claimed if it comes back.
        """
        with self.names.locked():
            if self.batch.mark >= 0:
                os.write(self.batch.mark, f"{id}\n".encode())
            return os.path.exists(self.place(id))

    def delete(self, id: str) -> bool:
        """Remove an image's JSON and metadata; its layers wait for a sweep.

        False, and it stays, where it has got a name or a child meanwhile, or where a
        build stands on it.
        """
        self.batch.publish()
        with self.names.locked():
            named = any(id in tags.values() for tags in self.names.read().values())
            if named or self.has_child(id) or id in claimed(self.batch.root):
                return False
            remove_path(f"{self.content}/{hex_of(id)}")
            remove_path(f"{self.metadata}/{hex_of(id)}")
            self.parents.pop(id, None)
        return True

    def sweep(self) -> None:
        """Remove the metadata of images that are not there: a crash came between."""
        there = set(self.batch.names(self.content))
        for name in self.batch.names(self.metadata):
            if name not in there:
                remove_path(f"{self.metadata}/{name}")


# %% The store
class ImageStore(KeptImages):
    """The images of a store and their names."""

    def tell(self, action: str, id: str, name: str = "") -> None:
        """Write down that something has happened to an image; ``name`` is its id's."""
        labels: Mapping[str, str] = {}
        if action in ("tag", "untag"):
            config = self.get(id).config
            labels = (config.labels if config else None) or {}
        attributes = {**labels, "name": name or id}
        fields = event_fields("image", action, id, attributes)
        happened(self.batch.root, {"status": action, "id": id} | fields)

    def tag(self, reference: Reference, id: str, *, told: bool = True) -> None:
        """Let a reference stand for an image, and for no other any more."""
        if reference.digest:
            raise UsageError(f'"{reference}" has a digest and cannot be a tag')
        name, whole = familiar_names(reference)
        self.name(name, whole, id)
        if told:
            self.tell("tag", id, whole)

    def note_digest(self, reference: Reference, digest: str, id: str) -> None:
        """Note under which digest of a manifest a repository has an image."""
        self.name(*familiar_names(reference.replace(tag=None, digest=digest)), id)

    def name(self, repository: str, name: str, id: str) -> None:
        """Write down a name. Raises NotFoundError where the image has gone."""
        self.batch.publish()
        with self.names.changed() as names:
            if not os.path.exists(self.place(id)):
                raise no_such_image(id)
            names.setdefault(repository, {})[name] = id

    def untag(self, reference: Reference) -> str:
        """Remove a name; return the id it stood for. Raises NotFoundError."""
        name, whole = familiar_names(reference)
        with self.names.changed() as names:
            id = names.get(name, {}).pop(whole, None)
        if id is None:
            raise NotFoundError(f'no such image: "{whole}"')
        with suppress(NotFoundError):  # a name of an image that has gone
            self.tell("untag", id)
        return id

    def tags_of(self, id: str) -> list[str]:
        """Return an image's names, sorted."""
        return self.names.of(id)

    def digests_of(self, id: str) -> list[str]:
        """Return an image's names by digest, ``name@sha256:...``, sorted."""
        return self.names.of(id, digests=True)

    def resolve(self, text: str) -> str:
        """Return the id that a person means: an id, a name, or how an id begins.

        ``IMAGE@N`` is the image after step N. Raises NotFoundError, and ReferenceFault
        for what can be none of these.
        """
        if text[-1:].isdigit() and "@" in text:
            image, _, number = text.rpartition("@")
            if number.isdecimal() and number.isascii():
                return self.step(image, int(number))
        if is_digest(text):
            self.raw(text)
            return text
        begins = text.removeprefix("sha256:")
        if is_digest(f"sha256:{begins}"):  # an id, whatever has it for a name
            with suppress(NotFoundError):
                self.raw(f"sha256:{begins}")
                return f"sha256:{begins}"
        if found := self.names.exact(text):
            return found
        try:
            if found := self.names.find(parse_reference(text)):
                return found
        except ReferenceFault:
            if not is_hex(begins):
                raise
        ids = [id for id in self.ids() if is_hex(begins) and id[7:].startswith(begins)]
        if len(ids) > 1:
            raise ConflictError(f'"{text}" begins the ids of {len(ids)} images')
        return ids[0] if ids else self.unknown(text)

    def step(self, text: str, number: int) -> str:
        """Return the image of which ``number`` lines of an image's history tell.

        Raises NotFoundError where the image is not among the ancestors that are here.
        """
        family: str | None = self.resolve(text)
        counts: list[int] = []
        while family and (not counts or counts[-1] > number):
            counts.append(len(self.get(family).history))
            if counts[-1] == number:
                return family
            family = self.parent(family)
        if not 0 < number <= counts[0]:
            what = f'"{text}" has {counts[0]} steps'
        else:
            what = f'the image of step {number} of "{text}" is not on this machine'
        here = [str(count) for count in sorted(counts) if count >= number]
        hint = f"here are those of its steps {', '.join(here)}" if here else None
        raise NotFoundError(what, where=f"{text}@{number}", hint=hint)

    def unknown(self, text: str) -> str:
        """Raise the error for an image that is not there."""
        known = [name for tags in self.names.read().values() for name in tags]
        known = [name for name in known if "@" not in name]
        known += [name.removesuffix(":latest") for name in known]
        other = "`minidocker images` lists those that are here"
        hint = did_you_mean(text, known, other=other)
        raise NotFoundError(f'no such image: "{text}"', hint=hint)


# %% History
def history(images: ImageStore, layers: LayerStore, id: str) -> list[HistoryRow]:
    """Return the lines of `history`, the newest first."""
    image = images.get(id)
    sizes = iter([layer.size for layer in layers.stack(image.diff_ids)])
    rows = [
        HistoryRow(
            None,
            entry.created or "",
            entry.created_by,
            0 if entry.empty_layer else next(sizes, 0),
            entry.comment,
        )
        for entry in image.history
    ]
    family: str | None = id
    for number in reversed(range(len(rows))):
        if family is None:
            break
        tags = tuple(images.tags_of(family))
        rows[number] = rows[number].replace(id=family, tags=tags)
        family = images.parent(family)
    return rows[::-1]


def size_of(images: ImageStore, layers: LayerStore, id: str) -> int:
    """Return the bytes of an image's files, each layer's counted."""
    return sum(layer.size for layer in layers.stack(images.get(id).diff_ids))
