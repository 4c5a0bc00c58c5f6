# From book/436-containers.md. Edit there and tangle, or here and tangle --back.

# %% Containers: what remains between two commands
"""Containers on disk: what one command leaves for the next."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress

from minidocker.calls import SysError, signal
from minidocker.cgroups import is_version_2, remove_group
from minidocker.durable import (
    event_fields,
    happened,
    is_written,
    looking,
    marked,
    read_json,
    store_lock,
    write_whole,
)
from minidocker.errors import (
    ConflictError,
    IntegrityError,
    NotFoundError,
    RuntimeFault,
    WordFault,
)
from minidocker.linux import open_process, pidfd_send_signal
from minidocker.oci import ContainerConfig, chain_id, config_from, is_hex, matches
from minidocker.program import PLAIN_HOST, HostConfig, Network, host_config
from minidocker.records import Enum, Record, json_text
from minidocker.trees import remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.images import ImageStore
    from minidocker.layers import LayerStore
    from minidocker.volumes import MountPoint


# %% The nouns
class Container(Record):
    """A container: 64 hexadecimal digits, a name, and what it was made with.

    ``created`` is RFC 3339 in UTC; ``image`` an image id.
    """

    id: str
    name: str
    image: str
    created: str
    config: ContainerConfig
    host: HostConfig = PLAIN_HOST
    mounts: tuple[MountPoint, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The program and its arguments: entrypoint, then command."""
        return (self.config.entrypoint or ()) + (self.config.cmd or ())


# %% The nouns
class Status(Enum):
    """What a container is doing, in the words of `ps`."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class State(Record):
    """The state of a container as its supervisor last wrote it.

    ``pid`` and ``start_time`` (clock ticks since boot) name the first process.
    ``paused`` is not written: a file ``paused`` says so as long as it is there.
    ``restarts`` counts those that the restart policy made; one that waits for the next
    is RUNNING, ``restarting``, and has no process.
    """

    status: Status = Status.CREATED
    pid: int = 0
    start_time: int = 0
    exit_code: int = 0
    started: str = ""
    finished: str = ""
    error: str = ""
    oom_killed: bool = False
    restarts: int = 0
    restarting: bool = False
    health: str = ""
    paused: bool = False


# %% The nouns
def timestamp(nanoseconds: int | None = None) -> str:
    """Return a time since 1970 as RFC 3339 in UTC; without an argument, now.

    >>> timestamp(1_500_000_000_120_000_000)
    '2017-07-14T02:40:00.12Z'
    """
    whole, rest = divmod(nanoseconds or time.time_ns(), 1_000_000_000)
    fraction = f".{rest:09}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + fraction + "Z"


# %% Names
ADJECTIVES = """
able amber brisk calm candid civil clever cosy deft eager early fair fond frank
gentle glad hardy honest humble jolly keen kind lively loyal lucid mellow merry mild
neat nimble patient plain polite proud quick quiet ready serene sharp silent sober
solid steady sunny swift tidy tranquil vivid warm wise
"""
SURNAMES = """
allman bach bourne cerf corbato cox dijkstra elz fagin floyd gosper hamilton hopper
irons johnson joy karels kernighan kildall knuth lesk lions liskov lovelace mashey
mckusick mclean mcilroy morris naur okajima ossanna pike plauger postel quarterman
raymond ritchie sammet shannon tanenbaum thompson torvalds turing ullman viro
weinberger wirth wright zadok
"""
NAME = "[a-zA-Z0-9][a-zA-Z0-9_.-]+"


def name_from(numbers: bytes) -> str:
    """Return the name that two random bytes choose.

    >>> name_from(b"\\x00\\x07")
    'able_elz'
    """
    lists = (ADJECTIVES.split(), SURNAMES.split())
    pairs = zip(lists, numbers, strict=True)
    return "_".join(words[number % len(words)] for words, number in pairs)


def check_name(name: str) -> str:
    """Return ``name``, or raise WordFault when Docker would not take it."""
    if not matches(NAME, name):
        raise WordFault(f"invalid container name ({name}), only {NAME} are allowed")
    return name


# %% Is it running? Ask for the lock
def lock_exclusive(path: str, what: str, *, make: bool = True) -> int:
    """Lock a file for as long as the returned descriptor is open.

    Somebody who only looks holds a shared lock for some microseconds, so we try
    for a tenth of a second before ConflictError.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    handle = os.open(path, flags, 0o600)
    for _ in range(50):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.002)
        else:
            return handle
    os.close(handle)
    raise ConflictError(f"container {what} is running")


