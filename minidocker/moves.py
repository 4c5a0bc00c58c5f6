# From book/345-moves.md. Edit there and tangle, or here and tangle --back.

# %% Moves: what a build step does
"""The moves of a build step: find it, or do it; metadata and files."""

from __future__ import annotations

import errno
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
)
from minidocker.commits import (
    BUILT_HERE,
    COPIED,
    as_created,
    begin_container,
    begin_image,
    commit,
    end_container,
    keep,
    move_on,
    writable_layer,
)
from minidocker.context import (
    Source,
    SourceTree,
    find_sources,
    no_sources,
)
from minidocker.copying import Target, copy_sources, target_of
from minidocker.errors import BuildError, IntegrityError, NotFoundError
from minidocker.images import ImageStore
from minidocker.layers import Known
from minidocker.manifests import is_for
from minidocker.manner import Manner
from minidocker.oci import (
    ContainerConfig,
    short_id,
)
from minidocker.patterns import Pattern
from minidocker.records import Record
from minidocker.stage import Stage, Workshop


# %% Looking for the step
def built_from(images: ImageStore, stage: Stage) -> list[str]:
    """Return what was built from a stage's image; from nothing for ``scratch``, "".

    An image that came from elsewhere has no parent either, and is no child; nor is one
    that is for another platform.
    """
    if stage.image:
        return images.children(stage.image)
    here = [one for one in images.children(None) if images.note(one, BUILT_HERE)]
    return [one for one in here if is_for_stage(images, one, stage)]


def is_for_stage(images: ImageStore, id: str, stage: Stage) -> bool:
    """Say whether an image is for a stage's platform; a damaged one is for none."""
    with suppress(NotFoundError, IntegrityError):
        return is_for(images.get(id), stage.platform)
    return False


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
    older = configs_of(shop.images, built_from(shop.images, stage))
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


# %% Looking for the step
LONGEST_SEARCH = 0.2  # seconds to find an older build on another base


def why_missed(
    shop: Workshop, stage: Stage, wanted: ContainerConfig, parts: tuple[Held, ...]
) -> Miss | None:
    """Return what makes the step another than an older one; None if it is new."""
    images = shop.images
    if stage.missed:
        return other_parent(images, stage, wanted)
    older = configs_of(images, built_from(images, stage))
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
                and other.architecture == before.architecture
                and len(theirs) > count
                and theirs[count][0] == cmd
            ):
                entry = other.history[count]
                more = () if entry.empty_layer else other.diff_ids[layers : layers + 1]
                keep(shop, stage, before, wanted, entry, more)
                return True
    return False


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
        denied = why.errno in {errno.EACCES, errno.EPERM}
        hint = (
            "a line in .dockerignore leaves out what is not needed" if denied else None
        )
        raise BuildError(f"{word} failed: {in_words(why)}", hint=hint) from why


LONGEST_NAME = 160


def in_words(why: OSError) -> str:
    """Return which file an error is about, shortened, and what the system said."""
    words = (why.filename, *getattr(why, "words", ()))
    name = next((os.fsdecode(w) for w in words if isinstance(w, str | bytes)), "")
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME // 2]}...{name[-LONGEST_NAME // 2 :]}"
    return f'"{name}": {(why.strerror or "").lower()}' if name else str(why)


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
    return not (shop.options.cache_from or built_from(shop.images, stage))


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
