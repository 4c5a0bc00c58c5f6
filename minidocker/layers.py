# From book/220-layers.md. Edit there and tangle, or here and tangle --back.

# %% Layers: what is under an image
"""The layer store: read-only layers by chain id, read-write layers by container.

On disk below ``image/<driver>/layerdb``, as in Docker: for the first
``sha256/<chain>/{diff,cache-id,parent,size,tar-split.json.gz}``, for the others
``mounts/<container>/{mount-id,parent}``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress

from minidocker.drivers import RootView, StorageDriver
from minidocker.durable import Batch, write_new
from minidocker.errors import IntegrityError, NotFoundError
from minidocker.oci import chain_ids, hex_of
from minidocker.records import Record
from minidocker.trees import remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.archive import Put
    from minidocker.changes import Change
    from minidocker.reading import Read


# %% The nouns
class Layer(Record):
    """A read-only layer. ``parent`` is a chain id; ``size`` the bytes of its files."""

    chain_id: str
    diff_id: str
    parent: str | None
    cache_id: str
    size: int


class Packed(Record):
    """What a layer's tar is: its digest, and the bytes of its files."""

    diff_id: str
    size: int


class Known(Record):
    """What somebody who has just filled a layer knows of it.

    ``contents`` are those of small files, by name; ``packed`` is what its tar will be.
    """

    contents: dict[bytes, bytes] | None = None
    packed: Packed | None = None


NOTHING_KNOWN = Known()

SPLIT = "tar-split.json.gz"
EMPTY_TAR = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"


# %% The nouns
MOST_OF_A_TEXT = 4096  # bytes; the longest is a digest


def read_text(path: str) -> str | None:
    """Return a small file's text, or None when there is none.

    A step of a build reads ten; `open` makes six system calls more for each.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.read(handle, MOST_OF_A_TEXT).decode("ascii")
    finally:
        os.close(handle)


def rest_of(limit: int | None, layers: list[Layer]) -> int | None:
    """Return how many bytes of files a limit leaves after some layers; None for all."""
    if limit is None:
        return None
    return max(0, limit - sum(layer.size for layer in layers))


def chain_on(parent: str | None, diff_id: str) -> str:
    """Return the chain id of a layer on top of a chain; pure.

    >>> chain_on(None, EMPTY_TAR) == EMPTY_TAR
    True
    """
    return chain_ids([parent, diff_id] if parent else [diff_id])[-1]


# %% The store: what is there
class KnownLayers:
    """The read-only layers below ``root`` that ``driver`` keeps, to be read.

    New layers are staged in ``batch`` and published with it. Read-write layers are
    there at once; whoever makes a container that is to last syncs them. ``epoch``
    (seconds) is the newest time that files of a commit may have: SOURCE_DATE_EPOCH.
    """

    def __init__(self, root: str, driver: StorageDriver, batch: Batch) -> None:
        self.root, self.driver, self.batch = root, driver, batch
        self.epoch: int | None = None
        home = f"{root}/image/{driver.name}/layerdb"
        self.chains, self.mounts = f"{home}/sha256", f"{home}/mounts"
        journal = f"{root}/image/{driver.name}/distribution"
        self.origins = f"{journal}/v2metadata-by-diffid/sha256"

    def get(self, chain: str) -> Layer:
        """Return the layer of a chain id. Raises NotFoundError, IntegrityError."""
        place = self.batch.place(f"{self.chains}/{hex_of(chain)}")
        diff_id, cache_id = read_text(f"{place}/diff"), read_text(f"{place}/cache-id")
        if diff_id is None or cache_id is None:
            raise NotFoundError(f'no such layer: "{chain}"')
        size, parent = read_text(f"{place}/size"), read_text(f"{place}/parent")
        whole = chain_on(parent, diff_id) == chain and cache_id
        if not whole or size is None or not size.isdecimal():
            raise IntegrityError("the files of this layer are damaged", where=place)
        return Layer(chain, diff_id, parent, cache_id, int(size))

    def ids(self) -> list[str]:
        """Return all chain ids, sorted."""
        return ["sha256:" + name for name in self.batch.names(self.chains)]

    def stack(self, diff_ids: Iterable[str]) -> list[Layer]:
        """Return the layers of an image, bottom-first."""
        return [self.get(chain) for chain in chain_ids(diff_ids)]

    def split_of(self, layer: Layer) -> str | None:
        """Return the path of a layer's split; None for one that was made here."""
        place = self.batch.place(f"{self.chains}/{hex_of(layer.chain_id)}")
        split = f"{place}/{SPLIT}"
        return split if os.path.exists(split) else None

    def tar_of(self, chain: str, put: Put) -> None:
        """Write a layer's tar, the bytes that its diff id is the digest of.

        Raises IntegrityError, after the last byte, when the files have changed.
        """
        from minidocker.archive import Aside
        from minidocker.splits import assemble

        layer = self.get(chain)
        with Aside(put) as tally:
            if split := self.split_of(layer):
                with self.driver.opened(layer.cache_id) as tree:
                    assemble(split, tree, tally)
            else:
                self.driver.pack(layer.cache_id, tally)
            found = tally.digest
        if found != layer.diff_id:
            what = f'the files of layer "{chain}" are not those that were committed'
            raise IntegrityError(what)


