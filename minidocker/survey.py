# From book/648-survey.md. Edit there and tangle, or here and tangle --back.

# %% Survey: the promises between images and layers
"""What a store has, read once, and the checks of images, layers and their files.

A check is a function from a ``Survey`` to the faults that it finds; chapter
``integrity`` has the others, and the tables of all.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from minidocker.engine import Engine
from minidocker.errors import IntegrityError, MinidockerError
from minidocker.layers import Layer, read_text
from minidocker.lifecycle import is_torn
from minidocker.oci import ImageConfig, chain_ids, hex_of, is_digest, short_id
from minidocker.records import Record
from minidocker.tables import human_size


# %% The nouns
class Fault(Record):
    """One thing that is wrong: where, what, and what to do about it.

    An ``orphan`` is something that nobody names: the next sweep removes it. ``mend``
    is what ``--repair`` does about a fault of another kind, if it can do something.
    """

    where: str
    what: str
    remedy: str
    orphan: bool = False
    mend: Callable[[], object] | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


def orphan(where: str, what: str) -> Fault:
    """Return the fault that nobody names a thing."""
    remedy = "`minidocker system prune` gives its space back"
    return Fault(where, what, remedy, orphan=True)


def mended(where: str, what: str, does: str, mend: Callable[[], object]) -> Fault:
    """Return a fault that ``--repair`` mends; ``does`` says how."""
    return Fault(where, what, f"`minidocker system check --repair` {does}", mend=mend)


# %% The nouns
class Survey:
    """What a store says of itself: images, layers, trees and containers by name.

    ``bad`` are the images and layers that cannot be read, and why. ``needed`` are the
    chain ids on which an image or a container stands.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.root = engine, engine.root
        self.bad: dict[str, str] = {}
        self.images: dict[str, ImageConfig] = {}
        self.layers: dict[str, Layer] = {}
        for id in engine.images.ids():
            with self.told(id):
                self.images[id] = engine.images.get(id)
        for chain in filter(is_digest, engine.layers.ids()):
            with self.told(chain):
                self.layers[chain] = engine.layers.get(chain)
        self.boxes = set(engine.containers.ids())
        self.torn = {id for id in self.boxes if is_torn(engine.containers, id)}
        self.mounts = engine.layers.batch.names(engine.layers.mounts)
        self.trees = set(engine.driver.ids())
        self.needed = self.stacks()

    def told(self, name: str) -> Told:
        """Note why a thing cannot be read, for a ``with`` block."""
        return Told(self.bad, name)

    def stacks(self) -> set[str]:
        """Return the chain ids that images and containers name, and those below."""
        found = {c for it in self.images.values() for c in chain_ids(it.diff_ids)}
        tops = [self.engine.layers.rw_parent(name) for name in self.mounts]
        return found | {c for top in tops if top for c in self.stack(top)}

    def stack(self, chain: str | None) -> list[str]:
        """Return a layer and those below it, top-first."""
        found: list[str] = []
        while chain and chain not in found:
            found.append(chain)
            chain = self.layers[chain].parent if chain in self.layers else None
        return found

    def trees_of(self, chain: str | None) -> list[str]:
        """Return the driver's ids of a layer and those below it, top-first."""
        return [self.layers[c].cache_id for c in self.stack(chain) if c in self.layers]

    def again(self, chain: str) -> str:
        """Return what to do about a layer that is lost: by the images that have it."""
        found = [
            (-len(it.history), short_id(id))
            for id, it in self.images.items()
            if chain in chain_ids(it.diff_ids)
        ]
        words = " ".join(id for _, id in sorted(found))  # children go before parents
        return f"`minidocker rmi -f {words}`, then build or pull again"


class Told:
    """Keeps an error of a ``with`` block as a text, and lets the program go on."""

    def __init__(self, found: dict[str, str], name: str) -> None:
        self.found, self.name = found, name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, why: BaseException | None, _: object) -> bool:
        if isinstance(why, MinidockerError):
            self.found[self.name] = why.what
        elif isinstance(why, (OSError, ValueError)):
            self.found[self.name] = str(why)
        return isinstance(why, (MinidockerError, OSError, ValueError))


Check = Callable[[Survey], Iterator[Fault]]


# %% Images and their names
def check_images(survey: Survey) -> Iterator[Fault]:
    """Each image JSON has its digest for a name, and its layers and parent are here."""
    images = survey.engine.images
    for id in images.ids():
        where = f"image {short_id(id)}"
        if id in survey.bad:
            path = f"{images.content}/{hex_of(id)}"
            again = f"remove {path}, then build or pull it again"
            yield Fault(where, survey.bad[id], again)
        elif id in survey.images:
            yield from missing_layers(survey, id, where)
        parent = images.parent(id)
        if parent and parent not in survey.images and parent not in survey.bad:

            def forget(id: str = id) -> None:
                os.unlink(f"{images.metadata}/{hex_of(id)}/parent")

            what = f"its parent {short_id(parent)} is not here"
            yield mended(where, what, "forgets it", forget)


def missing_layers(survey: Survey, id: str, where: str) -> Iterator[Fault]:
    """Yield the layers of an image that are not here."""
    for chain in chain_ids(survey.images[id].diff_ids):
        if chain not in survey.layers and chain not in survey.bad:
            what = f"its layer {short_id(chain)} is not here"
            yield Fault(where, what, survey.again(chain))


