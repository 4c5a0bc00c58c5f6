"""What the tests of building share: stores, a base, runners, a build in one call."""

import io
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scenery import described, listed, tar_of

from minidocker.context import open_context
from minidocker.dockerfile import parse
from minidocker.drivers import RootView, StorageDriver, shown
from minidocker.durable import Batch
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.oci import (
    ContainerConfig,
    HistoryEntry,
    ImageConfig,
    chain_id,
    parse_reference,
)
from minidocker.stage import BARE, Around, BuildOptions, Runner


class Recorder(Runner):
    """Runs nothing: keeps what it was asked, and writes into the root if told to.

    ``act`` gets the directory that shows the root, and returns the exit status.
    """

    def __init__(self, act: Callable[[Path], int] = lambda root: 0) -> None:
        self.act = act
        self.asked: list[tuple[tuple[str, ...], ContainerConfig]] = []
        self.around = BARE

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
        self.asked.append((argv, config))
        self.around = around
        target = os.path.dirname(view.work) + "/merged" if hasattr(view, "work") else ""
        with shown(view, target) as root:
            return self.act(Path(root))


class Chroot(Recorder):
    """Runs the command in the root by chroot, as whoever may do that."""

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
        def act(root: Path) -> int:
            def enter() -> None:
                os.chroot(root)
                os.chdir(config.working_dir or "/")

            env = dict(one.split("=", 1) for one in config.env or ())
            return subprocess.run(
                argv, env=env, preexec_fn=enter, check=False
            ).returncode

        self.act = act
        return super().run(view, config, argv, hostname=hostname, around=around)


class Workbench:
    """Stores below ``root``, what the builder said, and one context directory."""

    def __init__(self, root: Path, driver: type[StorageDriver]) -> None:
        store = str(root / "store")
        os.makedirs(store)
        batch = Batch(store, f"{store}/tmp")
        self.driver = driver(store)
        self.layers = LayerStore(store, self.driver, batch)
        self.images = ImageStore(store, self.driver.name, batch)
        self.context = root / "context"
        self.context.mkdir()
        self.store, self.said, self.runner = Path(store), list[str](), Recorder()

    def base(
        self, name: str, files: dict[str, bytes | str | None], **config: object
    ) -> str:
        """Make an image of one layer."""
        return self.keep(name, self.add_layer(files), ContainerConfig(**config))

    def add_layer(self, files: dict[str, bytes | str | None]) -> tuple[str, ...]:
        layer = self.layers.add(io.BytesIO(tar_of(files)).read)
        return (layer.diff_id,) if layer else ()

    def keep(
        self, name: str, diff_ids: tuple[str, ...], config: ContainerConfig
    ) -> str:
        """Keep and tag an image of layers that may not even be there."""
        image = ImageConfig(
            config=config,
            container_config=ContainerConfig(),
            created="2020-01-01T00:00:00Z",
            history=(HistoryEntry(created="2020-01-01T00:00:00Z", comment="base"),),
            diff_ids=diff_ids,
        )
        id = self.images.add(image, None)
        self.images.tag(parse_reference(name), id)
        return id

    def build(self, dockerfile: str, **options: object) -> str:
        """Build; the lines of the builder are in ``said`` afterwards."""
        self.said.clear()
        epoch = options.get("epoch")
        self.layers.epoch = epoch if isinstance(epoch, int) else None
        from minidocker.builder import Builder

        builder = Builder(self.images, self.layers, self.runner, self.said.append)
        with open_context(str(self.context)) as context:
            return builder.build(parse(dockerfile), context, BuildOptions(**options))

    def config(self, id: str) -> ContainerConfig:
        found = self.images.get(id).config
        assert found is not None
        return found

    def hits(self) -> list[bool]:
        """For each step but FROM: whether it was found in the cache."""
        steps = re.split(r"^Step .*\n", "\n".join(self.said), flags=re.MULTILINE)[2:]
        return ["Using cache" in step for step in steps]

    def family(self, id: str) -> list[tuple[str, str]]:
        """The ids and JSONs of an image and its ancestors, the eldest first."""
        found: list[tuple[str, str]] = []
        one: str | None = id
        while one:
            found.append((one, self.images.raw(one).decode()))
            one = self.images.parent(one)
        return found[::-1]

    @contextmanager
    def shown(self, id: str) -> Iterator[Path]:
        """The root file system of an image."""
        diff_ids = self.images.get(id).diff_ids
        self.layers.create_rw("look", chain_id(diff_ids) if diff_ids else None)
        try:
            with self.layers.rw_mounted("look", writable=False) as root:
                yield Path(root)
        finally:
            self.layers.remove_rw("look")

    def tree(self, id: str) -> dict[str, tuple[str, int, str]]:
        """What is in an image: kind, mode and content (or target) by path."""
        with self.shown(id) as root:
            names = sorted(listed(str(root)))
            return dict(described(str(root), name) for name in names)

    def leavings(self) -> tuple[object, ...]:
        """What a failed step must leave as it was."""
        batch = self.layers.batch
        tmp = os.listdir(batch.tmp) if os.path.isdir(batch.tmp) else []
        return self.driver.ids(), batch.names(self.layers.mounts), sorted(tmp)


def normal_json(family: list[tuple[str, str]]) -> list[str]:
    """The image JSONs of a family with ids, times and digests named by their place."""
    names: dict[str, str] = {}
    for number, (id, text) in enumerate(family):
        names[id] = f"image-{number}"
        for at, diff_id in enumerate(layers_in(text)):
            names[diff_id] = f"layer-{at}"
        for created in re.findall(r'"created":"([^"]*)"', text):
            names.setdefault(created, f"time-{len(names)}")
        for container in re.findall(r'"container":"([0-9a-f]{64})"', text):
            names[container] = f"container-{number}"
            names[container[:12]] = f"host-{number}"
    texts = []
    for _, text in family:
        named = re.sub(r'"([^"]*)"', lambda m: f'"{names.get(m[1], m[1])}"', text)
        texts.append(re.sub(r"file:[0-9a-f]{64}", "file:DIGEST", named))
    return texts


def layers_in(text: str) -> list[str]:
    found = re.search(r'"diff_ids":\[(.*?)\]', text)
    return re.findall(r"sha256:[0-9a-f]{64}", found[1]) if found else []


def normal_lines(lines: list[str], family: list[tuple[str, str]]) -> list[str]:
    """The builder's lines with the ids of images and containers named."""
    names = {id[7:19]: f"image-{number}" for number, (id, _) in enumerate(family)}
    for number, (_, text) in enumerate(family):
        for container in re.findall(r'"container":"([0-9a-f]{12})', text):
            names[container] = f"container-{number}"
    text = "\n".join(lines)
    for found, name in names.items():
        text = text.replace(found, name)
    return text.splitlines()