# %% Is it running? Ask for the lock
def read_state(path: str) -> State:
    """Read a state file; a container without one was never started.

    One that a power cut tore is that of a container that ran, and runs no more.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        return State()
    except ValueError:
        return State(Status.EXITED, exit_code=255, error="how it ended was lost")
    return State(**found | {"status": Status(found["status"])})


def write_state(path: str, state: State) -> None:
    """Write a state file whole."""
    fields = {n: getattr(state, n) for n in State.__match_args__ if n != "paused"}
    write_whole(path, json_text(fields | {"status": state.status.value}))


def signal_process(state: State, number: int) -> None:
    """Send a signal to the process that a state names, and to no other.

    Silent when that process is gone.
    """
    try:
        handle = open_process(state.pid, state.start_time)
    except OSError:
        return
    try:
        pidfd_send_signal(handle, number)
    except SysError as why:
        if why.errno != errno.ESRCH:
            raise
    finally:
        os.close(handle)


# %% The store
class ContainerRecords:
    """The containers below ``root``, to be found and asked: ``containers/ID/``.

    ``names/NAME`` is a symbolic link to an id. To make one is atomic and fails when it
    is there, so two containers never have one name, whoever is quicker.
    """

    def __init__(self, root: str) -> None:
        self.root, self.names = f"{root}/containers", f"{root}/names"

    def path(self, id: str, name: str = "") -> str:
        """Return the path of a container's directory, or of a file in it."""
        return f"{self.root}/{id}/{name}" if name else f"{self.root}/{id}"

    def get(self, id: str) -> Container:
        """Return a container by its whole id. Raises NotFoundError, IntegrityError."""
        try:
            found = read_json(self.path(id, "config.v2.json"))
            host = host_config(read_json(self.path(id, "hostconfig.json")))
        except FileNotFoundError as why:
            raise no_such(id) from why
        except ValueError as why:
            what = f"the record of this container is damaged: {why}"
            raise IntegrityError(what, where=self.path(id)) from why
        config = config_from(found["Config"])
        name, created = found["Name"].lstrip("/"), found["Created"]
        points: tuple[MountPoint, ...] = ()
        if mounts := found.get("MountPoints"):  # few containers have any
            from minidocker.volumes import points_from

            points = points_from(mounts)
        return Container(id, name, found["Image"], created, config, host, points)

    def ids(self) -> list[str]:
        """Return the ids of the containers that are there whole."""
        with suppress(FileNotFoundError), os.scandir(self.root) as entries:
            names = [e.name for e in entries]
            return [n for n in names if os.path.exists(self.path(n, "config.v2.json"))]
        return []

    def list(self) -> list[tuple[Container, State]]:
        """Return every container and its state, the newest first.

        A damaged one is passed over; `system check` tells of it.
        """
        found = []
        for id in self.ids():
            with suppress(NotFoundError, IntegrityError):  # removed meanwhile
                found.append((self.get(id), self.state(id)))
        return sorted(found, key=lambda pair: pair[0].created, reverse=True)

    def resolve(self, text: str) -> Container:
        """Find a container by its id, its name, or the only id that begins so."""
        if len(text) == 64 and is_hex(text) and os.path.exists(self.path(text)):
            return self.get(text)
        with suppress(OSError, NotFoundError):
            return self.get(os.readlink(f"{self.names}/{text.removeprefix('/')}"))
        begins = [id for id in self.ids() if text and id.startswith(text)]
        if len(begins) > 1:
            raise ConflictError(f'more than one container begins with "{text}"')
        return self.get(begins[0] if begins else text)

    def state(self, id: str) -> State:
        """Return what a container is doing; put right what a dead supervisor left."""
        file = self.path(id, "state.json")
        with looking(self.path(id, "lock")) as taken:
            found = read_state(file)
            if taken or found.status is not Status.RUNNING:
                paused = taken and os.path.exists(self.path(id, "paused"))
                return found.replace(paused=True) if paused else found
            signal_process(found, signal.SIGKILL)
            remove_group(id)
            dead = found.replace(status=Status.EXITED, exit_code=137, pid=0)
            dead = dead.replace(restarting=False, finished=timestamp())
            with suppress(FileNotFoundError):
                write_state(file, dead)
            return dead

    def has_group(self, container: Container) -> bool:
        """Say whether a container can have groups: by its limits, or made later on."""
        later = os.path.exists(self.path(container.id, "grouped"))
        return container.host.limited or later or is_version_2()

    def lock(self, container: Container) -> int:
        """Take a container's lock, until the descriptor is closed.

        Raises NotFoundError where somebody was quicker and has removed the container.
        """
        path = self.path(container.id, "lock")
        try:
            handle = lock_exclusive(path, container.name, make=False)
        except FileNotFoundError as why:
            raise no_such(container.name) from why
        if not is_written(self.path(container.id, "config.v2.json")):
            os.close(handle)
            raise no_such(container.name)
        return handle


