# From book/345-moves.md. Edit there and tangle, or here and tangle --back.

# %% Moves: what a build step does
"""The moves of a build step: find it, make a container, commit; files and metadata."""

from __future__ import annotations

import os
import posixpath
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby

from minidocker.arrivals import (
    LARGE,
    Landing,
    arrive,
    find_landing,
    in_background,
    is_plain,
)
from minidocker.cache import (
    Held,
    Miss,
    digest_of_source,
    digest_of_sources,
    moment,
    nearest,
    other_step,
    read_manifest,
    same_step,
    write_manifest,
)
from minidocker.context import (
    Pattern,
    Source,
    SourceTree,
    find_sources,
    no_sources,
)
from minidocker.copying import Target, copy_sources, target_of
from minidocker.errors import BuildError, IntegrityError, NotFoundError
from minidocker.images import ImageStore
from minidocker.layers import Known, Layer
from minidocker.manner import Manner
from minidocker.oci import (
    ContainerConfig,
    HistoryEntry,
    ImageConfig,
    chain_id,
    short_id,
)
from minidocker.records import Record
from minidocker.stage import Stage, Workshop, go_time, this_platform


# %% Looking for the step
BUILT_HERE, COPIED = "builtlocally", "copied"  # files of an image's metadata


def built_from(images: ImageStore, parent: str) -> list[str]:
    """Return what was built from an image; from nothing for ``scratch``, "".

    An image that came from elsewhere has no parent either, and is no child.
    """
    if parent:
        return images.children(parent)
    return [one for one in images.children(None) if images.note(one, BUILT_HERE)]


def is_cached(
    shop: Workshop,
    stage: Stage,
    wanted: ContainerConfig,
    parts: tuple[Held, ...] = (),
) -> bool:
    """Move the stage on to an image that this step made before, if there is one.

    Of several the newest is taken. After the first miss nothing is looked for.
    ``parts`` are what a COPY copies, to tell why there is none.
    """
    if shop.options.no_cache:
        return False
    if is_found(shop, stage, wanted):
        return True
    if miss := why_missed(shop, stage, wanted, parts):
        shop.progress(f" ---> Not cached: {miss}")
    stage.missed = True
    return False


def is_found(shop: Workshop, stage: Stage, wanted: ContainerConfig) -> bool:
    """Do what ``is_cached`` does when there is such an image; say nothing if not."""
    if shop.options.no_cache or stage.missed:
        return False
    older = configs_of(shop.images, built_from(shop.images, stage.image))
    found = [id for id in older if same_step(wanted, older[id][1])]
    found.sort(key=lambda id: moment(older[id][0]), reverse=True)
    if newest := next(filter(shop.images.claim, found), ""):
        move_on(stage, newest)
    if newest or restored(shop, stage, wanted):
        shop.progress(" ---> Using cache")
        return True
    return False


# %% Looking for the step
def configs_of(
    images: ImageStore, ids: Iterable[str]
) -> dict[str, tuple[str, ContainerConfig]]:
    """Return time and container configuration of images, by id.

    One that is damaged, or is being removed, is no answer to anything.
    """
    found: dict[str, tuple[str, ContainerConfig]] = {}
    for id in ids:
        with suppress(NotFoundError, IntegrityError):
            image = images.get(id)
            if image.container_config:
                found[id] = image.created or "", image.container_config
    return found


def move_on(stage: Stage, image: str) -> None:
    """Make ``image`` the newest of the stage."""
    stage.image = image
    stage.config = stage.config.replace(image=image)


# %% Looking for the step
LONGEST_SEARCH = 0.2  # seconds to find an older build on another base


def why_missed(
    shop: Workshop, stage: Stage, wanted: ContainerConfig, parts: tuple[Held, ...]
) -> Miss | None:
    """Return what makes the step another than an older one; None if it is new."""
    images = shop.images
    if stage.missed:
        return other_parent(images, stage, wanted)
    older = configs_of(images, built_from(images, stage.image))
    near = nearest(wanted, older)
    if near is None:
        return other_base(images, stage, wanted)
    stage.old = near
    before = read_manifest(images.note(near, COPIED))
    return other_step(wanted, older[near][1], (before, {p.path: p for p in parts}))


def other_parent(
    images: ImageStore, stage: Stage, wanted: ContainerConfig
) -> Miss | None:
    """Say from which image an older build went on; follow it one step further."""
    if not stage.old:
        return None
    was = stage.old
    older = configs_of(images, images.children(was))
    stage.old = nearest(wanted, older) or ""
    return Miss("parent", short_id(was), short_id(stage.image))


