# From book/340-stage.md. Edit there and tangle, or here and tangle --back.

# %% Stage: what a build knows
"""The nouns of a build: options, runner, stage, workshop."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType

from minidocker.cache import StatIndex
from minidocker.context import SourceTree
from minidocker.drivers import RootView
from minidocker.errors import MinidockerError, UsageError
from minidocker.expansion import expand
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.manifests import Platform, host_platform, is_for, parse_platform
from minidocker.oci import ContainerConfig, sha256_text
from minidocker.records import Record


NOTHING: Mapping[str, str] = MappingProxyType({})


# %% The nouns
class Secret(Record):
    """Where a secret of the build comes from: a file, or a variable of ours."""

    path: str = ""
    variable: str = ""


class BuildOptions(Record):
    """What `build` was asked for besides a Dockerfile and a context.

    ``epoch`` (seconds, as SOURCE_DATE_EPOCH) replaces the clock; the same input then
    gives the same image ids. ``contexts`` are further contexts by name, each a
    directory or ``docker-image://NAME``. ``until`` is the number of the last step.
    ``pull`` fetches an image that is not here, or, with ``pull_first``, any, for a
    platform if one is wanted, and returns its id. ``platform`` and ``network`` are for
    the FROM and RUN that say none. ``hosts``, ``ulimits`` and ``shm_size`` (0 for the
    usual) are for every RUN, in the words of `run`.
    """

    tags: tuple[str, ...] = ()
    build_args: Mapping[str, str] = NOTHING
    no_cache: bool = False
    target: str | None = None
    epoch: int | None = None
    cache_from: tuple[str, ...] = ()
    contexts: Mapping[str, str] = NOTHING
    labels: Mapping[str, str] = NOTHING
    secrets: Mapping[str, Secret] = MappingProxyType({})
    until: int | None = None
    pull: Callable[[str, Platform | None], str] | None = None
    pull_first: bool = False
    shell_on_error: bool = False
    platform: str = ""
    network: str = "default"
    hosts: tuple[str, ...] = ()
    ulimits: tuple[str, ...] = ()
    shm_size: int = 0


# %% The nouns
class Shown(Record):
    """A file or directory of the host that a step sees at ``target``."""

    path: str
    target: str
    readonly: bool = True


class Fresh(Record):
    """An empty file system in memory; ``size`` in bytes, 0 for no limit."""

    target: str
    size: int = 0


class Written(Record):
    """A file that exists in memory only, while the step runs."""

    target: str
    data: bytes
    mode: int = 0o400
    owner: tuple[int, int] = (0, 0)


class Around(Record):
    """What is around the process of a RUN, besides its root file system.

    It has the host's network, or ``joins`` that of the build, or has none.
    """

    mounts: tuple[Shown | Fresh | Written, ...] = ()
    host_network: bool = False
    joins: bool = False


BARE = Around()


# %% The nouns
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
        around: Around = BARE,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> int:
        """Run ``argv`` in ``view`` to its end and return its exit status.

        Environment, user and working directory are ``config``'s. The descriptors
        default to our own. The view is left unmounted.
        """

    def shell(self, view: RootView, config: ContainerConfig, around: Around) -> None:
        """Let the user look around in the container of a failed step; here: not."""
        return


# %% The nouns
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")


class Stage:
    """What one FROM and the instructions after it have built so far.

    ``image`` is the id of the newest image, "" before the first of FROM scratch.
    ``args`` are the ARGs declared here, with their defaults. ``missed`` says that
    the cache has failed once: everything after that is built. ``old`` is then the
    image that an older build had at this point, "" where none is known. ``platform``
    is what an image from scratch is for.
    """

    __slots__ = (
        "args", "author", "cmd_set", "config", "image",
        "missed", "name", "number", "old", "platform",
    )  # fmt: skip

    def __init__(
        self, name: str, image: str, config: ContainerConfig, number: int = 0
    ) -> None:
        self.name, self.image, self.number = name, image, number
        self.config = config.replace(
            image=image, open_stdin=False, stdin_once=False, env=with_path(config.env)
        )
        self.args: dict[str, str | None] = {}
        self.author, self.cmd_set, self.missed, self.old = "", False, False, ""
        self.platform = host_platform()

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


# %% Time
def go_time(nanoseconds: int) -> str:
    """Write a time as Go does.

    >>> go_time(1_795_473_632_036_969_250), go_time(0)
    ('2026-11-23T22:40:32.03696925Z', '1970-01-01T00:00:00Z')
    """
    import time

    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return text + (f".{rest:09}".rstrip("0") if rest else "") + "Z"


def source_date_epoch() -> int | None:
    """Return the environment's SOURCE_DATE_EPOCH, or None."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return seconds_of(text) if text else None