# %% How a layer comes in
class SealedLayers(KnownLayers):
    """Read-only layers, and how a tree that was written here becomes one."""

    def seal(
        self, cache_id: str, parent: str | None, known: Known = NOTHING_KNOWN
    ) -> Layer | None:
        """Name a finished tree: compute its diff id, and stage the layer.

        None, and the tree is gone, when it changes nothing. A tree that is known
        already is dropped, and the known layer returned.
        """
        packed = known.packed
        if self.epoch is not None:
            from minidocker.cleaning import set_times_back

            set_times_back(self.driver, cache_id, self.epoch)
            packed = None
        packed = packed or self.packed(cache_id, known.contents)
        chain = chain_on(parent, packed.diff_id)
        if packed.diff_id == EMPTY_TAR:
            self.driver.remove(cache_id)
            return None
        with suppress(NotFoundError):
            older = self.get(chain)
            self.driver.remove(cache_id)
            return older
        layer = Layer(chain, packed.diff_id, parent, cache_id, packed.size)
        self.write(layer)
        return layer

    def packed(
        self, cache_id: str, contents: dict[bytes, bytes] | None = None
    ) -> Packed:
        """Compute what the tar of a tree is; nothing is kept of it."""
        from minidocker.archive import Aside

        with Aside() as tally:
            size = self.driver.pack(cache_id, tally, contents)
            return Packed(tally.digest, size)

    def write(self, layer: Layer, new: str = "") -> None:
        """Stage the directory of a layer; ``new`` has what else is to be in it."""
        if not new:
            new = self.batch.new_path()
            os.mkdir(new)
        write_new(f"{new}/diff", layer.diff_id.encode())
        write_new(f"{new}/cache-id", layer.cache_id.encode())
        write_new(f"{new}/size", b"%d" % layer.size)
        if layer.parent:
            write_new(f"{new}/parent", layer.parent.encode())
        self.batch.stage_path(new, f"{self.chains}/{hex_of(layer.chain_id)}")


# %% How a layer comes in
class ReadOnlyLayers(SealedLayers):
    """Read-only layers, and how a tar from elsewhere becomes one."""

    def add(
        self,
        read: Read,
        parent: str | None = None,
        *,
        diff_id: str | None = None,
        limit: int | None = None,
    ) -> Layer:
        """Make a layer of a tar as it came, on the chain ``parent`` or at the bottom.

        Its diff id is the digest of what ``read`` gives, to the last byte. ``limit``
        bounds the bytes of its files. Constant memory. Raises IntegrityError, also
        when the digest is not ``diff_id``; nothing is left when it fails.
        """
        new, cache_id = self.batch.new_path(), os.urandom(32).hex()
        self.driver.create(cache_id, self.get(parent).cache_id if parent else None)
        try:
            os.mkdir(new)
            found, size = self.unpack(cache_id, read, f"{new}/{SPLIT}", limit)
            if diff_id not in (None, found):
                raise IntegrityError(f"the layer is {found}, not {diff_id}")
            layer = Layer(chain_on(parent, found), found, parent, cache_id, size)
            with suppress(NotFoundError):
                known = self.get(layer.chain_id)
                self.driver.remove(cache_id)
                remove_path(new)
                return known
            self.write(layer, new)
        except BaseException:
            self.driver.remove(cache_id)
            remove_path(new)
            raise
        return layer

    def unpack(
        self, cache_id: str, read: Read, split: str, limit: int | None
    ) -> tuple[str, int]:
        """Apply a tar and write its split; return its digest, and its files' bytes."""
        from minidocker.archive import Tally
        from minidocker.reading import Ahead
        from minidocker.splits import SplitWriter

        tally = Tally()

        def counted(size: int) -> bytes:
            data = read(size)
            tally(data)
            return data

        with Ahead(counted) as ahead, SplitWriter(split) as tape:
            size = self.driver.apply(cache_id, ahead, limit=limit, tape=tape)
        return tally.digest, size

    def forget(self, layer: Layer) -> None:
        """Undo ``add`` for a layer that is only staged; leave one that is published."""
        final = f"{self.chains}/{hex_of(layer.chain_id)}"
        if new := self.batch.staged.pop(final, None):
            remove_path(new)
            self.driver.remove(layer.cache_id)