def other_base(
    images: ImageStore, stage: Stage, wanted: ContainerConfig
) -> Miss | None:
    """Find the newest image that this step made of another base, in bounded time."""
    end = time.monotonic() + LONGEST_SEARCH
    for id in images.newest():
        if time.monotonic() > end:
            return None
        was, older = images.parent(id), configs_of(images, [id])
        if was and id in older and same_step(wanted, older[id][1]):
            stage.old = id
            return Miss("parent", short_id(was), short_id(stage.image))
    return None


# %% Looking for the step
def restored(shop: Workshop, stage: Stage, wanted: ContainerConfig) -> bool:
    """Make the step's image of a layer of an image in ``cache_from``, if one has it."""
    before = begin_image(shop, stage)
    count, cmd = len(before.history), " ".join(wanted.cmd or ())
    lines = [(entry.created_by, entry.empty_layer) for entry in before.history]
    for name in shop.options.cache_from:
        with suppress(NotFoundError):
            other = shop.images.get(shop.images.resolve(name))
            theirs = [(entry.created_by, entry.empty_layer) for entry in other.history]
            layers = len(before.diff_ids)
            if (
                theirs[:count] == lines
                and other.diff_ids[:layers] == before.diff_ids
                and len(theirs) > count
                and theirs[count][0] == cmd
            ):
                entry = other.history[count]
                more = () if entry.empty_layer else other.diff_ids[layers : layers + 1]
                keep(shop, stage, before, wanted, entry, more)
                return True
    return False


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
    system, arch, variant = this_platform()
    extra = {"variant": variant} if variant else None
    return ImageConfig(architecture=arch, os=system, extra=extra)


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


# %% Two kinds of steps
def metadata_step(shop: Workshop, stage: Stage, comment: str) -> None:
    """Commit the stage's configuration; ``comment`` is what the history says."""
    if shop.trial:
        return
    cmd = (*stage.shell, "#(nop) ", comment)
    wanted = stage.config.replace(cmd=cmd)
    if is_cached(shop, stage, wanted):
        return
    container = begin_container(shop, stage, wanted)
    commit(shop, stage, as_created(wanted, container), container=container)
    end_container(shop, container)


def clean_path(path: str) -> str:
    """Return an absolute path without ``.``, ``..`` and doubled slashes.

    POSIX, and so normpath, lets two slashes at the start stand for something else.

    >>> clean_path("//srv/../etc/")
    '/etc'
    """
    return "/" + posixpath.normpath("/" + path).lstrip("/")


# %% Two kinds of steps
def directory_step(shop: Workshop, stage: Stage, path: str) -> None:
    """Make the directory of a WORKDIR, with mode 0755, and commit."""
    if shop.trial:
        return
    cmd = (*stage.shell, f"#(nop) WORKDIR {path}")
    wanted = stage.config.replace(cmd=cmd)
    if is_cached(shop, stage, wanted):
        return
    container = begin_container(shop, stage, wanted)
    with writable_layer(shop, stage.image) as name:
        with shop.layers.rw_mounted(name) as root, Target(root, 0, (0, 0)) as target:
            os.close(target.directory(path))
        layer = shop.layers.commit_rw(name)
        clean = wanted.replace(working_dir=clean_path(path))
        config = as_created(clean, container)
        commit(shop, stage, config, container=container, layer=layer)
    end_container(shop, container)


# %% Two kinds of steps
class Origin(Record):
    """Sources of a COPY in one tree; ``unpacks`` says that archives are unpacked."""

    tree: SourceTree
    words: tuple[str, ...]
    unpacks: bool = False


Found = tuple[Origin, Source]


class Copying(Record):
    """A COPY or ADD, expanded: ``notes`` go into the history before the digest."""

    word: str
    origins: tuple[Origin, ...]
    to: str
    notes: str
    manner: Manner
    exclude: tuple[Pattern, ...] = ()
    parents: bool = False


# %% Two kinds of steps
def absolute(path: str, working_dir: str) -> str:
    """Return a destination as an absolute path; a final slash says "directory".

    >>> absolute("conf/", "/srv"), absolute(".", "/srv"), absolute("/a", "/srv")
    ('/srv/conf/', '/srv/', '/a')
    """
    slash = "/" if posixpath.basename(path) in {"", ".", ".."} else ""
    clean = clean_path(posixpath.join(working_dir, path))
    return clean if clean == "/" else clean + slash


def destination(path: str, working_dir: str, sources: int) -> str:
    """Return where so many sources go. Raises BuildError for many on one file."""
    to = absolute(path, working_dir)
    if sources > 1 and not to.endswith("/"):
        raise BuildError(
            "with more than one source the destination must be a directory",
            hint=f'write "{to}/"',
        )
    return to


@contextmanager
def told_by(word: str) -> Iterator[None]:
    """Put the instruction that failed before an error about a file."""
    try:
        yield
    except BuildError as why:
        raise BuildError(f"{word} failed: {why.what}", hint=why.hint) from why
    except OSError as why:
        raise BuildError(f"{word} failed: {why}") from why