def seconds_of(text: str) -> int:
    """Return the seconds that a SOURCE_DATE_EPOCH says. Raises UsageError."""
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise UsageError(f'SOURCE_DATE_EPOCH "{text}" is not a number of seconds')
    return int(text)


# %% The workshop
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
UNDECLARED = frozenset(PROXIES) | {name.upper() for name in PROXIES}


def platform_arguments(target: Platform) -> dict[str, str]:
    """Return the predefined arguments that tell this machine's platform and another.

    >>> platform_arguments(Platform("linux", "arm", "v7"))["TARGETPLATFORM"]
    'linux/arm/v7'
    """
    found: dict[str, str] = {}
    for side, it in (("BUILD", host_platform()), ("TARGET", target)):
        found[f"{side}PLATFORM"], found[f"{side}OS"] = str(it), it.os
        found[f"{side}ARCH"], found[f"{side}VARIANT"] = it.architecture, it.variant
    return found


# %% The workshop
class Workshop:
    """The tools of one build, shared by all of its stages.

    In a ``trial`` the instructions are only read: nothing is looked for or made.
    """

    __slots__ = (
        "context", "escape", "images", "indexes", "layers", "meta_args", "options",
        "platform", "progress", "pulled", "runner", "stages", "target", "trial",
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
        text = options.platform
        self.target = parse_platform(text) if text else host_platform()
        self.platform = platform_arguments(self.target)
        self.stages: list[Stage] = []
        self.pulled: dict[tuple[str, Platform | None], str] = {}
        self.indexes: dict[str, StatIndex] = {}
        self.trial = False

    def argument(self, name: str, default: str | None) -> str | None:
        """Return a build argument: from the command line, the ARG, or before FROM."""
        given = self.options.build_args.get(name)
        if given is None:
            given = default
        if given is None:
            given = self.meta_args.get(name)
        return self.platform.get(name) if given is None else given

    def globals(self) -> dict[str, str]:
        """Return what a FROM sees: platforms, and the ARGs before the first one."""
        names = {**dict.fromkeys(self.platform), **self.meta_args}
        given = {n: self.argument(n, value) for n, value in names.items()}
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
        for stage in reversed(self.stages):
            if name and name.lower() in {stage.name, str(stage.number)}:
                return stage
        return None

    def has(self, name: str, platform: Platform | None = None) -> bool:
        """Say whether an image is here, and for a platform if one is wanted."""
        try:
            id = self.images.resolve(name)
        except MinidockerError:
            return False
        return platform is None or is_for(self.images.get(id), platform)

    def find_image(self, name: str, platform: Platform | None = None) -> str:
        """Return the id of an image; fetch it where that is possible and needed.

        What was fetched once stays what it was then, for all of a build.
        """
        pull, wanted = self.options.pull, (name, platform)
        if pull is None:
            return self.images.resolve(name)
        if wanted not in self.pulled:
            if not self.options.pull_first and self.has(name, platform):
                return self.images.resolve(name)
            self.pulled[wanted] = pull(name, platform)
        return self.pulled[wanted]

    def index_of(self, tree: SourceTree) -> StatIndex | None:
        """Return the stat index of a context; None for what will not be there again."""
        if tree.owned or not tree.lasting:
            return None
        if tree.root not in self.indexes:
            name = sha256_text(os.fsencode(os.path.abspath(tree.root)))[7:]
            path = f"{self.layers.root}/buildcache/index/{name}"
            self.indexes[tree.root] = StatIndex(path, self.layers.batch)
        return self.indexes[tree.root]