# %% The store
class ContainerStore(ContainerRecords):
    """The containers, to be made and removed: their layers are among ``layers``."""

    def __init__(self, root: str, layers: LayerStore, images: ImageStore) -> None:
        super().__init__(root)
        self.layers, self.images = layers, images

    def create(
        self,
        image: str,
        config: ContainerConfig,
        host: HostConfig = PLAIN_HOST,
        name: str = "",
        mounts: tuple[MountPoint, ...] = (),
    ) -> Container:
        """Make a container of an image id; ``config`` is complete (see ``blueprint``).

        Raises ConflictError when the name is taken, RuntimeFault without a command;
        then nothing is left.
        """
        if not (config.entrypoint or config.cmd):
            raise RuntimeFault("no command specified", hint="the image names none")
        layers = self.images.get(image).diff_ids
        parent = chain_id(layers) if layers else None
        return new_container(
            self, image, parent, config, host, name=name, mounts=mounts
        )


# %% The store
def no_such(text: str) -> NotFoundError:
    """Phrase that there is no container of a name or id."""
    hint = "`minidocker ps -a` lists them"
    return NotFoundError(f"no such container: {text}", hint=hint)


def claim_name(names: str, name: str, id: str) -> None:
    """Make the link NAME -> ID, or raise ConflictError naming its owner."""
    os.makedirs(names, 0o700, exist_ok=True)
    try:
        os.symlink(id, f"{names}/{name}")
    except FileExistsError as why:
        owner = os.readlink(f"{names}/{name}")
        if not os.path.exists(f"{names}/../containers/{owner}"):  # a crash left it
            os.unlink(f"{names}/{name}")
            claim_name(names, name, id)
            return
        raise ConflictError(
            f'the container name "/{name}" is already in use by container "{owner}"',
            hint="remove or rename that container to use the name again",
        ) from why


def claim_any_name(names: str, id: str) -> str:
    """Claim a name that is free, with a digit when two words do not suffice."""
    for attempt in range(1000):
        name = name_from(os.urandom(2)) + (str(attempt % 10) if attempt > 5 else "")
        with suppress(ConflictError):
            claim_name(names, name, id)
            return name
    raise ConflictError("no container name is free", hint="give one with --name")


# %% The store
def hostname_for(store: ContainerStore, host: HostConfig, id: str) -> str:
    """Return the host name of a container that none was given.

    Who shares the network of the host, or of a container, shares its name.
    """
    if host.network is Network.HOST:
        return os.uname().nodename
    if host.network is Network.CONTAINER:
        return store.get(host.network_of).config.hostname
    return id[:12]


