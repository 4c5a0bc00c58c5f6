# From book/365-builder.md. Edit there and tangle, or here and tangle --back.

# %% Builder: `docker build`, from the first line to the tag
"""Build an image from a Dockerfile and a context, step by step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from minidocker.context import SourceTree
from minidocker.dispatch import DISPATCH, declare
from minidocker.dockerfile import (
    Dockerfile,
    Instruction,
    Word,
    parse,
    parse_trigger,
)
from minidocker.errors import (
    BuildError,
    DockerfileError,
    MinidockerError,
    did_you_mean,
)
from minidocker.expansion import check_words, expand
from minidocker.foresight import (
    Trial,
    at_line,
    base_name,
    check_platform,
    foresee,
    name_of,
    platform_for,
)
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.lines import raise_all
from minidocker.linked import files_step
from minidocker.manifests import host_platform
from minidocker.manner import Manner
from minidocker.moves import Copying, Origin
from minidocker.oci import ContainerConfig, parse_reference
from minidocker.outside import context_of, named_context, replaced_image
from minidocker.records import Record
from minidocker.running import split_options
from minidocker.stage import (
    UNDECLARED,
    BuildOptions,
    Runner,
    Stage,
    Workshop,
    platform_arguments,
    seconds_of,
    source_date_epoch,
)


# %% The stages that are needed
class Part(Record):
    """The text of one stage: its number, its name or "", and its steps, FROM first."""

    number: int
    name: str
    steps: tuple[Instruction, ...]

    def is_called(self, name: str, *, by_number: bool = True) -> bool:
        """Say whether ``name`` means this stage."""
        number = by_number and name == str(self.number)
        return bool(name) and (name.lower() == self.name or number)


def parts_of(dockerfile: Dockerfile) -> tuple[list[Instruction], list[Part]]:
    """Return the instructions before the first FROM, and the stages."""
    before: list[Instruction] = []
    parts: list[Part] = []
    for it in dockerfile.instructions:
        if it.word is Word.FROM:
            parts.append(Part(len(parts), name_of(it), (it,)))
        elif parts:
            last = parts.pop()
            parts.append(last.replace(steps=(*last.steps, it)))
        else:
            before.append(it)
    return before, parts


def find_target(parts: list[Part], target: str | None) -> Part:
    """Return the stage that is wanted. Raises BuildError when there is none such."""
    if target is None:
        return parts[-1]
    for part in parts:
        if part.is_called(target):
            return part
    hint = did_you_mean(target, [part.name for part in parts if part.name])
    raise BuildError(f'stage "{target}" does not exist', hint=hint)


# %% The stages that are needed
def taken_from(it: Instruction) -> list[str]:
    """Return the names that an instruction, or its trigger, takes files from."""
    names = [name for name in [it.flag("from")] if name]
    if it.word is Word.RUN:
        for text in it.flag_all("mount"):
            with suppress(DockerfileError):  # foresight tells it
                names += filter(None, [split_options(text).get("from")])
    return names + (taken_from(it.trigger) if it.trigger else [])


def needed(
    parts: list[Part],
    target: Part,
    base_of: Callable[[Part], str],
    replaced: Callable[[str], object] = lambda name: False,
) -> list[Part]:
    """Return the stages that ``target`` needs, and itself, in order.

    ``base_of`` gives what a stage's FROM names, its variables expanded. ``replaced``
    says of a name that the command line puts something else in its place.
    """
    wanted: set[int] = set()
    todo = [target]
    while todo:
        part = todo.pop()
        if part.number in wanted:
            continue
        wanted.add(part.number)
        names = [(base_of(part), False)]
        names += [(name, True) for it in part.steps[1:] for name in taken_from(it)]
        for name, by_number in names:
            if replaced(name):
                continue
            earlier = reversed(parts[: part.number])
            known = (p for p in earlier if p.is_called(name, by_number=by_number))
            todo += [one for one in [next(known, None)] if one]
    return [part for part in parts if part.number in wanted]


# %% Where a stage comes from
def declare_before_from(it: Instruction, shop: Workshop) -> None:
    """ARG name[=default] ..., before the first FROM"""
    declare(it, shop.meta_args, lambda text: expand(text, shop.globals(), shop.escape))


def begin_context(shop: Workshop, stage: Stage, base: str) -> bool:
    """Begin a stage with all files of a named context, if ``base`` is a directory's."""
    with named_context(shop, base) as tree:
        if tree:
            origins = (Origin(tree, (".",)),)
            manner = Manner(ignore_owner=shop.layers.driver.rootless)
            files_step(shop, stage, Copying("FROM", origins, "/", "", manner))
        return tree is not None


