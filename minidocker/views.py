# From book/57-views.md. Edit there and tangle, or here and tangle --back.

# %% Views: what people and scripts read
"""Turn images and containers into Docker's tables, JSON rows and inspect documents."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence

from minidocker.containers import Container, State, Status
from minidocker.drivers import Directory
from minidocker.engine import Engine
from minidocker.errors import UsageError
from minidocker.images import HistoryRow, size_of
from minidocker.oci import ContainerConfig, chain_id, go_json, short_id
from minidocker.overlayfs import Overlay
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Sizes and ages
UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def human_size(size: float) -> str:
    """Return bytes with a decimal unit and three digits.

    >>> human_size(0), human_size(8866), human_size(1_993_028)
    ('0B', '8.87kB', '1.99MB')
    """
    unit = 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g}{UNITS[unit]}"


SPANS = (
    (1, 1, "Less than a second"), (2, 1, "1 second"), (60, 1, "{} seconds"),
    (120, 60, "About a minute"), (3600, 60, "{} minutes"),
    (7200, 3600, "About an hour"), (48 * 3600, 3600, "{} hours"),
    (14 * 86400, 86400, "{} days"), (60 * 86400, 7 * 86400, "{} weeks"),
    (730 * 86400, 30 * 86400, "{} months"),
)  # fmt: skip


def human_span(seconds: float) -> str:
    """Return a duration in Docker's words.

    >>> human_span(0.3), human_span(75), human_span(90_000), human_span(3e6)
    ('Less than a second', 'About a minute', '25 hours', '4 weeks')
    """
    if seconds >= 3600:
        seconds += 1800  # hours are rounded, all else is cut
    for end, unit, words in SPANS:
        if seconds < end:
            return words.format(int(seconds / unit))
    return f"{int(seconds / (365 * 86400))} years"


# %% Sizes and ages
def seconds_of(created: str) -> float:
    """Return an RFC 3339 time in UTC as seconds since 1970; 0 for none.

    >>> seconds_of("1970-01-01T00:01:00.5Z")
    60.5
    """
    import calendar

    found = re.match(r"(\d+-\d+-\d+T\d+:\d+:\d+)(\.\d+)?", created or "")
    if not found:
        return 0.0
    whole = calendar.timegm(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S"))
    return whole + float(found[2] or 0)


def ago(created: str, now: float | None = None) -> str:
    """Return how long ago a time was, in Docker's words."""
    moment = time.time() if now is None else now
    return f"{human_span(moment - seconds_of(created))} ago"


def local_time(created: str) -> str:
    """Return a time as Docker's ``CreatedAt`` has it."""
    moment = time.localtime(seconds_of(created))
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", moment)


def cut(text: str, width: int) -> str:
    """Cut a text to ``width`` characters, the last one an ellipsis.

    >>> cut("/bin/sh -c true", 8)
    '/bin/sh…'
    """
    return text if len(text) <= width else text[: width - 1] + "…"


