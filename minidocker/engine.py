# From book/616-engine.md. Edit there and tangle, or here and tangle --back.

# %% Engine: where everything is put together
"""The composition root: stores, builder, registry and runtime wired together.

Methods are named after Docker's commands. They return values and never print.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from minidocker.durable import store_lock, turn
from minidocker.errors import NotFoundError, RegistryError, UsageError
from minidocker.layers import Layer
from minidocker.oci import (
    ContainerConfig,
    HistoryEntry,
    ImageConfig,
    Reference,
    parse_reference,
)
from minidocker.opened_store import BASE, StoreEngine, make_base_image
from minidocker.records import Enum


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.archive import Put
    from minidocker.changes import Change
    from minidocker.containers import Container
    from minidocker.context import SourceTree
    from minidocker.dockerfile import Instruction
    from minidocker.exchange import Event, Pulled, Pushed, Tell
    from minidocker.manifests import Platform
    from minidocker.program import HostConfig
    from minidocker.reading import Read
    from minidocker.stage import BuildOptions


# %% Images that are not here
class Pull(Enum):
    """When a command fetches an image; the value is its word for ``--pull``."""

    MISSING = "missing"
    ALWAYS = "always"
    NEVER = "never"


# %% Images that are not here
class PullingEngine(StoreEngine):
    """A store that fetches images, and sends them."""

    def find_image(
        self, text: str, when: Pull = Pull.MISSING, platform: Platform | None = None
    ) -> str:
        """Return an image's id; make the base image when it is asked for first.

        One that is not here, or is for another ``platform``, is pulled if ``when``
        allows it.
        """
        if text not in (BASE, f"{BASE}:latest"):
            return self.found_or_pulled(text, when, platform)
        exact = self.images.names.exact
        if found := exact(text):
            return found
        with turn(f"{self.root}/base.lock"):
            return exact(text) or make_base_image(self, parse_reference(text))

    def found_or_pulled(self, text: str, when: Pull, platform: Platform | None) -> str:
        """Return the id of an image that is here, or is fetched."""
        if when is Pull.ALWAYS:
            return self.pull_for(parse_reference(text).tagged, platform)
        try:
            id = self.images.resolve(text)
            if platform:
                self.check_platform(id, text, platform)
            return id
        except NotFoundError as missing:
            if when is Pull.NEVER:
                raise
            return self.pull_missing(text, missing, platform)

    def check_platform(self, id: str, text: str, asked: Platform) -> None:
        """Raise NotFoundError for an image of another platform than is asked for."""
        from minidocker.manifests import parse_platform

        image = self.images.get(id)
        own = parse_platform(f"{image.os}/{image.architecture}")
        if (own.os, own.architecture) != (asked.os, asked.architecture):
            what = f"image {text} is for {own}, and {asked} was asked for"
            raise NotFoundError(what)

    def pull(
        self,
        reference: Reference,
        tell: Tell,
        platform: Platform | None = None,
        *,
        first: str = "",
    ) -> Pulled:
        """Bring an image; tell ``first`` once the registry answers."""
        from minidocker.exchange import Puller, client_for

        client = client_for(reference.registry)
        client.connect()
        if first:
            self.notice(first)
        with self.bringing():
            stores = self.images, self.layers
            puller = Puller(client, *stores, tell, platform, limit=self.room())
            found = puller.pull(reference.tagged)
        self.tell_of_transfer("pull", reference.tagged)
        return found

    def tell_of_transfer(self, action: str, reference: Reference) -> None:
        """Write down that an image has come from a registry, or gone to one."""
        name = reference.replace(tag=None, digest=None).familiar
        self.images.tell(action, reference.familiar, name)

    def push(self, reference: Reference, tell: Tell) -> Pushed:
        """Send an image to its registry."""
        from minidocker.exchange import Pusher, client_for

        client = client_for(reference.registry)
        with store_lock(self.root), self.driver.held():
            sent = Pusher(client, self.images, self.layers, tell).push(reference)
        self.tell_of_transfer("push", reference)
        return sent

    def pull_missing(
        self, text: str, missing: NotFoundError, platform: Platform | None
    ) -> str:
        """Bring an image that was asked for and is not here."""
        try:
            reference = parse_reference(text).tagged
        except UsageError:
            raise missing from None
        first = f"Unable to find image '{reference}' locally"
        try:
            return self.pull_for(reference, platform, first)
        except (RegistryError, NotFoundError) as why:
            line = f"{why.where}: {why.what}" if why.where else why.what
            what = f"{missing.what}, and it cannot be pulled: {line}"
            raise NotFoundError(what, hint=why.hint or missing.hint) from why

    def pull_for(
        self, reference: Reference, platform: Platform | None, first: str = ""
    ) -> str:
        """Bring an image for a command whose output is another's; return its id."""

        def tell(event: Event) -> None:
            if event.total is None:
                self.notice(f"{event.id}: {event.status}")

        found = self.pull(reference, tell, platform, first=first)
        self.notice(f"Digest: {found.digest}")
        self.notice(f"Status: {found.status}")
        return found.id


