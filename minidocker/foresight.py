# From book/363-foresight.md. Edit there and tangle, or here and tangle --back.

# %% Foresight: what is wrong before the first step
"""Find what is wrong with the steps of a build before the first one is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from minidocker.addresses import SCHEMES, name_for
from minidocker.context import (
    SourceTree,
    clean_source,
    missing,
    no_sources,
    one_source,
)
from minidocker.dispatch import (
    DISPATCH,
    is_address,
    mode_of,
    number,
    sources_of,
)
from minidocker.dockerfile import Instruction, Word, place
from minidocker.errors import (
    BuildError,
    DockerfileError,
    MinidockerError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    nearest,
)
from minidocker.expansion import expand
from minidocker.manifests import (
    Platform,
    host_platform,
    is_for,
    parse_platform,
    platform_of,
)
from minidocker.moves import destination, told_by
from minidocker.oci import ContainerConfig, ImageConfig
from minidocker.outside import context_of, refuse_context
from minidocker.patterns import glob_regex, has_wildcards, read_patterns
from minidocker.running import (
    MountKind,
    RunMount,
    check_run,
    mounts_of,
    refuse_secret,
)
from minidocker.stage import Stage, Workshop


# %% The nouns
class Foreseen(Stage):
    """A stage as it will be; ``sure`` says that all its variables are known."""

    __slots__ = ("sure",)

    def __init__(
        self, name: str, image: str, config: ContainerConfig, number: int, sure: bool
    ) -> None:
        super().__init__(name, image, config, number)
        self.sure = sure


LATER = "?"  # stands for the id of an image that is not made or fetched yet


class Trial(Workshop):
    """A workshop with the tools of another, in which nothing is made.

    ``names`` are those of all the stages in the file, also of those not needed.
    """

    __slots__ = ("names",)

    def __init__(self, shop: Workshop, names: tuple[str, ...]) -> None:
        super().__init__(
            images=shop.images, layers=shop.layers, runner=shop.runner,
            progress=lambda line: None, context=shop.context, options=shop.options,
        )  # fmt: skip
        self.escape, self.names, self.trial = shop.escape, names, True
        self.pulled = shop.pulled


def is_open(it: Instruction) -> bool:
    """Say whether variables have a say in what an instruction does."""
    words = () if it.word is Word.RUN else it.args  # the shell expands them
    return any("$" in text for text in (*words, *(value for _, value in it.flags)))


# %% Where it went wrong
@contextmanager
def at_line(it: Instruction) -> Iterator[None]:
    """Put ``Dockerfile:LINE`` before an error and the place it has; point at a word."""
    try:
        yield
    except MinidockerError as why:
        why.what = f"{why.where}: {why.what}" if why.where else why.what
        place(why, it)
        if not isinstance(why, BuildError):
            why.status = 1  # 126 and 127 are for `run`
        raise


# %% Where a stage comes from
def base_name(it: Instruction, shop: Workshop) -> str:
    """Return what a FROM names. Raises DockerfileError for nothing."""
    base = expand(it.args[0], shop.globals(), shop.escape)
    if not base:
        hint = "give it a --build-arg"
        raise DockerfileError(f'"{it.args[0]}" is empty', hint=hint)
    return base


def platform_for(it: Instruction, shop: Workshop) -> Platform | None:
    """Return the platform that a FROM or the command line asks for, None for any."""
    flag = it.flag("platform") or ""
    text = expand(flag, shop.globals(), shop.escape) or shop.options.platform
    try:
        return parse_platform(text) if text else None
    except UsageError as why:
        what = f'bad platform "{text}"'
        raise DockerfileError(what, hint=why.hint, word=flag) from why


def check_platform(wanted: Platform, image: ImageConfig, base: str) -> None:
    """Refuse a platform that an image is not for. Raises UnsupportedError."""
    if is_for(image, wanted):
        return
    raise UnsupportedError(
        f'"{base}" is for {platform_of(image)}, not for {wanted}',
        hint=f"this machine runs {host_platform()}",
    )


# %% Where a stage comes from
def check_origin(name: str, shop: Trial) -> None:
    """Refuse a name that is no stage, context or image, as far as that is known."""
    if given := context_of(shop, name):
        refuse_context(name, given)
        return
    if shop.find_stage(name) or shop.has(name):
        return
    if name.isdecimal():
        hint = f"the stages before this one are 0 to {len(shop.stages) - 1}"
        raise NotFoundError(f'stage "{name}" does not exist', hint=hint)
    if near := nearest(name, filter(None, shop.names)):
        try:
            shop.find_image(name)
        except MinidockerError as why:
            why.hint = f'did you mean "{near}"?'
            raise


def name_of(it: Instruction) -> str:
    """Return the name that a FROM gives its stage, "" for none."""
    return it.args[2].lower() if len(it.args) > 2 else ""


def unknown_stage(name: str, number: int) -> Foreseen:
    """Return a stage that begins from an image of which nothing is known."""
    return Foreseen(name, LATER, ContainerConfig(), number, sure=False)


def foresee_from(it: Instruction, shop: Trial, number: int) -> Foreseen:
    """Return a stage that begins; refuse a base or a platform that cannot be."""
    base, name = base_name(it, shop), name_of(it)
    named = (s for s in reversed(shop.stages) if s.name == base.lower())
    given = bool(context_of(shop, base))
    earlier = None if given else next(named, None)
    if isinstance(earlier, Foreseen):
        return Foreseen(name, earlier.image, earlier.config, number, earlier.sure)
    if base == "scratch" and not given:
        return Foreseen(name, "", ContainerConfig(), number, sure=True)
    check_origin(base, shop)
    platform = platform_for(it, shop)
    fetches = shop.options.pull and not shop.has(base, platform)
    if given or shop.options.pull_first or fetches or not shop.has(base):
        return unknown_stage(name, number)
    image = shop.images.get(shop.images.resolve(base))
    if platform:
        check_platform(platform, image, base)
    config = image.config or ContainerConfig()
    sure = not config.on_build
    return Foreseen(name, LATER, config.replace(on_build=None), number, sure)


# %% Files
def check_source(tree: SourceTree, path: str, *, parents: bool = False) -> bool:
    """Say whether a source names anything; refuse a path that is not in a tree."""
    clean = clean_source(path)
    if has_wildcards(path):
        regex = glob_regex(clean, deep=parents)
        return any(regex.match(item.path) for item in tree.walk("."))
    try:
        real = tree.real_path(clean)
    except OSError as why:
        raise missing(tree, clean) from why
    if tree.ignores(clean) or tree.ignores(real):
        one_source(tree, clean)  # a directory may hold what is not ignored
    return True


def check_word(it: Instruction, word: str, to: str, shop: Trial) -> bool:
    """Say whether a word of a COPY or ADD names anything, as far as that is known."""
    if it.heredoc(word):
        return True
    if is_address(it, word):
        return bool(name_for(word, to))
    if word.startswith(SCHEMES):
        raise DockerfileError(f'COPY fetches nothing: "{word}"', hint="ADD does")
    with told_by(it.word.value):
        clean_source(word)
        parents = it.is_on("parents")
        named = bool(it.flag("from"))
        return named or check_source(shop.context, word, parents=parents)


def foresee_files(it: Instruction, stage: Foreseen, shop: Trial) -> None:
    """Read a COPY or ADD; refuse sources that are not there, and odd flags."""
    stage.image = stage.image or LATER
    mode_of(shop.expand(stage, it.flag("chmod") or ""))
    for part in shop.expand(stage, it.flag("chown") or "").split(":"):
        number(part)
    exclude = (shop.expand(stage, word) for word in it.flag_all("exclude"))
    read_patterns("\n".join(exclude), "--exclude")
    words = sources_of(it, stage, shop)
    to = shop.expand(stage, it.args[-1])
    if origin := it.flag("from"):
        check_origin(origin, shop)
    found = [check_word(it, word, to, shop) for word in words]
    with told_by(it.word.value):
        if not any(found):
            raise no_sources(words)
        destination(to, stage.config.working_dir, len(words))


# %% Commands
def check_mount(mount: RunMount, shop: Trial) -> None:
    """Refuse a mount of what is not there."""
    if mount.origin:
        check_origin(mount.origin, shop)
    elif mount.kind is MountKind.BIND:
        with told_by(f'--mount of "{mount.source}"'):
            check_source(shop.context, mount.source or ".")
    if mount.kind is MountKind.SECRET and mount.id not in shop.options.secrets:
        refuse_secret(mount)


def foresee_run(it: Instruction, stage: Foreseen, shop: Trial) -> None:
    """Read a RUN; refuse what cannot be given to it."""
    check_run(it, stage)
    for mount in mounts_of(it, stage, shop):
        check_mount(mount, shop)


FORESEEN: dict[Word, Callable[[Instruction, Foreseen, Trial], None]] = {
    Word.COPY: foresee_files,
    Word.ADD: foresee_files,
    Word.RUN: foresee_run,
}


# %% All steps
def foresee_step(it: Instruction, stage: Foreseen, shop: Trial) -> None:
    """Do one instruction on trial. Raises what is wrong with it."""
    if stage.sure or not is_open(it):
        FORESEEN.get(it.word, DISPATCH[it.word])(it, stage, shop)


def foresee(
    steps: Iterable[tuple[Instruction, int]], shop: Trial
) -> list[MinidockerError]:
    """Return what is wrong with steps, each with the number of its stage.

    ``shop`` knows the ARGs before the first FROM.
    """
    faults: list[MinidockerError] = []
    stages: list[Foreseen] = []
    for it, at in steps:
        try:
            with at_line(it):
                if it.word is Word.FROM:
                    stages.append(foresee_from(it, shop, at))
                else:
                    foresee_step(it, stages[-1], shop)
        except MinidockerError as why:
            faults.append(why)
            if it.word is Word.FROM:
                stages.append(unknown_stage(name_of(it), at))
            stages[-1].sure = False
        shop.stages[:] = stages
    return faults
