# From book/560-exchange.md. Edit there and tangle, or here and tangle --back.

# %% Exchange: push and pull
"""Whole images from a registry and to it: what is missing, side by side, in order.

``Tell`` hears what happens to each layer, in Docker's words; from several threads.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from minidocker.compression import compress_layer, decompressed
from minidocker.credentials import Credentials
from minidocker.errors import IntegrityError, NotFoundError, RegistryError
from minidocker.images import ImageStore
from minidocker.journal import Blob, Journal
from minidocker.layers import Layer, LayerStore, rest_of
from minidocker.manifests import (
    DOCUMENT_LIMIT,
    Descriptor,
    Manifest,
    Media,
    Platform,
    choose,
    described,
    is_for,
    parse_config,
    parse_document,
    platform_of,
)
from minidocker.oci import (
    HUB,
    ImageConfig,
    Reference,
    chain_ids,
    short_id,
)
from minidocker.partials import Partial, Resumed
from minidocker.records import Record
from minidocker.registry import (
    Client,
    Document,
    Download,
    Told,
    get_manifest,
    put_manifest,
)
from minidocker.uploads import Upload, blob_size, mount_blob
from minidocker.wire import HUB_HOST


TYPE_CHECKING = False
if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor
    from typing import Any


# %% The nouns
class Event(Record):
    """What happens to a layer or a tag, in a word of Docker's.

    Where bytes move, ``total`` says of how many.
    """

    id: str
    status: str
    done: int = 0
    total: int | None = None


Tell = Callable[[Event], object]


class Pulled(Record):
    """An image that came. ``digest`` is that of its manifest or index."""

    reference: Reference
    digest: str
    id: str
    newer: bool

    @property
    def status(self) -> str:
        """Docker's words for it."""
        if self.newer:
            return f"Downloaded newer image for {self.reference}"
        return f"Image is up to date for {self.reference}"


class Pushed(Record):
    """An image that went. ``size`` is that of its manifest, in bytes."""

    reference: Reference
    digest: str
    size: int


# %% Side by side
WORKERS = 3  # as many as Docker downloads at once


class StoppedError(RegistryError):
    """Another layer has failed, and this one need not go on."""


