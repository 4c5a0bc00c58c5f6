# From book/54-steps.md. Edit there and tangle, or here and tangle --back.

# %% Steps: RUN meets the runtime
"""Run the steps of a build in containers; change a config by instructions."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping

from minidocker.context import open_context
from minidocker.dispatch import DISPATCH
from minidocker.dockerfile import Word, parse
from minidocker.drivers import RootView
from minidocker.errors import UsageError
from minidocker.images import BARE as NO_NOTES
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.mounts import MountFlags
from minidocker.namespaces import Bind, Content, Filesystem, MountStep
from minidocker.oci import ContainerConfig, ImageConfig
from minidocker.program import Network, ProcessSpec
from minidocker.pump import Client
from minidocker.runtime import start
from minidocker.stage import (
    BARE,
    Around,
    BuildOptions,
    Fresh,
    Runner,
    Shown,
    Stage,
    Workshop,
    Written,
)
from minidocker.supervisor import attend


# %% A container for each RUN
def mount_step(what: Shown | Fresh | Written) -> MountStep:
    """Return the step of a mount plan that shows something to a RUN."""
    if isinstance(what, Shown):
        return Bind(what.path, what.target, what.readonly)
    if isinstance(what, Written):
        return Content(what.target, what.data, what.mode, what.owner)
    size = f",size={what.size}" if what.size else ""
    flags = MountFlags.NOSUID | MountFlags.NODEV
    return Filesystem(what.target, "tmpfs", flags, f"mode=1777{size}")


class ContainerRunner(Runner):
    """Run each RUN in a container of its own; ``tmp`` is for empty directories."""

    def __init__(self, tmp: str) -> None:
        self.tmp = tmp

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
        """Run ``argv`` to its end; return its exit status."""
        out, err = 1 if stdout is None else stdout, 2 if stderr is None else stderr
        os.makedirs(self.tmp, 0o700, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.tmp) as rootfs:
            spec = ProcessSpec(
                argv,
                env=config.env or (),
                cwd=config.working_dir or "/",
                user=config.user,
                hostname=hostname,
                view=view,
                rootfs=rootfs,
                mounts=tuple(map(mount_step, around.mounts)),
                network=Network.HOST if around.host_network else Network.NONE,
            )
            return attend(spec, start, Client(-1, out, err))


# %% Changing a config by instructions
class Nowhere(ImageStore):
    """An image store that forgets what it is given."""

    def add(
        self,
        image: ImageConfig,
        parent: str | None,
        notes: Mapping[str, bytes] = NO_NOTES,
    ) -> str:
        """Forget the image; the next step starts from none again."""
        return ""


NEED_MORE = (Word.FROM, Word.RUN, Word.COPY, Word.ADD, Word.WORKDIR, Word.ARG)


def changed_config(
    config: ContainerConfig, lines: tuple[str, ...], layers: LayerStore
) -> ContainerConfig:
    """Return a config changed by instructions such as ``CMD ["sh"]``.

    Raises DockerfileError, and UsageError for an instruction that needs more.
    """
    found = parse("FROM scratch\n" + "\n".join(lines), "--change")
    stage = Stage("", "", config)
    stage.config = stage.config.replace(env=config.env)
    with open_context(layers.root) as nothing:
        shop = Workshop(
            images=Nowhere(layers.root, layers.driver.name, layers.batch),
            layers=layers,
            runner=ContainerRunner(layers.batch.tmp),
            progress=lambda line: None,
            context=nothing,
            options=BuildOptions(no_cache=True),
        )
        for it in found.instructions[1:]:
            if it.word in NEED_MORE:
                raise UsageError(f"{it.word.value} is not possible in a --change")
            DISPATCH[it.word](it, stage, shop)
    return stage.config.replace(image=config.image)
