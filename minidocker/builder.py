# From book/38-builder.md. Edit there and tangle, or here and tangle --back.

# %% Builder: `docker build`, from the first line to the tag
"""Build an image from a Dockerfile and a context, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minidocker.context import SourceTree
from minidocker.dispatch import DISPATCH, begin_stage, declare_before_from, refusal
from minidocker.dockerfile import Dockerfile, Instruction, Word
from minidocker.errors import (
    BuildError,
    MinidockerError,
    UnsupportedError,
    did_you_mean,
)
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.oci import parse_reference
from minidocker.stage import (
    UNDECLARED,
    BuildOptions,
    Runner,
    Stage,
    Workshop,
    source_date_epoch,
)


# %% The steps that are needed
def stage_names(dockerfile: Dockerfile) -> list[str]:
    """Return the name of each stage, "" for one without."""
    heads = (it for it in dockerfile.instructions if it.word is Word.FROM)
    return [it.args[2].lower() if len(it.args) > 2 else "" for it in heads]


def steps_to(dockerfile: Dockerfile, target: str | None) -> list[Instruction]:
    """Return the instructions up to the end of the stage ``target``.

    Raises BuildError when there is no such stage.
    """
    names = stage_names(dockerfile)
    if target is None:
        wanted = len(names) - 1
    elif target.lower() in names:
        wanted = names.index(target.lower())
    elif target.isdecimal() and int(target) < len(names):
        wanted = int(target)
    else:
        hint = did_you_mean(target, [name for name in names if name])
        raise BuildError(f'stage "{target}" does not exist', hint=hint)
    steps: list[Instruction] = []
    for it in dockerfile.instructions:
        wanted -= it.word is Word.FROM
        if wanted < -1:
            break
        steps.append(it)
    return steps


def refuse_early(steps: list[Instruction]) -> None:
    """Refuse what a later step would be refused for, before the first has run."""
    for it in steps:
        if what := refusal(it):
            raise UnsupportedError(f"{what} is not supported", where=it.where)


# %% Where it went wrong
@contextmanager
def at_line(it: Instruction) -> Iterator[None]:
    """Put ``Dockerfile:LINE`` before an error, and before the place it has."""
    try:
        yield
    except MinidockerError as why:
        why.what = f"{why.where}: {why.what}" if why.where else why.what
        why.where = it.where
        raise


# %% The walk
def take_step(it: Instruction, shop: Workshop) -> None:
    """Do one instruction, on the newest stage."""
    if it.word is Word.FROM:
        shop.stages.append(begin_stage(it, shop))
    elif not shop.stages:
        declare_before_from(it, shop)
        return
    else:
        DISPATCH[it.word](it, shop.stages[-1], shop)
    shop.progress(f" ---> {short(shop.stages[-1].image)}")


def short(image: str) -> str:
    """Return the first twelve digits of an image id."""
    return image.removeprefix("sha256:")[:12]


def unused_arguments(steps: list[Instruction], options: BuildOptions) -> list[str]:
    """Return the --build-arg names that no ARG asks for."""
    words = [word for it in steps if it.word is Word.ARG for word in it.args]
    known = {word.partition("=")[0] for word in words}
    return sorted(set(options.build_args) - known - UNDECLARED)


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
        options = options or BuildOptions()
        if options.epoch is None:
            options = options.replace(epoch=source_date_epoch())
        tags = [parse_reference(tag) for tag in options.tags]
        steps = steps_to(dockerfile, options.target)
        refuse_early(steps)
        stage = self.walk(steps, dockerfile.escape, context, options)
        if unused := " ".join(unused_arguments(steps, options)):
            self.progress(
                f"[Warning] One or more build-args [{unused}] were not consumed"
            )
        if not stage.image:
            raise BuildError("no image was made", hint="scratch alone is no image")
        self.progress(f"Successfully built {short(stage.image)}")
        for tag in tags:
            self.images.tag(tag, stage.image)
            self.progress(f"Successfully tagged {tag.tagged}")
        return stage.image

    def walk(
        self,
        steps: list[Instruction],
        escape: str,
        context: SourceTree,
        options: BuildOptions,
    ) -> Stage:
        """Take the steps one after another; return the last stage."""
        shop = Workshop(
            images=self.images,
            layers=self.layers,
            runner=self.runner,
            progress=self.progress,
            context=context,
            options=options,
        )
        shop.escape = escape
        for number, it in enumerate(steps, 1):
            self.progress(f"Step {number}/{len(steps)} : {it.text}")
            with at_line(it):
                take_step(it, shop)
        return shop.stages[-1]
