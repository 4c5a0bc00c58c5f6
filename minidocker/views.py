# From book/622-views.md. Edit there and tangle, or here and tangle --back.

# %% Views: what is told of an image and a container
"""Turn images and containers into the rows of Docker's tables and into documents."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from minidocker.containers import Container, State, Status
from minidocker.drivers import Directory
from minidocker.durable import read_json
from minidocker.engine import Engine
from minidocker.images import HistoryRow, size_of
from minidocker.network_views import network_settings, ports_words
from minidocker.oci import GO_ESCAPES, ContainerConfig, chain_id, short_id
from minidocker.overlayfs import Overlay
from minidocker.storing import points_of
from minidocker.tables import (
    View,
    ago,
    cut,
    human_size,
    human_span,
    label_in,
    local_time,
    rfc_time,
    seconds_of,
    view_of,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The history of an image
def shown_id(digest: str, *, whole: bool) -> str:
    """Return an id whole, or its first twelve digits."""
    return digest if whole else short_id(digest)


def history_view(
    rows: list[HistoryRow], *, whole: bool, human: bool
) -> list[dict[str, Any]]:
    """Return Docker's fields for the lines of `history`."""
    found = []
    for row in rows:
        words = row.created_by.replace("\t", " ")
        created = rfc_time(int(seconds_of(row.created)))
        found.append(
            {
                "Comment": row.comment,
                "CreatedAt": created,
                "CreatedBy": words if whole else cut(words, 45),
                "CreatedSince": ago(row.created) if human else created,
                "ID": shown_id(row.id, whole=whole) if row.id else "<missing>",
                "Size": human_size(row.size) if human else str(row.size),
            }
        )
    return found


# %% The history of an image
HISTORY_HEADS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}


def history_table(*, human: bool) -> View:
    """Return the view of `history`, with ages or with times."""
    key = "CreatedSince" if human else "CreatedAt"
    return view_of(HISTORY_HEADS, ("ID", key, "CreatedBy", "Size", "Comment"))


# %% Containers
def status_words(state: State, now: float | None = None) -> str:
    """Return a container's state as `ps` tells it.

    >>> status_words(State(Status.RUNNING, started="1970-01-01T00:00:01Z"), 4)
    'Up 3 seconds'
    """
    now = time.time() if now is None else now
    if state.restarting:
        return f"Restarting ({state.exit_code}) {ago(state.finished, now)}"
    if state.status is Status.RUNNING:
        up = f"Up {human_span(now - seconds_of(state.started))}"
        if state.paused:
            return f"{up} (Paused)"
        health = "health: starting" if state.health == "starting" else state.health
        return f"{up} ({health})" if health else up
    if state.status is Status.EXITED:
        return f"Exited ({state.exit_code}) {ago(state.finished, now)}"
    return "Created"


def state_word(state: State) -> str:
    """Return a container's state in one word."""
    if state.restarting:
        return "restarting"
    return "paused" if state.paused else state.status.value


def command_words(argv: Sequence[str], width: int | None) -> str:
    """Return a command as `ps` quotes it: words with spaces in it, then the whole.

    >>> print(command_words(["sh", "-c", "echo out; echo err"], 20))
    "sh -c 'echo out; ec…"
    """
    words = [f"'{word}'" if " " in word else word for word in argv[1:]]
    text = " ".join([*argv[:1], *words])
    return json.dumps(cut(text, width) if width else text, ensure_ascii=False)


# %% Containers
def shown_mount(text: str, *, whole: bool) -> str:
    """Return a mount as `ps` lists it."""
    return text if whole else cut(text, 15)


def container_row(
    engine: Engine, container: Container, state: State, *, whole: bool, size: bool
) -> dict[str, Any]:
    """Return Docker's fields for a container."""
    labels = container.config.labels or {}
    running, points = state.status is Status.RUNNING, points_of(container)
    network = network_settings(engine.containers, container, running=running)
    row = {
        "Command": command_words(container.argv, None if whole else 20),
        "CreatedAt": local_time(seconds_of(container.created)),
        "ID": shown_id(container.id, whole=whole),
        "Image": container.config.image or short_id(container.image),
        "Label": label_in(labels),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "LocalVolumes": str(sum(point.kind == "volume" for point in points)),
        "Mounts": ",".join(
            shown_mount(point.name or point.source, whole=whole)
            for point in points
            if point.kind != "tmpfs"
        ),
        "Names": container.name,
        "Networks": ",".join(network["Networks"]),
        "Ports": ports_words(network["Ports"]),
        "RunningFor": ago(container.created),
        "Size": "0B",
        "State": state_word(state),
        "Status": status_words(state),
    }
    if size:
        own, whole_size = sizes_of(engine, container).values()
        row["Size"] = f"{human_size(own)} (virtual {human_size(whole_size)})"
    return row


PS_HEADS = {
    "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND",
    "CreatedAt": "CREATED AT", "RunningFor": "CREATED", "Ports": "PORTS",
    "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Names": "NAMES",
    "Labels": "LABELS", "LocalVolumes": "LOCAL VOLUMES", "Mounts": "MOUNTS",
    "Networks": "NETWORKS",
}  # fmt: skip
PS_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


def ps_view(*, size: bool) -> View:
    """Return the view of `ps`, with the column SIZE if asked for."""
    return view_of(PS_HEADS, (*PS_COLUMNS, "Size") if size else PS_COLUMNS)