def begin_stage(it: Instruction, shop: Workshop, number: int) -> Stage:
    """FROM [--platform=os/architecture] image|stage|context|scratch [AS name]"""
    base, platform = base_name(it, shop), platform_for(it, shop)
    stage = Stage(name_of(it), "", ContainerConfig(), number)
    stage.platform = platform or stage.platform
    if context_of(shop, base) and begin_context(shop, stage, base):
        return stage
    image = replaced_image(shop, base)
    if image is None:
        named = (s for s in reversed(shop.stages) if s.name == base.lower())
        earlier = next(named, None)
        if earlier:
            image, platform = earlier.image, None
            stage.platform = earlier.platform
        else:
            image = "" if base == "scratch" else shop.find_image(base, platform)
    if image:
        shop.images.claim(image)
    whole = shop.images.get(image) if image else None
    if platform and whole:
        check_platform(platform, whole, base)
    config = (whole.config if whole else None) or ContainerConfig()
    begun = Stage(name_of(it), image, config.replace(on_build=None), number)
    begun.platform = stage.platform
    if config.on_build:
        fire_triggers(begun, shop, config.on_build)
    return begun


# %% Triggers
def triggered(text: str) -> Instruction:
    """Return the instruction of a trigger."""
    return parse_trigger(text, "ONBUILD")


def fire_triggers(stage: Stage, shop: Workshop, triggers: tuple[str, ...]) -> None:
    """Do what an image's ONBUILD lines say, in order."""
    count = f"{len(triggers)} build trigger{'s' if len(triggers) > 1 else ''}"
    shop.progress(f"# Executing {count}")
    for text in triggers:
        try:
            it = triggered(text)
            DISPATCH[it.word](it, stage, shop)
        except MinidockerError as why:
            why.what = f"{why.what} (from ONBUILD {text.splitlines()[0]})"
            raise


# %% The walk
def label_step(name: str, value: str) -> Instruction:
    """Return the LABEL that a label of the command line is."""
    pair = (name, value)
    quoted = tuple("'" + word.replace("'", "'\"'\"'") + "'" for word in pair)
    [_, it] = parse("FROM scratch\nLABEL a=b", "--label").instructions
    return it.replace(args=quoted, text=f"LABEL {name}={value}", where="--label")


def look_ahead(
    dockerfile: Dockerfile, preview: Trial
) -> tuple[list[Instruction], list[Part], Steps]:
    """Return the steps before the first FROM, the stages, and the steps to take.

    Raises BuildError for an unknown target, and what is wrong in these stages, all
    that can be known before the first step.
    """
    check_words(dockerfile.instructions, dockerfile.escape)
    before, parts = parts_of(dockerfile)
    target = find_target(parts, preview.options.target)
    for it in before:
        with at_line(it):
            declare_before_from(it, preview)

    def base_of(part: Part) -> str:
        return expand(part.steps[0].args[0], preview.globals(), preview.escape)

    whole = with_triggers(parts, base_of, preview)
    target = whole[target.number]
    found = needed(whole, target, base_of, lambda name: context_of(preview, name))
    wanted = {part.number for part in found}
    chosen = [part for part in parts if part.number in wanted]
    if preview.options.labels:
        last = chosen.pop()
        more = (label_step(*pair) for pair in sorted(preview.options.labels.items()))
        chosen.append(last.replace(steps=(*last.steps, *more)))
    steps = [(it, part.number) for part in chosen for it in part.steps]
    until = preview.options.until
    steps = steps[: until and max(1, until - len(before))]
    raise_all(foresee(steps, preview))
    return before, chosen, steps


# %% The walk
Steps = list[tuple[Instruction, int]]


def fetch_images(steps: Steps, shop: Trial) -> bool:
    """Fetch the images that steps name and that are not here; say whether any was.

    Raises all that cannot be fetched, or are for another platform than asked for.
    """
    faults: list[MinidockerError] = []
    inside, fetched = {"scratch"}, False
    for it, number in steps:
        if it.trigger:
            continue
        is_from = it.word is Word.FROM
        for name in [base_name(it, shop)] if is_from else taken_from(it):
            if name.lower() in inside or context_of(shop, name):
                continue
            try:
                with at_line(it):
                    fetched |= fetch_image(name, it, shop)
            except MinidockerError as why:
                faults.append(why)
        if is_from:
            inside |= {name_of(it) or "scratch", str(number)}
    raise_all(faults)
    return fetched


def fetch_image(name: str, it: Instruction, shop: Trial) -> bool:
    """Fetch an image that a step names; say False for one that is here already."""
    platform = platform_for(it, shop) if it.word is Word.FROM else None
    if shop.has(name, platform) and not shop.options.pull_first:
        return False
    image = shop.images.get(shop.find_image(name, platform))
    if platform:
        check_platform(platform, image, name)
    return True


