# From book/347-linked.md. Edit there and tangle, or here and tangle --back.

# %% Linked: a layer that stands on nothing
"""Copy into a layer that depends on no image below it, and use it again on others."""

from __future__ import annotations

from contextlib import suppress

from minidocker.archive import Tally
from minidocker.cleaning import set_times_back
from minidocker.commits import commit, writable_layer
from minidocker.errors import IntegrityError, NotFoundError
from minidocker.layers import EMPTY_TAR, Layer, chain_on
from minidocker.moves import (
    Copying,
    Found,
    absolute,
    copy_step,
    copying_config,
    digest_of_all,
    fill,
    gathered,
    is_cached,
    is_found,
    told_by,
)
from minidocker.oci import chain_id, hex_of, sha256_text
from minidocker.stage import Stage, Workshop
from minidocker.trees import remove_path


# %% The key
LINKS = "buildcache/links"


def key_of(shop: Workshop, stage: Stage, what: Copying, digest: str) -> str:
    """Return the name of a linked copy: hex digits over all that it depends on."""
    manner, to = what.manner, absolute(what.to, stage.config.working_dir)
    words = [word for origin in what.origins for word in (*origin.words, "")]
    unpacks = [str(origin.unpacks) for origin in what.origins]
    exclude = [f"{one.keeps}{one.text}" for one in what.exclude]
    facts = (digest, to, what.parents, manner.owner, manner.mode, shop.options.epoch)
    parts = (*map(repr, facts), *words, *unpacks, *exclude)
    return hex_of(sha256_text("\0".join(parts).encode("utf-8", "surrogateescape")))


def known_layer(shop: Workshop, key: str) -> Layer | None:
    """Return a layer that an earlier build made of this copy, on whatever chain."""
    path = shop.layers.batch.place(f"{shop.layers.root}/{LINKS}/{key}")
    with suppress(OSError, NotFoundError, IntegrityError), open(path) as file:
        return shop.layers.get(file.read())
    return None


# %% A layer for the chain
def parent_chain(shop: Workshop, stage: Stage) -> str | None:
    """Return the chain id of the image so far; None for scratch, or without layers."""
    diff_ids = shop.images.get(stage.image).diff_ids if stage.image else ()
    return chain_id(diff_ids) if diff_ids else None


def pack_alone(
    shop: Workshop, stage: Stage, what: Copying, found: list[Found], path: str
) -> str:
    """Copy into an empty tree, and write its tar to ``path``; return the digest."""
    store = shop.layers
    with writable_layer(shop, "") as name, open(path, "wb") as file:
        known = fill(shop, stage, name, what, found)
        tree, tally = store.mount_id(name), Tally(file.write)
        if store.epoch is not None:
            set_times_back(store.driver, tree, store.epoch)
        store.driver.pack(tree, tally, known.contents)
    return tally.digest


def made_layer(
    shop: Workshop, stage: Stage, what: Copying, found: list[Found]
) -> Layer | None:
    """Make the layer of a copy on the image so far; None when it has no file."""
    spool = shop.layers.batch.new_path()
    try:
        diff_id = pack_alone(shop, stage, what, found, spool)
        if diff_id == EMPTY_TAR:
            return None
        with open(spool, "rb") as file:
            parent = parent_chain(shop, stage)
            return shop.layers.add(file.read, parent, diff_id=diff_id)
    finally:
        remove_path(spool)


def moved_layer(shop: Workshop, stage: Stage, layer: Layer) -> Layer:
    """Put a layer that is known on the image so far; its tar stays the same."""
    parent = parent_chain(shop, stage)
    with suppress(NotFoundError):
        return shop.layers.get(chain_on(parent, layer.diff_id))
    spool = shop.layers.batch.new_path()
    try:
        with open(spool, "wb") as file:
            shop.layers.tar_of(layer.chain_id, file.write)
        with open(spool, "rb") as file:
            return shop.layers.add(file.read, parent, diff_id=layer.diff_id)
    finally:
        remove_path(spool)


# %% The step
def link_step(shop: Workshop, stage: Stage, what: Copying) -> None:
    """Copy files into a layer of their own, and commit; take a known one if it is."""
    found = gathered(what)
    digest, parts = digest_of_all(shop, found)
    wanted = copying_config(stage, what, digest)
    if is_found(shop, stage, wanted):
        return
    key = key_of(shop, stage, what, digest)
    layer = None if shop.options.no_cache else known_layer(shop, key)
    if layer:
        layer = moved_layer(shop, stage, layer)
        shop.progress(" ---> Using cache (linked)")
    elif not is_cached(shop, stage, wanted, parts):
        layer = made_layer(shop, stage, what, found)
    commit(shop, stage, wanted, layer=layer, parts=parts)
    if layer:
        path = f"{shop.layers.root}/{LINKS}/{key}"
        shop.layers.batch.stage(path, layer.chain_id.encode())


def files_step(shop: Workshop, stage: Stage, what: Copying) -> None:
    """Copy files into the image so far, or into a layer that is linked to it."""
    if not what.manner.link:
        copy_step(shop, stage, what)
        return
    with told_by(what.word):
        link_step(shop, stage, what)
