# From book/350-outside.md. Edit there and tangle, or here and tangle --back.

# %% Outside: sources that are not in the context
"""Trees to copy from that are not the context: stages, images, texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.commits import writable_layer
from minidocker.context import SourceTree, open_context
from minidocker.errors import (
    MinidockerError,
    NotFoundError,
    UnsupportedError,
    did_you_mean,
)
from minidocker.expansion import expand_document
from minidocker.lines import Heredoc
from minidocker.oci import parse_reference
from minidocker.stage import Stage, Workshop


# %% A stage, an image, a named context
IMAGE_SCHEME = "docker-image://"


def context_of(shop: Workshop, name: str) -> str:
    """Return what the command line puts in the place of a name; "" for nothing."""
    contexts = shop.options.contexts
    if not contexts or name.lower() in contexts:
        return contexts.get(name.lower(), "")
    try:
        whole = parse_reference(name).tagged.familiar
    except MinidockerError:  # no name of an image
        return ""
    return contexts.get(whole.removesuffix(":latest"), "") or contexts.get(whole, "")


def replaced_image(shop: Workshop, name: str) -> str | None:
    """Return the image that the command line puts in the place of ``name``."""
    given = context_of(shop, name)
    if not given.startswith(IMAGE_SCHEME):
        return None
    return shop.find_image(given.removeprefix(IMAGE_SCHEME))


def refuse_context(name: str, given: str) -> None:
    """Refuse a named context that is neither a directory nor an image."""
    if given.startswith(IMAGE_SCHEME):
        return
    if "://" in given or given.startswith("git@"):
        hint = "a directory, docker-image://NAME, or oci-layout://DIRECTORY[:TAG]"
        raise UnsupportedError(f'the context "{given}" is not supported', hint=hint)
    if not os.path.isdir(given):
        what = f'the context "{name}" is no directory: "{given}"'
        raise NotFoundError(what, hint=f"--build-context {name}=DIRECTORY")


@contextmanager
def named_context(shop: Workshop, name: str) -> Iterator[SourceTree | None]:
    """Give the directory that the command line calls ``name``; None where it has none.

    Raises UnsupportedError, NotFoundError.
    """
    given = context_of(shop, name) or IMAGE_SCHEME
    refuse_context(name, given)
    if given.startswith(IMAGE_SCHEME):
        yield None
        return
    with open_context(given) as tree:
        yield tree


# %% A stage, an image, a named context
@contextmanager
def tree_from(shop: Workshop, name: str) -> Iterator[SourceTree]:
    """Give the tree that ``--from=name`` means, for a ``with`` block."""
    with named_context(shop, name) as context:
        if context:
            yield context
            return
    stage = None if context_of(shop, name) else shop.find_stage(name)
    image = stage.image if stage else replaced_image(shop, name)
    if image is None:
        try:
            image = shop.find_image(name)
        except NotFoundError as why:
            stages = (stage.name for stage in shop.stages if stage.name)
            why.hint = did_you_mean(name, stages) or why.hint
            raise
    with (
        writable_layer(shop, image) as layer,
        shop.layers.rw_mounted(layer) as root,
        SourceTree(root, owned=True) as tree,
    ):
        yield tree


# %% Texts
@contextmanager
def emptied(shop: Workshop) -> Iterator[str]:
    """Give an empty directory in the store; it is gone after the ``with`` block."""
    import shutil

    path = shop.layers.batch.new_path()
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def text_of(document: Heredoc, shop: Workshop, stage: Stage) -> str:
    """Return a here-document's text with its variables; quotes stay."""
    if not document.expands:
        return document.content
    return expand_document(document.content, shop.variables(stage))


@contextmanager
def tree_of_texts(
    shop: Workshop, stage: Stage, documents: tuple[Heredoc, ...]
) -> Iterator[SourceTree]:
    """Give a tree with one file for each here-document."""
    with emptied(shop) as place:
        for document in documents:
            path = f"{place}/{document.name}"
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text_of(document, shop, stage))
            os.chmod(path, 0o644)
            os.utime(path, (shop.options.epoch or 0,) * 2)
        with SourceTree(place, lasting=False) as tree:
            yield tree