# %% A container's own layer
class WritableLayers(ReadOnlyLayers):
    """Layers, and a read-write one for each container."""

    def create_rw(self, name: str, parent: str | None) -> str:
        """Give container ``name`` an empty read-write layer on a chain; its mount id.

        Raises NotFoundError for a chain that is not there.
        """
        mount_id = os.urandom(32).hex()
        self.driver.create(mount_id, self.get(parent).cache_id if parent else None)
        place = f"{self.mounts}/{name}"
        os.makedirs(place, 0o700)
        write_new(f"{place}/mount-id", mount_id.encode())
        if parent:
            write_new(f"{place}/parent", parent.encode())
        return mount_id

    def mount_id(self, name: str) -> str:
        """Return the driver's id of a container's layer. Raises NotFoundError."""
        found = read_text(f"{self.mounts}/{name}/mount-id")
        if not found:
            raise NotFoundError(f'container "{name}" has no read-write layer')
        return found

    def rw_parent(self, name: str) -> str | None:
        """Return the chain id below a container's layer."""
        return read_text(f"{self.mounts}/{name}/parent")

    def rw_view(self, name: str, *, volatile: bool = False) -> RootView:
        """Say how a container's whole tree is mounted; mounts nothing."""
        return self.driver.view(self.mount_id(name), writable=True, volatile=volatile)

    def rw_mounted(
        self, name: str, *, writable: bool = True
    ) -> AbstractContextManager[str]:
        """Show a container's whole tree in a directory for a ``with`` block."""
        return self.driver.mounted(self.mount_id(name), writable=writable)

    def changes(self, name: str) -> Iterator[Change]:
        """Yield what a container changed over its image, sorted by path."""
        mount_id = self.mount_id(name)
        from minidocker.cleaning import mount_points

        ours = frozenset(mount_points(self.driver, mount_id))
        return self.driver.changes(mount_id, without=ours)

    def rw_size(self, name: str) -> int:
        """Return the bytes of a container's changed files. Raises NotFoundError."""
        try:
            return self.driver.size(self.mount_id(name))
        except FileNotFoundError as why:  # it is being removed
            raise NotFoundError(f'container "{name}" has gone') from why

    def rw_is_whole(self, name: str) -> bool:
        """Say whether a container's layer lies on those of its chain, as it was made.

        One that was never synced may not after a power cut.
        """
        try:
            below = self.driver.lowers(self.mount_id(name))
            parent = self.rw_parent(name)
            top = self.get(parent).cache_id if parent else None
            return below == ([top, *self.driver.lowers(top)] if top else [])
        except (NotFoundError, IntegrityError):
            return False

    def remove_rw(self, name: str) -> None:
        """Throw a container's layer away; nothing if there is none."""
        mount_id = read_text(f"{self.mounts}/{name}/mount-id")
        if mount_id:
            self.driver.remove(mount_id)
        remove_path(f"{self.mounts}/{name}")