# %% Containers, and images made of them
class ContainerEngine(PullingEngine):
    """A store with containers in it."""

    def create(
        self,
        image: str,
        config: ContainerConfig,
        host: HostConfig | None = None,
        name: str = "",
        pull: Pull = Pull.MISSING,
        *,
        platform: Platform | None = None,
    ) -> Container:
        """Make a container of an image; ``config`` is the command line's part.

        ``platform`` is the image's; any where none is said.
        """
        from minidocker.blueprint import complete_config
        from minidocker.program import HostConfig

        id = self.find_image(image, pull, platform)
        whole = complete_config(self.images.get(id).config or ContainerConfig(), config)
        whole, host = whole.replace(image=image), host or HostConfig()
        own = any(not bind.startswith("/") for bind in host.binds)
        with store_lock(self.root):
            if own or whole.volumes or host.mounts or host.volumes_from:
                from minidocker.storing import create_with_volumes

                return create_with_volumes(self.containers, id, whole, host, name)
            return self.containers.create(id, whole, host, name)

    def commit(
        self,
        container: Container,
        reference: Reference | None = None,
        *,
        author: str = "",
        comment: str = "",
        changes: tuple[str, ...] = (),
    ) -> str:
        """Make an image of what a container has changed; return its id."""
        from minidocker.blueprint import complete_config

        config = self.changed(
            complete_config(container.config, ContainerConfig()), changes
        )
        with self.changing():
            self.images.claim(container.image)
            layer = self.copied(container)
            before = self.images.get(container.image)
            line = HistoryEntry(
                created_by=" ".join(container.config.cmd or ()),
                author=author,
                comment=comment,
                empty_layer=layer is None,
            )
            image = before.replace(
                author=author,
                config=config,
                container=container.id,
                container_config=container.config,
            )
            id = self.finish(image, line, layer, container.image, reference)
        from minidocker.containers import tell

        told = {"comment": comment, "imageID": id}
        told["imageRef"] = reference.tagged.familiar if reference else ""
        tell(self.containers, container, "commit", **told)
        return id

    def copied(self, container: Container) -> Layer | None:
        """Make a layer of what a container has changed.

        Raises NotFoundError where somebody removes it meanwhile: then its record goes
        first, and what was copied may lack files.
        """
        from minidocker.arrivals import copy_layer
        from minidocker.containers import no_such

        record = self.containers.path(container.id, "config.v2.json")
        try:
            layer = copy_layer(self.layers, container.id)
        except (FileNotFoundError, NotFoundError) as why:
            if os.path.exists(record):
                raise
            raise no_such(container.name) from why
        if not os.path.exists(record):
            raise no_such(container.name)
        return layer

    def diff(self, container: Container) -> Iterator[Change]:
        """Yield what a container changed over its image."""
        return self.layers.changes(container.id)

    def export(self, container: Container, put: Put) -> None:
        """Write the whole tree of a container as a tar."""
        from minidocker.archive import pack
        from minidocker.containers import tell

        with self.layers.rw_mounted(container.id, writable=False) as tree:
            pack(tree, put)
        tell(self.containers, container, "export")

    def changed(
        self, config: ContainerConfig, lines: tuple[str, ...]
    ) -> ContainerConfig:
        """Return a config changed by lines of a Dockerfile (``--change``)."""
        if not lines:
            return config
        from minidocker.steps import changed_config

        return changed_config(config, lines, self.layers)


# %% The engine
class Engine(ContainerEngine):
    """All that works on a store; methods have the names of Docker's commands."""

    def import_(
        self,
        read: Read,
        reference: Reference | None = None,
        *,
        source: str = "-",
        message: str = "",
        changes: tuple[str, ...] = (),
        platform: Platform | None = None,
    ) -> str:
        """Make an image with one layer, a tar as it comes; return its id."""
        from minidocker.manifests import host_platform

        config = self.changed(ContainerConfig(env=()), changes)
        runs_on = platform or host_platform()
        with self.bringing():
            layer = self.layers.add(read, limit=self.room())
            image = ImageConfig(
                architecture=runs_on.architecture,
                config=config,
                container_config=ContainerConfig(),
                extra={"variant": runs_on.variant} if runs_on.variant else None,
                os=runs_on.os,
            )
            line = HistoryEntry(comment=message or f"Imported from {source}")
            id = self.finish(image, line, layer, None, reference)
        self.images.tell("import", id)
        return id

    def build(
        self,
        dockerfile: bytes,
        context: SourceTree,
        options: BuildOptions,
        *,
        name: str = "Dockerfile",
        progress: Callable[[str], None] = lambda line: None,
        output: int = -1,
    ) -> str:
        """Build an image; return its id. ``progress`` gets Docker's lines.

        What commands print goes to the descriptor ``output``, or is ours.
        """
        from minidocker.build_network import BuildNetwork
        from minidocker.builder import Builder
        from minidocker.dockerfile import parse
        from minidocker.steps import ContainerRunner

        refuse_own_store(self.root, context)
        parsed = parse(dockerfile, name)
        self.make_base_if_needed(parsed.instructions)
        if options.pull is None:
            when = Pull.ALWAYS if options.pull_first else Pull.MISSING
            options = options.replace(
                pull=lambda name, on: self.find_image(name, when, on)
            )
        with (
            self.changing(),
            BuildNetwork(lambda: self.containers, options.hosts) as network,
        ):
            runner = ContainerRunner(self.batch.tmp, output, network, options)
            builder = Builder(self.images, self.layers, runner, progress)
            return builder.build(parsed, context, options)

    def make_base_if_needed(self, instructions: tuple[Instruction, ...]) -> None:
        """Make the base image if a FROM names it."""
        for it in instructions:
            if it.word.value == "FROM" and it.args[0].startswith(BASE):
                self.find_image(it.args[0])


# %% The engine
def refuse_own_store(root: str, context: SourceTree) -> None:
    """Raise UsageError for a context that the store ``root`` is a part of.

    A copy of it would hold the copy, and that copy another.
    """
    real = os.path.realpath
    inside = os.path.relpath(real(root), real(context.root))
    if inside.split("/")[0] == ".." or context.ignores(inside):
        return
    hint = f'a line "{inside}" in .dockerignore, or another --root'
    raise UsageError("the store is in the context", where=context.root, hint=hint)