def new_container(
    store: ContainerStore,
    image: str,
    parent: str | None,
    config: ContainerConfig,
    host: HostConfig,
    *,
    name: str,
    mounts: tuple[MountPoint, ...] = (),
) -> Container:
    """Make the directory, claim the name, make the layer, write the files."""
    id = os.urandom(32).hex()
    config = config.replace(hostname=config.hostname or hostname_for(store, host, id))
    name = name and check_name(name)
    with marked(store.layers.root):
        os.makedirs(store.path(id, "rootfs"), 0o700)
        lock = lock_exclusive(store.path(id, "lock"), id)
        try:
            if name:
                claim_name(store.names, name, id)
            else:
                name = claim_any_name(store.names, id)
            store.layers.create_rw(id, parent)
            container = Container(id, name, image, timestamp(), config, host, mounts)
            write_container(store, container)
            tell(store, container, "create")
        except BaseException:
            discard(store, id)
            raise
        finally:
            os.close(lock)
    return container


def write_container(store: ContainerStore, container: Container) -> None:
    """Write a container's files; config.v2.json, which makes it visible, last.

    All of it, its layer too, is on the disk then, but for one that removes itself: a
    power cut is its end, and ``is_torn`` knows what is left.
    """
    from minidocker.etc_files import network_files, write_network_files

    place, host = store.path(container.id), container.host
    write_network_files(place, network_files(container.config, host))
    write_whole(f"{place}/hostconfig.json", json_text(host.to_dict()))
    text = json_text(description(container, place))
    if host.auto_remove:
        write_whole(f"{place}/config.v2.json", text)
        return
    batch = store.layers.batch
    batch.stage(f"{place}/config.v2.json", text.encode("utf-8", "surrogateescape"))
    batch.publish()


def description(container: Container, place: str) -> dict[str, Any]:
    """Return what config.v2.json holds, under Docker's names."""
    return {
        "ID": container.id,
        "Created": container.created,
        "Path": container.argv[0],
        "Args": container.argv[1:],
        "Config": container.config.to_dict(),
        "Image": container.image,
        "Name": f"/{container.name}",
        "AutoRemove": container.host.auto_remove,
        "LogPath": f"{place}/{container.id}-json.log",
        "HostnamePath": f"{place}/hostname",
        "HostsPath": f"{place}/hosts",
        "ResolvConfPath": f"{place}/resolv.conf",
        "MountPoints": [
            {name: getattr(point, name) for name in point.__match_args__}
            for point in container.mounts
        ],
    }


# %% The store
def discard(store: ContainerStore, id: str, name: str = "") -> None:
    """Remove what there is of a container that does not run; idempotent.

    It becomes invisible first, and its directory goes last: in between a crash
    leaves what ``sweep`` recognises. ``name`` saves to look for its names.
    """
    with suppress(FileNotFoundError):
        os.unlink(store.path(id, "config.v2.json"))
    store.layers.remove_rw(id)
    for link in [name] if name else names_of(store, id):
        with suppress(FileNotFoundError):
            if os.readlink(f"{store.names}/{link}") == id:
                os.unlink(f"{store.names}/{link}")
    remove_path(store.path(id))


def throw_away(store: ContainerStore, id: str, name: str = "") -> None:
    """Do what ``discard`` does; what a crash leaves of the container is swept."""
    root = store.layers.root
    with store_lock(root), marked(root):
        discard(store, id, name)


def names_of(store: ContainerStore, id: str) -> list[str]:
    """Return the names that point at an id."""
    with suppress(OSError):
        names = os.listdir(store.names)
        return [n for n in names if os.readlink(f"{store.names}/{n}") == id]
    return []


# %% What happened
def tell(
    store: ContainerRecords, container: Container, action: str, **more: str
) -> None:
    """Write down that something has happened to a container."""
    happened(os.path.dirname(store.root), event_of(container, action, **more))


def event_of(container: Container, action: str, **more: str) -> dict[str, Any]:
    """Return Docker's fields of what happens to a container now."""
    image = container.config.image or container.image
    attributes = {**(container.config.labels or {}), "image": image} | more
    attributes["name"] = container.name
    fields = event_fields("container", action, container.id, attributes)
    return {"status": action, "id": container.id, "from": image} | fields