def plan(
    dockerfile: Dockerfile, shop: Workshop
) -> tuple[list[Instruction], list[Part]]:
    """Return the steps before the first FROM, and the stages to build.

    The images that they need are here then. Raises what is wrong.
    """
    names = tuple(part.name for part in parts_of(dockerfile)[1])
    preview = Trial(shop, names)
    before, parts, steps = look_ahead(dockerfile, preview)
    if fetch_images(steps, preview):
        before, parts, _ = look_ahead(dockerfile, Trial(shop, names))
    return before, parts


# %% The walk
def with_triggers(
    parts: list[Part], base_of: Callable[[Part], str], shop: Workshop
) -> list[Part]:
    """Return the stages with the steps that triggers of their images will add."""
    found: list[Part] = []
    for part in parts:
        triggers: tuple[str, ...] = ()
        try:
            image = shop.images.get(shop.images.resolve(base_of(part)))
            triggers = (image.config or ContainerConfig()).on_build or ()
        except MinidockerError:
            pass  # a stage, scratch, or an image that is not here
        steps = (*part.steps, *map(triggered, triggers))
        found.append(part.replace(steps=steps))
    return found


# %% The walk
def take_step(it: Instruction, shop: Workshop, number: int) -> None:
    """Do one instruction, on the newest stage; ``number`` is that of the stage."""
    if it.word is Word.FROM:
        shop.stages.append(begin_stage(it, shop, number))
    elif not shop.stages:
        declare_before_from(it, shop)
        return
    else:
        DISPATCH[it.word](it, shop.stages[-1], shop)
    shop.progress(f" ---> {short(shop.stages[-1].image)}")


def short(image: str) -> str:
    """Return the first twelve digits of an image id."""
    return image.removeprefix("sha256:")[:12]


# %% The walk
def unused_arguments(steps: list[Instruction], options: BuildOptions) -> list[str]:
    """Return the --build-arg names that no ARG asks for."""
    words = [word for it in steps if it.word is Word.ARG for word in it.args]
    known = {word.partition("=")[0] for word in words} | set(
        platform_arguments(host_platform())
    )
    return sorted(set(options.build_args) - known - UNDECLARED - {EPOCH})


EPOCH = "SOURCE_DATE_EPOCH"


# %% The walk
class Builder:
    """Builds images in a pair of stores, with a runner for RUN.

    ``progress`` is called with each line that Docker's builder would print.
    """

    __slots__ = ("images", "layers", "progress", "runner")

    def __init__(
        self,
        images: ImageStore,
        layers: LayerStore,
        runner: Runner,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.images, self.layers = images, layers
        self.runner, self.progress = runner, progress

    def build(
        self,
        dockerfile: Dockerfile,
        context: SourceTree,
        options: BuildOptions | None = None,
    ) -> str:
        """Build, tag, and return the id of the image.

        A step that fails leaves the images of the steps before it, which the next
        build finds, and nothing of its own.
        """
        options = dated(options or BuildOptions())
        self.layers.epoch = options.epoch
        tags = [parse_reference(tag) for tag in options.tags]
        shop = Workshop(
            images=self.images,
            layers=self.layers,
            runner=self.runner,
            progress=self.progress,
            context=context,
            options=options,
        )
        shop.escape = dockerfile.escape
        before, parts = plan(dockerfile, shop)
        try:
            stage = self.walk(before, parts, shop)
        finally:
            for index in shop.indexes.values():
                index.save()
        if not stage.image:
            raise BuildError("no image was made", hint="scratch alone is no image")
        self.progress(f"Successfully built {short(stage.image)}")
        for tag in tags:
            self.images.tag(tag, stage.image)
            self.progress(f"Successfully tagged {tag.tagged}")
        return stage.image

    def walk(
        self, before: list[Instruction], parts: list[Part], shop: Workshop
    ) -> Stage:
        """Take the steps one after another; return the last stage."""
        steps = [(it, 0) for it in before]
        steps += [(it, part.number) for part in parts for it in part.steps]
        for number, (it, stage) in enumerate(steps, 1):
            self.progress(f"Step {number}/{len(steps)} : {it.text}")
            with at_line(it):
                take_step(it, shop, stage)
            if number == shop.options.until and shop.stages:
                break
        if unused := " ".join(unused_arguments([it for it, _ in steps], shop.options)):
            self.progress(
                f"[Warning] One or more build-args [{unused}] were not consumed"
            )
        return shop.stages[-1]


# %% The walk
def dated(options: BuildOptions) -> BuildOptions:
    """Return the options with an epoch, where an argument or a variable has one."""
    if options.epoch is not None:
        return options
    given = options.build_args.get(EPOCH, "")
    epoch = seconds_of(given) if given else source_date_epoch()
    return options.replace(epoch=epoch)
