# From book/343-commits.md. Edit there and tangle, or here and tangle --back.

# %% Commits: an image from a container
"""The container of a build step, and the image that it leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.cache import Held, write_manifest
from minidocker.layers import Layer
from minidocker.oci import ContainerConfig, HistoryEntry, ImageConfig, chain_id
from minidocker.stage import Stage, Workshop, go_time


# %% The container
def begin_container(shop: Workshop, stage: Stage, config: ContainerConfig) -> str:
    """Return the id of the step's container, and tell."""
    if shop.options.epoch is None:
        container = os.urandom(32).hex()
    else:
        import hashlib

        seed = "\0".join((stage.image, *(config.cmd or ())))
        container = hashlib.sha256(os.fsencode(seed)).hexdigest()
    shop.progress(f" ---> Running in {container[:12]}")
    return container


def end_container(shop: Workshop, container: str) -> None:
    """Tell that the container is gone; its layer is the image's now."""
    shop.progress(f"Removing intermediate container {container[:12]}")


def as_created(config: ContainerConfig, container: str) -> ContainerConfig:
    """Return the configuration as Docker's `create` leaves it."""
    labels = (config.labels or {}) if config.image else config.labels
    return config.replace(hostname=container[:12], labels=labels)


@contextmanager
def writable_layer(shop: Workshop, image: str) -> Iterator[str]:
    """Give the name of a read-write layer over ``image``; it is gone afterwards.

    Committed before the end it stays, as a read-only layer; otherwise all that was
    written is thrown away. That is what makes a failed step leave nothing.
    """
    name = os.urandom(32).hex()
    diff_ids = shop.images.get(image).diff_ids if image else ()
    shop.layers.create_rw(name, chain_id(diff_ids) if diff_ids else None)
    try:
        yield name
    finally:
        shop.layers.remove_rw(name)


# %% The commit
def begin_image(shop: Workshop, stage: Stage) -> ImageConfig:
    """Return the image JSON that the step starts from; blank for scratch."""
    if stage.image:
        return shop.images.get(stage.image)
    it = stage.platform
    extra = {"variant": it.variant} if it.variant else None
    return ImageConfig(architecture=it.architecture, os=it.os, extra=extra)


def commit(
    shop: Workshop,
    stage: Stage,
    container_config: ContainerConfig,
    *,
    container: str = "",
    layer: Layer | None = None,
    parts: tuple[Held, ...] = (),
) -> None:
    """Write the next image of the stage and move on to it."""
    epoch = shop.options.epoch
    entry = HistoryEntry(
        created=go_time(time.time_ns() if epoch is None else epoch * 1_000_000_000),
        created_by=" ".join(container_config.cmd or ()),
        author=stage.author,
        empty_layer=layer is None,
    )
    before = begin_image(shop, stage).replace(container=container)
    added = (layer.diff_id,) if layer else ()
    keep(shop, stage, before, container_config, entry, added, parts)


# %% The commit
BUILT_HERE, COPIED = "builtlocally", "copied"  # files of an image's metadata


def move_on(stage: Stage, image: str) -> None:
    """Make ``image`` the newest of the stage."""
    stage.image = image
    stage.config = stage.config.replace(image=image)


def keep(  # noqa: PLR0917
    shop: Workshop,
    stage: Stage,
    before: ImageConfig,
    container_config: ContainerConfig,
    entry: HistoryEntry,
    added: tuple[str, ...],
    parts: tuple[Held, ...] = (),
) -> None:
    """Keep the image that follows ``before`` with one more line and layer, or none."""
    image = before.replace(
        author=stage.author,
        comment="",
        config=stage.config,
        container_config=container_config,
        created=entry.created,
        history=(*before.history, entry),
        diff_ids=(*before.diff_ids, *added),
    )
    notes = {COPIED: write_manifest(parts)} if parts else {}
    if not stage.image:
        notes[BUILT_HERE] = b"1"
    move_on(stage, shop.images.add(image, stage.image or None, notes))