# %% Tables
def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows in columns under their heads.

    >>> print(table(("NAME", "SIZE"), [("a", "0B")]))
    NAME      SIZE
    a         0B
    """
    lines = [list(heads), *(list(row) for row in rows)]
    columns = list(zip(*lines, strict=True))[:-1]
    widths = [max(10, max(map(len, column)) + 3) for column in columns]
    return "\n".join(
        "".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        + line[-1]
        for line in lines
    )


# %% Tables
HOLE = re.compile(r"\{\{\s*(json\s+)?((?:\.\w*)+)\s*\}\}")
ESCAPES = {r"\t": "\t", r"\n": "\n"}


def field(row: Any, path: str) -> Any:
    """Return what ``.A.B`` means in a row. Raises UsageError when there is none."""
    for name in path.strip(".").split("."):
        if not name:
            continue
        if isinstance(row, Mapping) and name not in row and name in OMITTED:
            return OMITTED[name]
        if not isinstance(row, Mapping) or name not in row:
            known = ", ".join(row) if isinstance(row, Mapping) else "none"
            raise UsageError(
                f'no field "{name}" in the format', hint=f"fields: {known}"
            )
        row = row[name]
    return row


EMPTY_MAPS = ("ExposedPorts", "Labels", "Volumes")
OMITTED = {"ExposedPorts": None, "Shell": None, "StopSignal": ""}


def go_text(value: Any, name: str = "") -> str:
    """Return a value as Go's templates print it; ``name`` tells nil maps from lists.

    >>> go_text(["a", 1, True]), go_text({"k": "v"}), go_text(None, "Labels")
    ('[a 1 true]', 'map[k:v]', 'map[]')
    """
    if value is None:
        return "map[]" if name in EMPTY_MAPS else "[]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(go_text, value))}]"
    if isinstance(value, Mapping):
        pairs = ((key, value[key]) for key in sorted(value))
        # the values of a set in Go are structs without fields
        texts = [f"{k}:{'{}' if v == {} else go_text(v)}" for k, v in pairs]
        return f"map[{' '.join(texts)}]"
    return str(value)


def fill(template: str, row: Mapping[str, Any]) -> str:
    r"""Fill a template with the fields of a row.

    >>> fill("{{.ID}}\t{{json .State}}", {"ID": "a1", "State": {"Pid": 7}})
    'a1\t{"Pid":7}'
    """
    for written, meant in ESCAPES.items():
        template = template.replace(written, meant)

    def one(found: re.Match[str]) -> str:
        value = field(row, found[2])
        if found[1]:
            return go_json(value).decode()
        return go_text(value, found[2].rpartition(".")[2])

    text = HOLE.sub(one, template)
    if "{{" in text:
        raise UsageError(
            f'cannot read the format "{template}"', hint="{{.Field}} or json"
        )
    return text


class View(Record):
    """How a list is shown: heads, the columns of a row, and its fields for scripts."""

    heads: tuple[str, ...]
    columns: tuple[str, ...]


def formatted(view: View, rows: list[dict[str, Any]], form: str) -> str:
    """Return rows as a table, as JSON lines, or by a template."""
    if form == "json":
        return "\n".join(go_json(dict(sorted(row.items()))).decode() for row in rows)
    kind, _, template = (form or "table").partition(" ")
    if kind != "table":
        return "\n".join(fill(form, row) for row in rows)
    if template:
        return own_table(view, rows, template)
    return table(view.heads, [[row[key] for key in view.columns] for row in rows])


def own_table(view: View, rows: list[dict[str, Any]], template: str) -> str:
    """Return a table whose columns are written down, parted by tabs."""
    known = {"CreatedSince": "CREATED"}
    known |= dict(zip(view.columns, view.heads, strict=True))
    keys = dict.fromkeys(key for row in rows for key in row)
    words = {key: re.sub("(?<=[a-z])(?=[A-Z])", " ", key).upper() for key in keys}
    lines = [fill(template, line).split("\t") for line in [{**words, **known}, *rows]]
    return table(lines[0], lines[1:])


# %% Images
def shown_id(digest: str, *, whole: bool) -> str:
    """Return an id whole, or its first twelve digits."""
    return digest if whole else short_id(digest)


def image_rows(
    engine: Engine, *, everything: bool, whole: bool
) -> list[dict[str, Any]]:
    """Return a row for each name of each image, the newest image first.

    Without ``everything``, images that are only steps of a build are left out.
    """
    rows = []
    names: dict[str, list[str]] = {}
    for tags in engine.images.names.read().values():
        for name, id in tags.items():
            names.setdefault(id, []).append(name)
    for id in engine.images.ids():
        mine = sorted(names.get(id, ()))
        if mine or everything or not engine.images.children(id):
            rows += [image_row(engine, id, name, whole=whole) for name in mine or [""]]
    return sorted(rows, key=lambda row: (-row["created"], row["Repository"]))


def image_row(engine: Engine, id: str, name: str, *, whole: bool) -> dict[str, Any]:
    """Return Docker's fields for an image under one of its names."""
    repository, _, tag = name.rpartition(":") if name else ("<none>", "", "<none>")
    created = engine.images.get(id).created or ""
    size = human_size(size_of(engine.images, engine.layers, id))
    return {
        "Containers": "N/A",
        "CreatedAt": local_time(created),
        "CreatedSince": ago(created),
        "Digest": "<none>",
        "ID": shown_id(id, whole=whole),
        "Repository": repository,
        "SharedSize": "N/A",
        "Size": size,
        "Tag": tag,
        "UniqueSize": "N/A",
        "VirtualSize": size,
        "created": seconds_of(created),
    }


IMAGES = View(
    ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"),
    ("Repository", "Tag", "ID", "CreatedSince", "Size"),
)


# %% Images
def history_view(
    rows: list[HistoryRow], *, whole: bool, human: bool
) -> list[dict[str, Any]]:
    """Return Docker's fields for the lines of `history`."""
    return [
        {
            "Comment": row.comment,
            "CreatedAt": row.created if not human else local_time(row.created),
            "CreatedBy": row.created_by if whole else cut(row.created_by, 45),
            "CreatedSince": ago(row.created) if human else row.created,
            "ID": shown_id(row.id, whole=whole) if row.id else "<missing>",
            "Size": human_size(row.size) if human else str(row.size),
        }
        for row in rows
    ]