class Traffic:
    """Work on several layers at once, which all end when one fails."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.stop = tell, threading.Event()
        self.started: list[Future[Any]] = []

    def counter(self, id: str, status: str, total: int) -> Told:
        """Return what is told of bytes that moved, and tells of them."""
        done = 0

        def told(size: int) -> None:
            nonlocal done
            if self.stop.is_set():
                raise StoppedError("stopped")
            done += size
            self.tell(Event(id, status, done, total))

        return told

    @contextmanager
    def workers(self) -> Iterator[ThreadPoolExecutor]:
        """Yield threads; after an error they are told to stop, and get two seconds."""
        from concurrent.futures import ThreadPoolExecutor, wait

        pool = ThreadPoolExecutor(WORKERS)
        try:
            yield pool
        except BaseException:
            self.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            wait(self.started, 2)
            raise
        pool.shutdown()


# %% Pull
DEPTH = 4  # of indexes in indexes


class LayerPuller:
    """The layers of one image on their way here.

    ``limit`` bounds the bytes of files that they have together.
    """

    def __init__(
        self, client: Client, layers: LayerStore, tell: Tell, limit: int | None
    ) -> None:
        self.client, self.layers, self.tell, self.limit = client, layers, tell, limit
        self.repository = self.where = ""
        self.traffic, self.journal = Traffic(tell), Journal(layers)

    def fetch_layers(
        self, blobs: tuple[Descriptor, ...], diff_ids: tuple[str, ...]
    ) -> None:
        """Download what is not here, and unpack it, bottom-first."""
        chains = chain_ids(diff_ids)
        have = self.count_present(chains)
        for number, it in enumerate(blobs):
            status = "Already exists" if number < have else "Pulling fs layer"
            self.tell(Event(short_id(it.digest), status))
        added: list[Layer] = []
        spools: dict[str, Future[Partial]] = {}
        try:
            with self.traffic.workers() as pool:
                for it in blobs[have:]:
                    if it.digest not in spools:
                        spools[it.digest] = pool.submit(self.download, it)
                self.traffic.started = list(spools.values())
                for number in range(have, len(blobs)):
                    it, below = blobs[number], chains[number - 1] if number else None
                    path = spools[it.digest].result().path
                    limit = rest_of(self.limit, added)
                    layer = self.unpack(it, path, below, diff_ids[number], limit)
                    added.append(layer)
        except BaseException:
            for layer in reversed(added):
                self.layers.forget(layer)
            raise
        finally:
            remove_spools(spools.values())

    def count_present(self, chains: list[str]) -> int:
        """Return how many layers from the bottom are here already."""
        for count in range(len(chains), 0, -1):
            with suppress(NotFoundError):
                self.layers.get(chains[count - 1])
                return count
        return 0

    def download(self, it: Descriptor) -> Partial:
        """Bring a blob into a file below the store, from where an earlier pull was."""
        id, spare = short_id(it.digest), self.layers.batch.new_path()
        told = self.traffic.counter(id, "Downloading", it.size)
        partial = Partial(self.layers.root, it.digest, spare)
        try:
            with partial.open() as file:
                Resumed(self.client, self.repository, it, file, told).run()
        except IntegrityError:
            partial.remove()
            raise
        except BaseException:
            partial.close()
            raise
        self.tell(Event(id, "Download complete"))
        return partial

    def unpack(
        self,
        it: Descriptor,
        path: str,
        below: str | None,
        diff_id: str,
        limit: int | None,
    ) -> Layer:
        """Make a layer of a blob that came, of at most ``limit`` bytes of files."""
        id = short_id(it.digest)
        where = f"{self.where}@{it.digest[:19]}"
        told = self.traffic.counter(id, "Extracting", it.size)
        with open(path, "rb") as file:

            def read(size: int) -> bytes:
                data = file.read(size)
                told(len(data))
                return data

            layer = self.layers.add(
                decompressed(read, where), below, diff_id=diff_id, limit=limit
            )
        source = f"{self.client.registry}/{self.repository}"
        self.journal.note(diff_id, Blob(source, it.media_type, it.digest, it.size))
        self.tell(Event(id, "Pull complete"))
        return layer


def remove_spools(spools: Iterable[Future[Partial]]) -> None:
    """Remove the files of downloads that are finished."""
    for spool in spools:
        if spool.done() and not spool.cancelled() and not spool.exception():
            spool.result().remove()


# %% Pull
class Puller(LayerPuller):
    """One image on its way here. ``wanted`` is None for this machine's platform."""

    def __init__(
        self,
        client: Client,
        images: ImageStore,
        layers: LayerStore,
        tell: Tell,
        wanted: Platform | None = None,
        *,
        limit: int | None = None,
    ) -> None:
        super().__init__(client, layers, tell, limit)
        self.images, self.wanted = images, wanted

    def pull(self, reference: Reference) -> Pulled:
        """Bring an image and name it. When it fails, nothing is left of it."""
        name = reference.tag if not reference.digest else reference.familiar
        self.repository = reference.repository
        self.where = f"{reference.registry}/{reference.repository}"
        top, manifest = self.find_manifest(reference.digest or reference.tag or "")
        self.tell(Event(name or "", f"Pulling from {self.repository}"))
        known = self.known(manifest.config.digest)
        text = known or self.small_blob(manifest.config)
        image = parse_config(text, len(manifest.layers), self.where)
        self.check_platform(image)
        if not known:
            self.fetch_layers(manifest.layers, image.diff_ids)
        before = self.images.names.find(reference)
        id = self.images.keep(text)
        if not reference.digest:
            self.images.tag(reference, id, told=False)
        self.images.note_digest(reference, top.digest, id)
        return Pulled(reference, top.digest, id, newer=before != id)

    def find_manifest(self, which: str) -> tuple[Document, Manifest]:
        """Return what a tag or digest stands for, and the manifest for our platform."""
        top = document = get_manifest(self.client, self.repository, which)
        kind = document.media_type
        for _ in range(DEPTH):
            found = parse_document(document.data, self.where, kind)
            if isinstance(found, Manifest):
                return top, found
            one = choose(found, self.wanted, self.where)
            document = get_manifest(self.client, self.repository, one.digest)
            if len(document.data) != one.size:
                what = f"{one.digest[:19]} has another size than the index says"
                raise IntegrityError(what, where=self.where)
            kind = document.media_type or one.media_type
        raise IntegrityError(f"over {DEPTH} indexes in each other", where=self.where)

    def known(self, id: str) -> bytes:
        """Return the JSON of an image that is here already, or nothing."""
        with suppress(NotFoundError):
            return self.images.raw(id)
        return b""

    def small_blob(self, it: Descriptor) -> bytes:
        """Return the image JSON."""
        if it.size > DOCUMENT_LIMIT:
            what = f"an image JSON of more than {DOCUMENT_LIMIT} bytes"
            raise IntegrityError(what, where=self.where)
        file = io.BytesIO()
        Download(self.client, self.repository, it, file, int).run()
        return file.getvalue()

    def check_platform(self, image: ImageConfig) -> None:
        """Raise NotFoundError when a platform was asked for and this is another."""
        if self.wanted and not is_for(image, self.wanted):
            here = platform_of(image)
            what, hint = f"no image for {self.wanted}", f"there is {here}"
            raise NotFoundError(what, where=self.where, hint=hint)


# %% Push
GZIPPED = (Media.DOCKER_LAYER.value, Media.OCI_LAYER_GZIP.value)