def check_names(survey: Survey) -> Iterator[Fault]:
    """Each name stands for an image that is here; metadata belongs to an image."""
    images = survey.engine.images
    try:
        names = images.names.read()
    except IntegrityError as why:
        yield Fault(images.names.path, why.what, "remove it, and tag the images anew")
        return
    there = survey.images.keys() | survey.bad.keys()
    for tags in names.values():
        for name, id in tags.items():
            if id not in there:
                what = f"it names the image {short_id(id)}, which is not here"
                drop = dropper(survey.engine, name)
                yield mended(f"name {name}", what, "drops the name", drop)
    for name in images.batch.names(images.metadata):
        if f"sha256:{name}" not in there:
            yield orphan(f"metadata of image {name[:12]}", "there is no such image")


def dropper(engine: Engine, name: str) -> Callable[[], object]:
    """Return what takes a name out of the list of names."""

    def drop() -> None:
        with engine.images.names.changed() as names:
            for tags in names.values():
                tags.pop(name, None)

    return drop


# %% Layers
def check_layers(survey: Survey) -> Iterator[Fault]:
    """Each layer has a whole record, the layers below it, and a tree of its own."""
    uses = Counter(layer.cache_id for layer in survey.layers.values())
    for chain in survey.engine.layers.ids():
        where = f"layer {short_id(chain)}"
        if chain not in survey.needed:
            yield orphan(where, "no image and no container stands on it")
        elif chain in survey.bad:
            yield Fault(where, survey.bad[chain], survey.again(chain))
        elif layer := survey.layers.get(chain):
            for what in layer_faults(survey, layer, uses[layer.cache_id]):
                yield Fault(where, what, survey.again(chain))


def layer_faults(survey: Survey, layer: Layer, uses: int) -> Iterator[str]:
    """Say what is wrong with a layer that is needed."""
    if layer.parent and layer.parent not in survey.layers:
        yield f"the layer {short_id(layer.parent)} below it is not here"
    elif layer.cache_id not in survey.trees:
        yield f"its tree {layer.cache_id[:12]} is not here"
    else:
        yield from lies_wrong(survey, layer.cache_id, layer.parent)
    if uses > 1:
        yield "another layer has the same tree"


def lies_wrong(survey: Survey, tree: str, below: str | None) -> Iterator[str]:
    """Say whether a tree lies on others than those of the chain ``below``."""
    try:
        found = survey.engine.driver.lowers(tree)
    except (MinidockerError, OSError) as why:
        words = why.what if isinstance(why, MinidockerError) else why
        yield f"its tree cannot be read: {words}"
        return
    if found != survey.trees_of(below):
        yield f"its tree {tree[:12]} does not lie on those of the layers below it"


def check_trees(survey: Survey) -> Iterator[Fault]:
    """Each tree of the driver belongs to a layer or a container, and is whole."""
    driver, layers = survey.engine.driver, survey.engine.layers
    owner = {layer.cache_id: chain for chain, layer in survey.layers.items()}
    used = {read_text(f"{layers.mounts}/{n}/mount-id"): n for n in survey.mounts}
    for tree, what in driver.faults():
        where = f"tree {tree[:12]}" if tree else driver.name
        if not tree:
            yield Fault(where, what, "see chapter `poolmetadata`")
        elif owner.get(tree) in survey.needed:
            yield Fault(where, what, survey.again(owner[tree]))
        elif used.get(tree) in survey.boxes - survey.torn:
            yield Fault(where, what, f"`minidocker rm {used[tree][:12]}`")
    lost = sorted(survey.trees - owner.keys() - used.keys())
    for tree, size in zip(lost, driver.space(lost), strict=True):
        what = f"it is no layer's and no container's, and has {human_size(size)}"
        yield orphan(f"tree {tree[:12]}", what)
    with suppress(IntegrityError):  # which is one of the driver's faults
        for one in driver.strays():
            what = f"it is no layer's, and has {human_size(one.size)}"
            yield mended(one.name, what, "gives them back", one.remove)


# %% The files themselves
def check_contents(survey: Survey) -> Iterator[Fault]:
    """Each layer packs into the very bytes of which its diff id is the digest."""
    for chain, layer in survey.layers.items():
        if chain not in survey.needed or layer.cache_id not in survey.trees:
            continue
        found: dict[str, str] = {}
        with Told(found, chain):
            survey.engine.layers.tar_of(chain, len)
        if found:
            what = which_file(survey, layer) or found[chain].replace(
                f'layer "{chain}"', "this layer"
            )
            yield Fault(f"layer {short_id(chain)}", what, survey.again(chain))


def which_file(survey: Survey, layer: Layer) -> str:
    """Say which file of a layer is not as it came; "" where that is not known."""
    from minidocker.splits import damaged_file

    split = survey.engine.layers.split_of(layer)
    with suppress(MinidockerError, OSError):
        with survey.engine.driver.opened(layer.cache_id) as tree:
            path = damaged_file(split, tree) if split else None
        return f'the file "{path}" is not the one that came' if path else ""
    return ""
