# From book/480-oci-state.md. Edit there and tangle, or here and tangle --back.

# %% State: what is kept between two commands
"""The containers of an OCI runtime: what is kept of each, and in which state it is."""

from __future__ import annotations

import os
from contextlib import suppress

from minidocker.cgroups import Group
from minidocker.documents import Part
from minidocker.durable import write_whole
from minidocker.errors import ConflictError, NotFoundError, UsageError
from minidocker.freezer import is_frozen
from minidocker.hooks import OCI_VERSION, annotations_of
from minidocker.linux import start_time
from minidocker.records import Enum, Record, json_text, parse_json


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The state machine
class Phase(Enum):
    """Where a container stands; the word is the specification's, or runc's."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


# %% What is kept
class OciContainer(Record):
    """A container of a runtime, as its state.json says.

    ``home`` is its directory, below the runtime's root. ``pid`` is 0 before the clone,
    ``created`` in nanoseconds since 1970. ``config`` is the JSON of the bundle as it
    was at ``create``.
    """

    id: str
    home: str
    bundle: str
    rootfs: str
    created: int
    group: Group
    config: str
    pid: int = 0
    start_time: int = 0

    @property
    def fifo(self) -> str:
        """Where the first process waits; removed by ``start``."""
        return f"{self.home}/exec.fifo"

    @property
    def document(self) -> Part:
        """The bundle's config.json."""
        return Part(parse_json(self.config))


# %% What is kept
LETTERS = frozenset("_+-.")  # and letters and digits


def check_id(id: str) -> str:
    """Return an id that can be the name of a directory, or raise UsageError."""
    known = all(c in LETTERS or (c.isascii() and c.isalnum()) for c in id)
    if not id or not known or id in (".", ".."):
        raise UsageError("invalid container id format")
    return id


def save(container: OciContainer) -> None:
    """Write a container's state.json, whole."""
    found = {name: getattr(container, name) for name in KEPT_FIELDS}
    group = {"version": container.group.version, "path": container.group.id}
    found |= {"group": {**group, "places": container.group.places}}
    write_whole(f"{container.home}/state.json", json_text(found))


KEPT_FIELDS = (
    "id", "bundle", "rootfs", "created", "config", "pid", "start_time",
)  # fmt: skip


# %% What is kept
def load(root: str, id: str) -> OciContainer:
    """Return a container. Raises NotFoundError; UsageError for what is no id."""
    home = f"{root}/{check_id(id)}"
    try:
        with open(f"{home}/state.json", encoding="utf-8") as file:
            found = parse_json(file.read())
    except OSError as why:
        raise NotFoundError("container does not exist") from why
    group = found.pop("group")
    places = tuple((name, place) for name, place in group["places"])
    return OciContainer(
        home=home, group=Group(group["path"], group["version"], places), **found
    )


def new_home(root: str, id: str) -> str:
    """Make a container's directory; ConflictError where there is one."""
    os.makedirs(root, 0o711, exist_ok=True)
    home = f"{root}/{check_id(id)}"
    try:
        os.mkdir(home, 0o711)
    except FileExistsError as why:
        raise ConflictError("container with given ID already exists") from why
    return home


def remove_home(container: OciContainer) -> None:
    """Remove what is kept of a container; idempotent."""
    with suppress(FileNotFoundError):
        for name in os.listdir(container.home):
            os.unlink(f"{container.home}/{name}")
        os.rmdir(container.home)


def every(root: str) -> list[OciContainer]:
    """Return all containers of a root, sorted by id."""
    try:
        ids = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    return [load(root, id) for id in ids if os.path.exists(f"{root}/{id}/state.json")]


# %% What is asked
def phase_of(container: OciContainer) -> Phase:
    """Ask the kernel where a container stands."""
    if not container.pid:
        return Phase.CREATING
    born = start_time(container.pid)
    if not born or born != container.start_time:
        return Phase.STOPPED
    if is_frozen(container.group):
        return Phase.PAUSED
    return Phase.CREATED if os.path.exists(container.fifo) else Phase.RUNNING


def state_of(container: OciContainer) -> dict[str, Any]:
    """Return what ``state`` prints: the specification's fields, and runc's three."""
    from minidocker.containers import timestamp

    phase = phase_of(container)
    alive = phase not in (Phase.STOPPED, Phase.CREATING)
    found: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "id": container.id,
        "pid": container.pid if alive else 0,
        "status": phase.value,
        "bundle": container.bundle,
        "rootfs": container.rootfs,
        "created": timestamp(container.created),
    }
    if annotations := annotations_of(container.document):
        found["annotations"] = annotations
    return {**found, "owner": ""}
