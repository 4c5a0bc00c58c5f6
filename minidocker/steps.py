# From book/610-steps.md. Edit there and tangle, or here and tangle --back.

# %% Steps: RUN meets the runtime
"""Run the steps of a build in containers; change a config by instructions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from minidocker.build_network import NOT_JOINED, BuildNetwork
from minidocker.context import open_context
from minidocker.dispatch import DISPATCH, set_workdir
from minidocker.dockerfile import Word, parse
from minidocker.drivers import RootView
from minidocker.errors import WordFault
from minidocker.images import BARE as NO_NOTES
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.oci import ContainerConfig, ImageConfig
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
from minidocker.trees import remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.namespaces import Bind, MountStep
    from minidocker.program import ProcessSpec


# %% A container for each RUN
def mount_step(what: Shown | Fresh | Written) -> MountStep:
    """Return the step of a mount plan that shows something to a RUN."""
    from minidocker.mounts import MountFlags
    from minidocker.namespaces import Bind, Content, Filesystem

    if isinstance(what, Shown):
        return Bind(what.path, what.target, what.readonly)
    if isinstance(what, Written):
        return Content(what.target, what.data, what.mode, what.owner)
    size = f",size={what.size}" if what.size else ""
    flags = MountFlags.NOSUID | MountFlags.NODEV
    return Filesystem(what.target, "tmpfs", flags, f"mode=1777{size}")


@contextmanager
def empty_directory(below: str) -> Iterator[str]:
    """Make an empty directory for a ``with`` block; `tempfile` costs 3 ms."""
    path = f"{below}/{os.urandom(8).hex()}"
    os.makedirs(path, 0o700)
    try:
        yield path
    finally:
        remove_path(path)


# %% A container for each RUN
USUAL = BuildOptions()


class ContainerRunner(Runner):
    """Run each RUN in a container of its own; ``tmp`` is for empty directories.

    What commands print goes to the descriptor ``output``, or to our own two. Hosts and
    limits are those of ``options``.
    """

    def __init__(
        self,
        tmp: str,
        output: int = -1,
        network: BuildNetwork | None = None,
        options: BuildOptions = USUAL,
    ) -> None:
        self.tmp, self.output, self.network = tmp, output, network
        self.options = options

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
        from minidocker.pump import Client, attend
        from minidocker.runtime import start

        own = (1, 2) if self.output < 0 else (self.output, self.output)
        out, err = own[0] if stdout is None else stdout, stderr or own[1]
        with self.spec(view, config, around) as bare:
            spec = bare.replace(argv=argv, hostname=hostname)
            return attend(spec, start, Client(-1, out, err))

    @contextmanager
    def spec(
        self, view: RootView, config: ContainerConfig, around: Around
    ) -> Iterator[ProcessSpec]:
        """Give what a container of a step is started with, its command apart."""
        from minidocker.program import Network, ProcessSpec, ulimits_of
        from minidocker.security import SHM_SIZE

        netns, files = NOT_JOINED
        if around.joins and self.network:
            netns, files = self.network.joined()
        elif self.network and not around.host_network:
            netns, files = self.network.alone()
        with empty_directory(self.tmp) as rootfs, self.files(config, around) as more:
            yield ProcessSpec(
                (),
                env=config.env or (),
                cwd=config.working_dir or "/",
                user=config.user,
                view=view,
                rootfs=rootfs,
                mounts=(*files, *more, *map(mount_step, around.mounts)),
                network=Network.HOST if around.host_network else Network.NONE,
                netns=netns,
                shm_size=self.options.shm_size or SHM_SIZE,
                ulimits=ulimits_of(self.options.ulimits),
            )

    @contextmanager
    def files(
        self, config: ContainerConfig, around: Around
    ) -> Iterator[tuple[Bind, ...]]:
        """Give the files below /etc that a command on the host's network asks."""
        if not around.host_network:
            yield ()
            return
        from minidocker.etc_files import (
            network_binds,
            network_files,
            write_network_files,
        )
        from minidocker.program import HostConfig, Network

        with empty_directory(self.tmp) as place:
            host = HostConfig(network=Network.HOST, extra_hosts=self.options.hosts)
            write_network_files(place, network_files(config, host))
            yield network_binds(place)

    def shell(self, view: RootView, config: ContainerConfig, around: Around) -> None:
        """Open a shell in a failed step's container, with a terminal if we have one."""
        from minidocker.pump import Client, attend
        from minidocker.runtime import start

        with self.spec(view, config, around) as bare:
            shell = (config.shell or ("/bin/sh",))[:1]
            spec = bare.replace(argv=shell, hostname="failed-step", tty=os.isatty(0))
            attend(spec, start, Client(0, 1, 2), stdin=True)


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


NEED_MORE = (Word.FROM, Word.RUN, Word.COPY, Word.ADD, Word.ARG)


def changed_config(
    config: ContainerConfig, lines: tuple[str, ...], layers: LayerStore
) -> ContainerConfig:
    """Return a config changed by instructions such as ``CMD ["sh"]``.

    A WORKDIR makes no directory. Raises DockerfileError, and WordFault for an
    instruction that needs more.
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
                what = f"{it.word.value.lower()} is not a valid change command"
                raise WordFault(what)
            dispatcher = DISPATCH[it.word]
            if it.word is Word.WORKDIR:
                dispatcher = set_workdir
            dispatcher(it, stage, shop)
    return stage.config.replace(image=config.image)
