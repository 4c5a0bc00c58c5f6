# From book/36-stage.md. Edit there and tangle, or here and tangle --back.

# %% Stage: what a build step does
"""The stage of a build, and the moves that every step of it is made of."""

from __future__ import annotations

import os
import posixpath
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from minidocker.context import SourceTree, digest_of_sources, find_sources
from minidocker.copying import Manner, Target, copy_sources
from minidocker.drivers import RootView
from minidocker.errors import BuildError, UsageError
from minidocker.expansion import expand
from minidocker.images import ImageStore
from minidocker.layers import Layer, LayerStore
from minidocker.oci import ContainerConfig, HistoryEntry, ImageConfig, chain_id
from minidocker.records import Record


# %% The nouns
class BuildOptions(Record):
    """What `build` was asked for besides a Dockerfile and a context.

    ``epoch`` (seconds, as SOURCE_DATE_EPOCH) replaces the clock; the same input then
    gives the same image ids.
    """

    tags: tuple[str, ...] = ()
    build_args: Mapping[str, str] = MappingProxyType({})
    no_cache: bool = False
    target: str | None = None
    epoch: int | None = None


class Runner(ABC):
    """Starts the process of a RUN; given to the builder by whoever composes it."""

    @abstractmethod
    def run(
        self,
        view: RootView,
        config: ContainerConfig,
        argv: tuple[str, ...],
        *,
        hostname: str,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> int:
        """Run ``argv`` in ``view`` to its end and return its exit status.

        Environment, user and working directory are ``config``'s. The descriptors
        default to our own. The view is left unmounted.
        """


# %% The nouns
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")


class Stage:
    """What one FROM and the instructions after it have built so far.

    ``image`` is the id of the newest image, "" before the first of FROM scratch.
    ``args`` are the ARGs declared here, with their defaults. ``missed`` says that
    the cache has failed once: everything after that is built.
    """

    __slots__ = ("args", "author", "cmd_set", "config", "image", "missed", "name")

    def __init__(self, name: str, image: str, config: ContainerConfig) -> None:
        self.name, self.image = name, image
        self.config = config.replace(
            image=image, open_stdin=False, stdin_once=False, env=with_path(config.env)
        )
        self.args: dict[str, str | None] = {}
        self.author, self.cmd_set, self.missed = "", False, False

    @property
    def shell(self) -> tuple[str, ...]:
        """What the shell forms are run by."""
        return self.config.shell or DEFAULT_SHELL


def environment(env: tuple[str, ...] | None) -> dict[str, str]:
    """Turn ``NAME=value`` texts into a mapping."""
    return {n: v for n, _, v in (one.partition("=") for one in env or ())}


def with_path(env: tuple[str, ...] | None) -> tuple[str, ...]:
    """Add Docker's default PATH at the end, unless there is a PATH."""
    have = env or ()
    return have if "PATH" in environment(have) else (*have, f"PATH={DEFAULT_PATH}")


# %% Time and names
def go_time(nanoseconds: int) -> str:
    """Write a time as Go does.

    >>> go_time(1_795_473_632_036_969_250), go_time(0)
    ('2026-11-23T22:40:32.03696925Z', '1970-01-01T00:00:00Z')
    """
    import time

    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return text + (f".{rest:09}".rstrip("0") if rest else "") + "Z"


def moment(created: str) -> tuple[str, str]:
    """Return a key that sorts Go's times."""
    seconds, _, rest = created.rstrip("Z").partition(".")
    return seconds, rest.ljust(9, "0")


def source_date_epoch() -> int | None:
    """Return the environment's SOURCE_DATE_EPOCH, or None."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise UsageError(f'SOURCE_DATE_EPOCH "{text}" is not a number of seconds')
    return int(text)


# %% The cache
COMPARED = ("cmd", "env", "user", "labels", "exposed_ports", "entrypoint", "volumes")


def same_step(ours: ContainerConfig, theirs: ContainerConfig | None) -> bool:
    """Say whether two containers would do the same: Docker's cache comparison."""
    if theirs is None:
        return False
    pairs = ((getattr(ours, name), getattr(theirs, name)) for name in COMPARED)
    return all((mine or None) == (other or None) for mine, other in pairs)


# %% The workshop
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy")
UNDECLARED = frozenset(PROXIES) | {name.upper() for name in PROXIES}


class Workshop:
    """The tools of one build, shared by all of its stages."""

    __slots__ = (
        "context", "escape", "images", "layers", "meta_args", "options", "progress",
        "runner", "stages",
    )  # fmt: skip

    def __init__(
        self,
        *,
        images: ImageStore,
        layers: LayerStore,
        runner: Runner,
        progress: Callable[[str], None],
        context: SourceTree,
        options: BuildOptions,
    ) -> None:
        self.images, self.layers, self.runner = images, layers, runner
        self.progress, self.context, self.options = progress, context, options
        self.escape = "\\"
        self.meta_args: dict[str, str | None] = {}
        self.stages: list[Stage] = []

    def argument(self, name: str, default: str | None) -> str | None:
        """Return a build argument: from the command line, the ARG, or before FROM."""
        given = self.options.build_args.get(name)
        if given is None:
            given = default
        return self.meta_args.get(name) if given is None else given

    def globals(self) -> dict[str, str]:
        """Return what a FROM sees: the ARGs before the first one."""
        given = {n: self.argument(n, value) for n, value in self.meta_args.items()}
        return {n: value for n, value in given.items() if value is not None}

    def run_arguments(self, stage: Stage) -> dict[str, str]:
        """Return the build arguments that a RUN of this stage sees, sorted."""
        names = set(stage.args) | (UNDECLARED & set(self.options.build_args))
        fixed = environment(stage.config.env)
        found = {
            n: self.argument(n, stage.args.get(n)) for n in sorted(names - set(fixed))
        }
        return {n: value for n, value in found.items() if value is not None}

    def expand(self, stage: Stage, text: str) -> str:
        """Expand a word with what the stage sees."""
        return expand(text, self.variables(stage), self.escape)

    def variables(self, stage: Stage) -> dict[str, str]:
        """Return every variable that the stage sees."""
        return self.run_arguments(stage) | environment(stage.config.env)

    def find_stage(self, name: str) -> Stage | None:
        """Return the stage of that name, or number from 0; the last one wins."""
        for number, stage in reversed(list(enumerate(self.stages))):
            if name and name.lower() in {stage.name, str(number)}:
                return stage
        return None


# %% Looking for the step
def parentless(images: ImageStore) -> list[str]:
    """Return the images without a parent: the children of `scratch`."""
    return [one for one in images.ids() if images.parent(one) is None]


def is_cached(shop: Workshop, stage: Stage, wanted: ContainerConfig) -> bool:
    """Move the stage on to an image that this step made before, if there is one.

    Of several the newest is taken. After the first miss nothing is looked for.
    """
    if shop.options.no_cache or stage.missed:
        return False
    children = (
        shop.images.children(stage.image) if stage.image else parentless(shop.images)
    )
    images = {one: shop.images.get(one) for one in children}
    found = [
        i for i, image in images.items() if same_step(wanted, image.container_config)
    ]
    if not found:
        stage.missed = True
        return False
    move_on(stage, max(found, key=lambda one: moment(images[one].created or "")))
    shop.progress(" ---> Using cache")
    return True


def move_on(stage: Stage, image: str) -> None:
    """Make ``image`` the newest of the stage."""
    stage.image = image
    stage.config = stage.config.replace(image=image)


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
    import platform

    machine = platform.machine()
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    return ImageConfig(architecture=names.get(machine, machine), os="linux")


def commit(
    shop: Workshop,
    stage: Stage,
    container_config: ContainerConfig,
    *,
    container: str = "",
    layer: Layer | None = None,
) -> None:
    """Write the next image of the stage and move on to it."""
    import time

    before = begin_image(shop, stage)
    added = (layer.diff_id,) if layer else ()
    epoch = shop.options.epoch
    created = go_time(time.time_ns() if epoch is None else epoch * 1_000_000_000)
    entry = HistoryEntry(
        created=created,
        created_by=" ".join(container_config.cmd or ()),
        author=stage.author,
        empty_layer=not added,
    )
    image = before.replace(
        author=stage.author,
        comment="",
        config=stage.config,
        container=container,
        container_config=container_config,
        created=created,
        history=(*before.history, entry),
        diff_ids=(*before.diff_ids, *added),
    )
    move_on(stage, shop.images.add(image, stage.image or None))


# %% Three kinds of steps
def metadata_step(shop: Workshop, stage: Stage, comment: str) -> None:
    """Commit the stage's configuration; ``comment`` is what the history says."""
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


def directory_step(shop: Workshop, stage: Stage, path: str) -> None:
    """Make the directory of a WORKDIR, with mode 0755, and commit."""
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


# %% Three kinds of steps
class Copying(Record):
    """A COPY or ADD, expanded: ``notes`` go into the history before the digest."""

    word: str
    sources: tuple[str, ...]
    to: str
    notes: str
    manner: Manner


def absolute(path: str, working_dir: str) -> str:
    """Return a destination as an absolute path; a final slash says "directory".

    >>> absolute("conf/", "/srv"), absolute(".", "/srv"), absolute("/a", "/srv")
    ('/srv/conf/', '/srv/', '/a')
    """
    slash = "/" if posixpath.basename(path) in {"", ".", ".."} else ""
    clean = clean_path(posixpath.join(working_dir, path))
    return clean if clean == "/" else clean + slash


def copy_step(shop: Workshop, stage: Stage, tree: SourceTree, what: Copying) -> None:
    """Copy from ``tree`` into the image so far, and commit."""
    try:
        sources = find_sources(tree, what.sources)
        digest = digest_of_sources(sources)
        comment = f"#(nop) {what.word} {what.notes}{digest} in {what.to} "
        wanted = stage.config.replace(cmd=(*stage.shell, comment))
        if is_cached(shop, stage, wanted):
            return
        with writable_layer(shop, stage.image) as name:
            with shop.layers.rw_mounted(name) as root:
                to = absolute(what.to, stage.config.working_dir)
                copy_sources(tree, sources, root, to, what.manner)
            layer = shop.layers.commit_rw(name)
            commit(shop, stage, wanted, layer=layer)
    except BuildError as why:
        raise BuildError(f"{what.word} failed: {why.what}", hint=why.hint) from why
    except OSError as why:
        raise BuildError(f"{what.word} failed: {why}") from why


# %% Three kinds of steps
def run_step(shop: Workshop, stage: Stage, argv: tuple[str, ...]) -> None:
    """Run ``argv`` in a container of the image so far, and commit what it wrote.

    Raises BuildError, with the command's status, when that is not 0.
    """
    arguments = shop.run_arguments(stage)
    shown = sorted(f"{n}={v}" for n, v in arguments.items() if n in stage.args)
    secret = UNDECLARED & set(arguments) - set(stage.args)
    count = (f"|{len(shown)}", *shown) if shown or secret else ()
    wanted = stage.config.replace(cmd=(*count, *argv), entrypoint=None)
    if is_cached(shop, stage, wanted):
        return
    container = begin_container(shop, stage, wanted)
    env = (*(stage.config.env or ()), *(f"{n}={v}" for n, v in arguments.items()))
    config = stage.config.replace(cmd=argv, entrypoint=None, env=env)
    with writable_layer(shop, stage.image) as name:
        view = shop.layers.rw_view(name)
        status = shop.runner.run(view, config, argv, hostname=container[:12])
        if status:
            text = f"The command '{' '.join(argv)}' returned a non-zero code: {status}"
            raise BuildError(text, status=status)
        layer = shop.layers.commit_rw(name)
        commit(shop, stage, wanted, container=container, layer=layer)
    end_container(shop, container)