class LayerPusher:
    """The layers of one image on their way to a registry."""

    def __init__(self, client: Client, layers: LayerStore, tell: Tell) -> None:
        self.client, self.layers, self.tell = client, layers, tell
        self.traffic, self.journal = Traffic(tell), Journal(layers)
        self.repository = self.source = ""

    def send_layers(self, diff_ids: tuple[str, ...]) -> tuple[Descriptor, ...]:
        """Bring all layers there; return their descriptors, bottom-first."""
        chains = dict(zip(diff_ids, chain_ids(diff_ids), strict=True))
        for diff_id in reversed(chains):
            self.tell(Event(short_id(diff_id), "Preparing"))
        with self.traffic.workers() as pool:
            sent = {d: pool.submit(self.send_layer, d, c) for d, c in chains.items()}
            self.traffic.started = list(sent.values())
            return tuple(sent[diff_id].result() for diff_id in diff_ids)

    def send_layer(self, diff_id: str, chain: str) -> Descriptor:
        """Bring one layer there, in the cheapest way."""
        id, known = short_id(diff_id), self.journal.blobs(diff_id)
        if self.traffic.stop.is_set():
            raise StoppedError("stopped")
        found = self.already_there(known) or self.mounted(id, known)
        if found is None:
            it = self.upload(id, chain)
            found = Blob(self.source, it.media_type, it.digest, it.size)
            self.tell(Event(id, "Pushed"))
        elif found.source == self.source:
            self.tell(Event(id, "Layer already exists"))
        found = found.replace(source=self.source)
        self.journal.note(diff_id, found)
        return Descriptor(found.media_type, found.digest, found.size)

    def already_there(self, known: list[Blob]) -> Blob | None:
        """Return a form of a layer that the repository has."""
        own_first = sorted(known, key=lambda one: one.source != self.source)
        for digest in list(dict.fromkeys(one.digest for one in own_first))[:3]:
            size = blob_size(self.client, self.repository, digest)
            if size is not None:
                one = next(one for one in known if one.digest == digest)
                return one.replace(source=self.source, size=size)
        return None

    def mounted(self, id: str, known: list[Blob]) -> Blob | None:
        """Return a form of a layer that the registry lets the repository have too."""
        host = f"{self.client.registry}/"
        for one in [one for one in known if one.source.startswith(host)][:3]:
            origin = one.source.removeprefix(host)
            if origin != self.repository and mount_blob(
                self.client, self.repository, one.digest, origin
            ):
                size = blob_size(self.client, self.repository, one.digest)
                if size is not None:
                    self.tell(Event(id, f"Mounted from {origin}"))
                    return one.replace(size=size)
        return None

    def upload(self, id: str, chain: str) -> Descriptor:
        """Pack, compress and send a layer in one pass."""
        total = self.layers.get(chain).size
        told = self.traffic.counter(id, "Pushing", total)
        upload = Upload(self.client, self.repository, told)
        it = compress_layer(self.layers, chain, upload)
        upload.finish(it.digest)
        return it


# %% Push
class Pusher(LayerPusher):
    """One image on its way to a registry."""

    def __init__(
        self, client: Client, images: ImageStore, layers: LayerStore, tell: Tell
    ) -> None:
        super().__init__(client, layers, tell)
        self.images = images

    def push(self, reference: Reference) -> Pushed:
        """Send an image under a name that it has here."""
        id = self.images.names.find(reference)
        if id is None or not reference.tag:
            what = f"an image does not exist locally with the tag: {reference.name}"
            raise NotFoundError(what, hint="`minidocker tag` gives it the name")
        self.repository = reference.repository
        self.source = f"{reference.registry}/{reference.repository}"
        diff_ids = self.images.get(id).diff_ids
        blobs = self.send_layers(diff_ids)
        text = self.images.raw(id)
        config = described(text, Media.DOCKER_CONFIG.value)
        if blob_size(self.client, self.repository, config.digest) is None:
            upload = Upload(self.client, self.repository)
            upload(text)
            upload.finish(config.digest)
        document = packing_list(config, blobs)
        put_manifest(self.client, self.repository, reference.tag, document)
        self.images.note_digest(reference, document.digest, id)
        return Pushed(reference, document.digest, len(document.data))


def packing_list(config: Descriptor, blobs: tuple[Descriptor, ...]) -> Document:
    """Return the manifest of an image: Docker's if it can say it, or else OCI's."""
    if all(one.media_type in GZIPPED for one in blobs):
        kind, layer = Media.DOCKER_MANIFEST.value, Media.DOCKER_LAYER.value
        blobs = tuple(one.replace(media_type=layer) for one in blobs)
    else:
        kind = Media.OCI_MANIFEST.value
        config = config.replace(media_type=Media.OCI_CONFIG.value)
        blobs = tuple(one.replace(media_type=oci_type(one)) for one in blobs)
    text = Manifest(config, blobs, kind).to_json()
    return Document(text, kind, described(text, kind).digest)


def oci_type(it: Descriptor) -> str:
    """Return the OCI's media type for a layer."""
    if it.media_type in GZIPPED:
        return Media.OCI_LAYER_GZIP.value
    return re.sub(r".*diff\.tar(?:\.|$)", f"{Media.OCI_LAYER.value}+", it.media_type)


# %% By name
def client_for(registry: str) -> Client:
    """Return a client for a registry, with the user's login."""
    client = Client(registry)
    key = HUB if client.host == HUB_HOST else client.host
    client.authorizer.login = Credentials().get(key)
    return client