# %% inspect
def graph_driver(engine: Engine, cache_id: str) -> dict[str, Any]:
    """Return where the driver keeps a layer, as `inspect` shows it."""
    view = engine.driver.view(cache_id, writable=False)
    if isinstance(view, Directory):
        data = {"UpperDir": view.path}
    elif not isinstance(view, Overlay):
        data = view.description()
    else:
        upper, *lowers = view.lowers
        data = {
            "LowerDir": ":".join(lowers),
            "MergedDir": engine.driver.target(cache_id),
            "UpperDir": upper,
            "WorkDir": upper.removesuffix("diff") + "work",
        }
    return {"Data": data, "Name": engine.driver.name}


def inspect_image(engine: Engine, id: str) -> dict[str, Any]:
    """Return what `inspect` tells of an image."""
    image, names = engine.images.get(id), engine.images.tags_of(id)
    size = size_of(engine.images, engine.layers, id)
    layers = image.diff_ids
    cache_id = engine.layers.get(chain_id(layers)).cache_id if layers else ""
    return {
        "Id": id,
        "RepoTags": names,
        "RepoDigests": engine.images.digests_of(id),
        "Parent": engine.images.parent(id) or "",
        "Comment": image.comment,
        "Created": image.created or "",
        "Container": image.container,
        "ContainerConfig": (image.container_config or ContainerConfig()).to_dict(),
        "DockerVersion": image.docker_version,
        "Author": image.author,
        "Config": (image.config or ContainerConfig()).to_dict(),
        "Architecture": image.architecture,
        "Os": image.os,
        "Size": size,
        "VirtualSize": size,
        "GraphDriver": graph_driver(engine, cache_id) if cache_id else {},
        "RootFS": {"Type": "layers", "Layers": list(layers)},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    }


# %% inspect
HOST_DEFAULTS: dict[str, Any] = {
    "ContainerIDFile": "", "VolumeDriver": "", "Cgroup": "", "Runtime": "minidocker",
    "ConsoleSize": [0, 0], "Isolation": "", "CgroupParent": "",
    "BlkioWeightDevice": [], "BlkioDeviceReadBps": None, "BlkioDeviceWriteBps": None,
    "BlkioDeviceReadIOps": None, "BlkioDeviceWriteIOps": None, "CpuPeriod": 0,
    "CpuQuota": 0, "CpuRealtimePeriod": 0, "CpuRealtimeRuntime": 0,
    "DeviceCgroupRules": None, "DeviceRequests": None, "KernelMemory": 0,
    "KernelMemoryTCP": 0, "MemorySwappiness": None, "OomKillDisable": False,
    "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0, "IOMaximumBandwidth": 0,
}  # fmt: skip
NEVER = "0001-01-01T00:00:00Z"


def state_fields(state: State) -> dict[str, Any]:
    """Return Docker's fields for a container's state.

    One that could not be started has times of the attempt, which are not told.
    """
    ran = state.status is not Status.CREATED
    return {
        "Status": state_word(state),
        "Running": state.status is Status.RUNNING,
        "Paused": state.paused,
        "Restarting": state.restarting,
        "OOMKilled": state.oom_killed,
        "Dead": False,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": (state.started if ran else "") or NEVER,
        "FinishedAt": (state.finished if ran else "") or NEVER,
    }


def health_fields(place: str, state: State) -> dict[str, Any]:
    """Return how a container is, if anybody asks it; who has ended is not well."""
    if not state.health:
        return {}
    try:
        found = read_json(f"{place}/health.json")
    except (FileNotFoundError, ValueError):
        return {}
    ended = state.status is not Status.RUNNING
    return {"Health": found | ({"Status": "unhealthy"} if ended else {})}


def host_fields(container: Container) -> dict[str, Any]:
    """Return all of Docker's fields for what holds on this host."""
    links = (text.split(":") for text in container.host.links)
    told = [f"/{other}:/{container.name}/{alias}" for other, alias in links]
    return HOST_DEFAULTS | container.host.to_dict() | {"Links": told or None}


def inspect_container(engine: Engine, container: Container) -> dict[str, Any]:
    """Return what `inspect` tells of a container."""
    state = engine.containers.state(container.id)
    place = engine.containers.path(container.id)
    return {
        "Id": container.id,
        "Created": container.created,
        "Path": container.argv[0],
        "Args": list(container.argv[1:]),
        "State": state_fields(state) | health_fields(place, state),
        "Image": container.image,
        "ResolvConfPath": f"{place}/resolv.conf",
        "HostnamePath": f"{place}/hostname",
        "HostsPath": f"{place}/hosts",
        "LogPath": f"{place}/{container.id}-json.log",
        "Name": f"/{container.name}",
        "RestartCount": state.restarts,
        "Driver": engine.driver.name,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": None,
        "HostConfig": host_fields(container),
        "GraphDriver": graph_driver(engine, engine.layers.mount_id(container.id)),
        "Mounts": [point.to_dict() for point in points_of(container)],
        "Config": container.config.to_dict(),
        "NetworkSettings": network_settings(
            engine.containers, container, running=state.status is Status.RUNNING
        ),
    }


def sizes_of(engine: Engine, container: Container) -> dict[str, int]:
    """Return the bytes that a container has changed, and those of its whole tree."""
    own = engine.layers.rw_size(container.id)
    below = size_of(engine.images, engine.layers, container.image)
    return {"SizeRw": own, "SizeRootFs": own + below}


def pretty(found: Any) -> str:
    """Return JSON as `inspect` prints it."""
    text = json.dumps(found, indent=4, ensure_ascii=False)
    for letter in "<>&":
        text = text.replace(letter, GO_ESCAPES[letter])
    return text