def history_table(*, human: bool) -> View:
    """Return the view of `history`, with ages or with times."""
    head, key = ("CREATED", "CreatedSince") if human else ("CREATED AT", "CreatedAt")
    return View(
        ("IMAGE", head, "CREATED BY", "SIZE", "COMMENT"),
        ("ID", key, "CreatedBy", "Size", "Comment"),
    )


# %% Containers
def status_words(state: State, now: float | None = None) -> str:
    """Return a container's state as `ps` tells it.

    >>> status_words(State(Status.RUNNING, started="1970-01-01T00:00:01Z"), 4)
    'Up 3 seconds'
    """
    now = time.time() if now is None else now
    if state.status is Status.RUNNING:
        paused = " (Paused)" if state.paused else ""
        return f"Up {human_span(now - seconds_of(state.started))}{paused}"
    if state.status is Status.EXITED:
        return f"Exited ({state.exit_code}) {ago(state.finished, now)}"
    return "Created"


def ports_words(config: ContainerConfig) -> str:
    """Return the exposed ports as `ps` lists them."""
    return ", ".join(sorted(config.exposed_ports or ()))


def command_words(argv: Sequence[str], width: int | None) -> str:
    """Return a command as `ps` quotes it: words with spaces in it, then the whole.

    >>> print(command_words(["sh", "-c", "echo out; echo err"], 20))
    "sh -c 'echo out; ec…"
    """
    words = [f"'{word}'" if " " in word else word for word in argv[1:]]
    text = " ".join([*argv[:1], *words])
    return json.dumps(cut(text, width) if width else text, ensure_ascii=False)


def container_row(
    engine: Engine, container: Container, state: State, *, whole: bool, size: bool
) -> dict[str, Any]:
    """Return Docker's fields for a container."""
    labels = container.config.labels or {}
    row = {
        "Command": command_words(container.argv, None if whole else 20),
        "CreatedAt": local_time(container.created),
        "ID": shown_id(container.id, whole=whole),
        "Image": container.config.image or short_id(container.image),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "LocalVolumes": "0",
        "Mounts": ",".join(bind.partition(":")[0] for bind in container.host.binds),
        "Names": container.name,
        "Networks": container.host.network.value,
        "Ports": ports_words(container.config),
        "RunningFor": ago(container.created),
        "Size": "0B",
        "State": "paused" if state.paused else state.status.value,
        "Status": status_words(state),
    }
    if size:
        own = engine.layers.rw_size(container.id)
        below = size_of(engine.images, engine.layers, container.image)
        row["Size"] = f"{human_size(own)} (virtual {human_size(own + below)})"
    return row


PS_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
PS_HEADS = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")


def ps_view(*, size: bool) -> View:
    """Return the view of `ps`, with the column SIZE if asked for."""
    columns = (*PS_COLUMNS, "Size") if size else PS_COLUMNS
    heads = (*PS_HEADS, "SIZE") if size else PS_HEADS
    return View(heads, columns)


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
NEVER = "0001-01-01T00:00:00Z"


def state_fields(state: State) -> dict[str, Any]:
    """Return Docker's fields for a container's state."""
    return {
        "Status": "paused" if state.paused else state.status.value,
        "Running": state.status is Status.RUNNING,
        "Paused": state.paused,
        "Restarting": False,
        "OOMKilled": state.oom_killed,
        "Dead": False,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": state.started or NEVER,
        "FinishedAt": state.finished or NEVER,
    }


def inspect_container(engine: Engine, container: Container) -> dict[str, Any]:
    """Return what `inspect` tells of a container."""
    state = engine.containers.state(container.id)
    place = engine.containers.path(container.id)
    return {
        "Id": container.id,
        "Created": container.created,
        "Path": container.argv[0],
        "Args": list(container.argv[1:]),
        "State": state_fields(state),
        "Image": container.image,
        "ResolvConfPath": f"{place}/resolv.conf",
        "HostnamePath": f"{place}/hostname",
        "HostsPath": f"{place}/hosts",
        "LogPath": f"{place}/{container.id}-json.log",
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "Driver": engine.driver.name,
        "Platform": "linux",
        "HostConfig": container.host.to_dict(),
        "GraphDriver": graph_driver(engine, engine.layers.mount_id(container.id)),
        "Mounts": [mount_fields(bind) for bind in container.host.binds],
        "Config": container.config.to_dict(),
        "NetworkSettings": {"Ports": {}, "IPAddress": ""},
    }


def mount_fields(bind: str) -> dict[str, Any]:
    """Return Docker's fields for ``-v SOURCE:TARGET[:ro]``."""
    source, target, *mode = bind.split(":")
    writable = "ro" not in mode
    return {"Type": "bind", "Source": source, "Destination": target, "RW": writable}


def pretty(found: Any) -> str:
    """Return JSON as `inspect` prints it."""
    return json.dumps(found, indent=4, ensure_ascii=False)