# %% Two kinds of steps
def copy_step(shop: Workshop, stage: Stage, what: Copying) -> None:
    """Copy files into the image so far, and commit."""
    with told_by(what.word):
        found = gathered(what)
        if is_large(found) and is_new(shop, stage):
            copy_while_digesting(shop, stage, what, found)
            return
        digest, parts = digest_of_all(shop, found)
        wanted = copying_config(stage, what, digest)
        if is_cached(shop, stage, wanted, parts):
            return
        with writable_layer(shop, stage.image) as name:
            known = fill(shop, stage, name, what, found)
            layer = shop.layers.commit_rw(name, known=known)
            commit(shop, stage, wanted, layer=layer, parts=parts)


def gathered(what: Copying) -> list[Found]:
    """Return the sources of a COPY, each with where it is from."""
    found = [
        (origin, source)
        for origin in what.origins
        for source in find_sources(
            origin.tree, origin.words, what.exclude, parents=what.parents
        )
    ]
    if not found:
        raise no_sources(word for origin in what.origins for word in origin.words)
    return found


def digest_of_all(shop: Workshop, found: list[Found]) -> tuple[str, tuple[Held, ...]]:
    """Return the digest that the history shows, and what went into it."""
    digests, parts = list[str](), list[Held]()
    for origin, source in found:
        index = shop.index_of(origin.tree)
        digest, held = digest_of_source(origin.tree, source, index)
        digests.append(digest)
        parts += held
    return digest_of_sources(digests), tuple(parts)


def copying_config(stage: Stage, what: Copying, digest: str) -> ContainerConfig:
    """Return the container's configuration, by which the step is found again."""
    comment = f"#(nop) {what.word} {what.notes}{digest} in {what.to} "
    return stage.config.replace(cmd=(*stage.shell, comment))


# %% Two kinds of steps
def fill(
    shop: Workshop, stage: Stage, name: str, what: Copying, found: list[Found]
) -> Known:
    """Copy the sources, each from its tree, into a read-write layer."""
    layers = shop.layers
    to = destination(what.to, stage.config.working_dir, len(found))
    with layers.rw_mounted(name) as root:
        landing = landing_of(root, what, found, to)
        if not landing:
            return Known(copy_found(root, what, found, to))
    [(origin, source)] = found
    with layers.driver.opened(layers.mount_id(name), writable=True) as tree:
        packed = arrive(origin.tree, source, tree, landing, what.manner)
    return Known(packed=packed)


def landing_of(root: str, what: Copying, found: list[Found], to: str) -> Landing | None:
    """Return where a single source arrives; None where it is not alone, or unpacked."""
    [(origin, source), *more] = found
    if more or source.kept or (origin.unpacks and not source.is_directory):
        return None
    if not is_plain(origin.tree, source):
        return None
    with target_of(root, origin.tree, [source], what.manner) as target:
        return find_landing(target, source, to)


def copy_found(
    root: str, what: Copying, found: list[Found], to: str
) -> dict[bytes, bytes]:
    """Copy the sources; return the contents of small files, by their names."""
    written: dict[bytes, bytes] = {}
    for origin, group in groupby(found, key=lambda pair: pair[0]):
        sources = [source for _, source in group]
        manner = what.manner.replace(unpacks=origin.unpacks)
        copy_sources(origin.tree, sources, root, to, manner, written=written)
    return written


# %% Two kinds of steps
def is_large(found: list[Found]) -> bool:
    """Say whether a large file is among the sources."""
    items = (item for _, source in found for item in source.items)
    return any(stat.S_ISREG(i.info.st_mode) and i.info.st_size > LARGE for i in items)


def is_new(shop: Workshop, stage: Stage) -> bool:
    """Say whether the cache cannot have the next step."""
    if shop.options.no_cache or stage.missed:
        return True
    return not (shop.options.cache_from or built_from(shop.images, stage.image))


def copy_while_digesting(
    shop: Workshop, stage: Stage, what: Copying, found: list[Found]
) -> None:
    """Copy as ``copy_step`` does, and compute the digest at the same time."""
    with ExitStack() as stack:
        again = [
            (origin.replace(tree=stack.enter_context(origin.tree.again())), source)
            for origin, source in found
        ]
        name = stack.enter_context(writable_layer(shop, stage.image))
        with in_background(lambda: digest_of_all(shop, again)) as result:
            known = fill(shop, stage, name, what, found)
        digest, parts = result()
        wanted = copying_config(stage, what, digest)
        if not is_cached(shop, stage, wanted, parts):
            layer = shop.layers.commit_rw(name, known=known)
            commit(shop, stage, wanted, layer=layer, parts=parts)