# %% A container's own layer
class LayerStore(WritableLayers):
    """All layers: the read-only ones, and a read-write one for each container."""

    def commit_rw(
        self,
        name: str,
        stubs: tuple[str, ...] = (),
        known: Known = NOTHING_KNOWN,
    ) -> Layer | None:
        """Turn a container's read-write layer into a read-only one, uncopied.

        The container has no layer any more. None when nothing was changed. ``stubs``
        are paths that something was mounted on; they go if nothing else is there.
        """
        from minidocker.cleaning import remove_mount_points

        mount_id, parent = self.mount_id(name), self.rw_parent(name)
        if remove_mount_points(self.driver, mount_id, stubs):
            known = known.replace(packed=None)
        layer = self.seal(mount_id, parent, known)
        remove_path(f"{self.mounts}/{name}")
        return layer

    def copy_rw(self, name: str) -> Layer | None:
        """Make a read-only layer of what is in a container's layer, which stays.

        A layer that is known already is not copied. None when nothing was changed.
        """
        parent, spool = self.rw_parent(name), self.batch.new_path()
        copy = os.urandom(32).hex()
        try:
            packed = self.spooled(self.mount_id(name), spool)
            if packed.diff_id == EMPTY_TAR:
                return None
            with suppress(NotFoundError):
                return self.get(chain_on(parent, packed.diff_id))
            self.driver.create(copy, self.get(parent).cache_id if parent else None)
            with open(spool, "rb") as file:
                self.driver.apply(copy, file.read)
        finally:
            remove_path(spool)
        return self.seal(copy, parent, Known(packed=packed))

    def spooled(self, mount_id: str, spool: str) -> Packed:
        """Write the tar of a container's layer to a new file; return what it is.

        What was made only to be mounted on is left out.
        """
        from minidocker.archive import Aside
        from minidocker.cleaning import mount_points

        ours = frozenset(mount_points(self.driver, mount_id))
        with open(spool, "wb") as file, Aside(file.write) as tally:
            size = self.driver.pack(mount_id, tally, without=ours)
            return Packed(tally.digest, size)


# %% What a crash leaves, and who removes it
def sweep(
    store: LayerStore, *, containers: Iterable[str], chains: Iterable[str]
) -> list[str]:
    """Remove what nothing names; return the driver's ids that were removed.

    ``containers`` are the names that may have a read-write layer, ``chains`` the
    chain ids that images name. The caller holds the store's lock exclusively.
    """
    store.batch.publish()
    remove_path(store.batch.tmp)
    living, wanted = set(containers), set(chains)
    for name in store.batch.names(store.mounts):
        if name not in living:
            store.remove_rw(name)
        elif parent := store.rw_parent(name):
            wanted.add(parent)
    kept = keep_layers(store, wanted)
    kept |= {known_mount(store, name) for name in store.batch.names(store.mounts)}
    kept |= {below for one in kept for below in known_lowers(store, one)}
    rubbish = [one for one in store.driver.ids() if one not in kept]
    for one in rubbish:
        store.driver.remove(one)
    forget_origins(store)
    return rubbish


def forget_origins(store: LayerStore) -> None:
    """Remove what is known of where layers came from that are here no more."""
    known = {hex_of(store.get(chain).diff_id) for chain in store.ids()}
    for name in os.listdir(store.origins) if os.path.isdir(store.origins) else ():
        if name not in known:
            os.unlink(f"{store.origins}/{name}")


# %% What a crash leaves, and who removes it
def known_mount(store: LayerStore, name: str) -> str:
    """Return the driver's id of a container's layer. Raises IntegrityError."""
    try:
        return store.mount_id(name)
    except NotFoundError as why:
        raise IntegrityError(why.what, where=f"{store.mounts}/{name}") from why


def known_lowers(store: LayerStore, tree: str) -> list[str]:
    """Return the trees that a tree lies on. Raises IntegrityError."""
    try:
        return store.driver.lowers(tree)
    except NotFoundError as why:
        raise IntegrityError(f"the tree {tree[:12]} of a layer is not here") from why


def keep_layers(store: LayerStore, chains: set[str]) -> set[str]:
    """Forget the layers below none of ``chains``; return the others' cache ids."""
    kept: dict[str, str] = {}
    todo = list(chains)
    while todo:
        chain = todo.pop()
        with suppress(NotFoundError):
            layer = store.get(chain)
            kept[chain] = layer.cache_id
            if layer.parent and layer.parent not in kept:
                todo.append(layer.parent)
    for chain in store.ids():
        if chain not in kept:
            remove_path(f"{store.chains}/{hex_of(chain)}")
    return set(kept.values())
