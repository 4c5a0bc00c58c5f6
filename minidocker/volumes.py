# From book/420-volumes.md. Edit there and tangle, or here and tangle --back.

# %% Volumes: what outlives the container
"""Named directories that outlive containers; what a container mounts, and where."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress

from minidocker.destinations import PLACE, magic, open_if_there
from minidocker.durable import make_lasting, marked, read_json, turn, write_lasting
from minidocker.errors import ConflictError, NotFoundError, WordFault
from minidocker.mounts import MountFlags
from minidocker.namespaces import QUIET, Bind, Filesystem, MountStep
from minidocker.oci import is_hex, matches
from minidocker.records import Record, json_text
from minidocker.trees import copy_tree, remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class MountPoint(Record):
    """What a container mounts: ``kind`` is volume, bind or tmpfs.

    ``source`` is a path of the host, "" for a tmpfs; ``name`` a volume's. ``anonymous``
    ones were made for this container. ``copy``: a volume that is empty gets what the
    image has there. ``data`` are options of a file system, of the ``fstype`` that a
    volume's options name; then ``source`` is its device.
    """

    kind: str
    target: str
    source: str = ""
    name: str = ""
    mode: str = ""
    writable: bool = True
    anonymous: bool = False
    copy: bool = True
    data: str = ""
    propagation: str = "rprivate"
    recursive: bool = True
    fstype: str = ""

    def step(self) -> MountStep:
        """Return the step that mounts it."""
        if self.kind == "tmpfs":
            flags = QUIET if self.writable else QUIET | MountFlags.RDONLY
            return Filesystem(self.target, "tmpfs", flags, self.data, links=True)
        if self.fstype:
            flags = MountFlags.NODEV
            flags |= MountFlags(0) if self.writable else MountFlags.RDONLY
            kind, device = self.fstype, self.source
            return Filesystem(
                self.target, kind, flags, self.data, links=True, source=device
            )
        word = self.propagation.removeprefix("r")
        return Bind(
            self.source,
            self.target,
            not self.writable,
            propagation="" if word == "private" else word,
            recursive=self.recursive,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return Docker's fields, as `inspect` shows them."""
        found = {"Type": self.kind, "Name": self.name, "Source": self.source}
        found |= {"Destination": self.target, "Mode": self.mode, "RW": self.writable}  # type: ignore[dict-item]
        if self.kind == "volume":
            found["Driver"] = "local"
        found["Propagation"] = self.propagation if self.kind == "bind" else ""
        order = ("Type", "Name", "Source", "Destination", "Driver")
        first = {key: found[key] for key in order if found.get(key)}
        return {**first, **{k: v for k, v in found.items() if k not in order}}


# %% The nouns
class Volume(Record):
    """A volume: its name, when it was made (RFC 3339), its labels, its directory.

    ``options`` say that it is no directory of ours: ``type``, ``device``, ``o``.
    """

    name: str
    created: str
    path: str
    labels: Mapping[str, str] | None = None
    options: Mapping[str, str] | None = None

    def size(self) -> int:
        """Return the bytes of its files."""
        return sum(
            os.lstat(f"{place}/{name}").st_size
            for place, _, names in os.walk(self.path)
            for name in names
        )

    def to_dict(self) -> dict[str, Any]:
        """Return Docker's fields, as `volume inspect` shows them."""
        return {
            "CreatedAt": self.created,
            "Driver": "local",
            "Labels": dict(self.labels) if self.labels is not None else None,
            "Mountpoint": self.path,
            "Name": self.name,
            "Options": dict(self.options or {}),
            "Scope": "local",
        }


# %% The nouns
def in_order(mounts: Iterable[MountPoint]) -> list[MountPoint]:
    """Return mounts so that none hides another."""
    return sorted(mounts, key=lambda one: one.target.rstrip("/").count("/"))


def points_from(found: Iterable[Mapping[str, Any]]) -> tuple[MountPoint, ...]:
    """Return mounts of their fields, as config.v2.json keeps them."""
    return tuple(MountPoint(**fields) for fields in found)


# %% The store
VOLUME_NAME = "[a-zA-Z0-9][a-zA-Z0-9_.-]+"
GONE = ".gone-"  # the beginning of the name of a volume that is being removed


def check_volume_name(name: str) -> str:
    """Return ``name``; WordFault when Docker would not take it."""
    if not matches(VOLUME_NAME, name):
        what = f'"{name}" includes invalid characters for a local volume name'
        hint = f"only {VOLUME_NAME} are allowed; for a host directory, an absolute path"
        raise WordFault(what, hint=hint)
    return name


def moment(seconds: float) -> str:
    """Return a time as a record has it.

    >>> moment(0)
    '1970-01-01T00:00:00Z'
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


OPTIONS = ("type", "o", "device")


def check_driver(name: str) -> None:
    """Raise WordFault for volumes that are not directories of this host."""
    if name not in ("", "local"):
        what = f'error looking up volume plugin {name}: plugin "{name}" not found'
        raise WordFault(what, hint="local is the only one here")


def check_options(options: Mapping[str, str]) -> Mapping[str, str]:
    """Return the options of a volume; WordFault for those that say nothing together.

    What is somewhere else is refused: nobody here looks names up, or waits.
    """
    for name in options:
        if name not in OPTIONS:
            raise WordFault(f'invalid option: "{name}"', hint=", ".join(OPTIONS))
    for name in ("device", "type") if options else ():
        if not options.get(name):
            raise WordFault(f'missing required option: "{name}"')
    if options.get("type", "").startswith(("nfs", "cifs")):
        what = f"a volume of type {options['type']} cannot be mounted here"
        raise WordFault(what, hint="mount it on the host, then type=none, o=bind")
    return options


# %% The store
class VolumeStore:
    """The volumes of the store ``root``, each in a directory ``volumes/NAME``.

    It holds ``opts.json``, the record, and ``_data``. One that has files is a volume
    without its record too: nothing that could be somebody's data is hidden.
    """

    def __init__(self, root: str) -> None:
        self.store, self.root = root, f"{root}/volumes"
        self.lock = f"{root}/volumes.lock"

    def path(self, name: str, inside: str = "_data") -> str:
        """Return the path of a volume's directory, or of its record."""
        return f"{self.root}/{name}/{inside}"

    def create(
        self,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make a volume, unless there is one of that name; return it."""
        name = check_volume_name(name) if name else os.urandom(32).hex()
        check_options(options or {})
        with suppress(ValueError, FileNotFoundError):
            return self.recorded(name)
        with marked(self.store):
            make_lasting(self.path(name), 0o755)
            record = {"Name": name, "CreatedAt": moment(time.time()), "Labels": labels}
            record |= {"Options": dict(options)} if options else {}
            write_lasting(self.path(name, "opts.json"), json_text(record))
        return self.recorded(name)

    def recorded(self, name: str) -> Volume:
        """Return a volume by its record. Raises FileNotFoundError, ValueError."""
        found = read_json(self.path(name, "opts.json"))
        made, labels = found.get("CreatedAt"), found.get("Labels")
        if not isinstance(made, str) or not isinstance(labels, (dict, type(None))):
            raise ValueError("not the record of a volume")
        return Volume(name, made, self.path(name), labels, found.get("Options"))

    def get(self, name: str) -> Volume:
        """Return a volume. Raises NotFoundError."""
        with suppress(FileNotFoundError):
            if matches(VOLUME_NAME, name):
                with suppress(ValueError, FileNotFoundError):
                    return self.recorded(name)
                if os.listdir(self.path(name)):
                    made = moment(os.stat(self.path(name, "")).st_mtime)
                    return Volume(name, made, self.path(name))
        hint = "`minidocker volume ls` lists them"
        raise NotFoundError(f"no such volume: {name}", hint=hint)

    def names(self) -> list[str]:
        """Return all names in the directory of volumes, sorted."""
        return sorted(os.listdir(self.root)) if os.path.isdir(self.root) else []

    def remove(self, name: str, users: Iterable[str] = ()) -> None:
        """Remove a volume that no container (``users``, their ids) mounts."""
        volume, ids = self.get(name), list(users)
        if ids:
            what = f"remove {name}: volume is in use - [{', '.join(ids)}]"
            raise ConflictError(what, hint="remove the containers first")
        with marked(self.store):
            gone = f"{self.root}/{GONE}{os.urandom(8).hex()}"
            os.rename(f"{self.root}/{volume.name}", gone)
            remove_path(gone)

    def leftovers(self) -> list[str]:
        """Return the names of what was half made or half removed, and has no files."""
        known = {volume.name for volume in self.list()}
        return [name for name in self.names() if name not in known]

    def drop(self, name: str) -> None:
        """Remove one of ``leftovers``; if it has got files meanwhile, it stays."""
        if name.startswith(GONE):
            remove_path(f"{self.root}/{name}")
            return
        with suppress(OSError):
            if os.path.isdir(self.path(name)):
                os.rmdir(self.path(name))
            remove_path(f"{self.root}/{name}")

    def list(self) -> list[Volume]:
        """Return all volumes, by name."""
        found = []
        for name in self.names():
            with suppress(NotFoundError):
                found.append(self.get(name))
        return found


# %% First contents
def fill_volume(tree: str, point: MountPoint) -> None:
    """Copy what the image's ``tree`` has at the place of a volume that is empty."""
    if os.listdir(point.source):
        return
    root = os.open(tree, PLACE | os.O_DIRECTORY)
    place = open_if_there(root, point.target)
    os.close(root)
    if place is None:
        return
    try:
        if os.path.isdir(magic(place)):
            copy_tree(os.readlink(magic(place)), point.source)
    finally:
        os.close(place)


def wants_filling(points: Iterable[MountPoint]) -> list[MountPoint]:
    """Return the volumes that are to get the image's contents and are empty."""
    return [
        point
        for point in points
        if point.kind == "volume" and point.copy and not point.fstype
        if os.path.isdir(point.source) and not os.listdir(point.source)
    ]


# %% From words to mounts
PROPAGATIONS = ("private", "rprivate", "shared", "rshared", "slave", "rslave")


def bind_point(text: str) -> MountPoint:
    """Return the mount of ``SOURCE:TARGET[:MODE]``, where SOURCE may be a volume.

    >>> bind_point("data:/var:ro,nocopy").copy
    False
    """
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    words = mode.split(",") if mode else []
    point = MountPoint(
        "bind" if source.startswith("/") else "volume",
        os.path.normpath(target),
        mode=mode,
        writable="ro" not in words,
        copy="nocopy" not in words,
    )
    if point.kind == "bind":
        word = next((w for w in words if w in PROPAGATIONS), "rprivate")
        return point.replace(source=source, propagation=word)
    return point.replace(name=source, mode=mode or "z")


# %% From words to mounts
def mount_point(spec: Mapping[str, Any]) -> MountPoint:
    """Return the mount of a ``--mount``, as HostConfig.Mounts has it."""
    kind, options = spec["Type"], spec.get("VolumeOptions") or {}
    tmpfs, bind = spec.get("TmpfsOptions") or {}, spec.get("BindOptions") or {}
    size, mode = tmpfs.get("SizeBytes"), tmpfs.get("Mode")
    data = [f"size={size}"] if size else []
    data += [f"mode={mode:o}"] if mode is not None else []
    source = str(spec.get("Source") or "")
    return MountPoint(
        kind,
        os.path.normpath(spec["Target"]),
        source if kind == "bind" else "",
        source if kind == "volume" else "",
        mode="z" if kind == "volume" else "",
        writable=not spec.get("ReadOnly"),
        anonymous=kind == "volume" and not source,
        copy=not options.get("NoCopy"),
        data=",".join(data),
        propagation=bind.get("Propagation") or "rprivate",
        recursive=not bind.get("NonRecursive"),
    )


# %% From words to mounts
def inherited(points: Iterable[MountPoint], mode: str) -> list[MountPoint]:
    """Return another container's mounts as ``--volumes-from`` gives them."""
    return [
        point.replace(anonymous=False, writable=point.writable and mode != "ro")
        for point in points
        if point.kind != "tmpfs"
    ]


def make_points(
    store: VolumeStore,
    others: Iterable[MountPoint],
    binds: Iterable[str],
    specs: Iterable[Mapping[str, Any]],
    places: Iterable[str],
) -> tuple[MountPoint, ...]:
    """Return a container's mounts; the volumes that they name are made.

    ``places`` are those of VOLUME. The caller holds the lock of the store of volumes.
    """
    found = {point.target: point for point in others}
    found |= {point.target: point for point in map(bind_point, binds)}
    found |= {point.target: point for point in map(mount_point, specs)}
    for place in places:
        target = os.path.normpath(place)
        found.setdefault(target, MountPoint("volume", target, anonymous=True))
    return tuple(with_volume(store, point, specs) for point in in_order(found.values()))


# %% From words to mounts
def with_volume(
    store: VolumeStore, point: MountPoint, specs: Iterable[Mapping[str, Any]]
) -> MountPoint:
    """Return a mount whose volume is there."""
    if point.kind != "volume":
        return point
    specs = [s for s in specs if os.path.normpath(s["Target"]) == point.target]
    options = (specs[0].get("VolumeOptions") or {}) if specs else {}
    driver = options.get("DriverConfig") or {}
    volume = store.create(point.name, options.get("Labels"), driver.get("Options"))
    point = point.replace(name=volume.name, source=volume.path)
    return elsewhere(point, volume.options) if volume.options else point


def elsewhere(point: MountPoint, options: Mapping[str, str]) -> MountPoint:
    """Return the mount of a volume whose options say where it is.

    >>> where = {"type": "none", "o": "bind,ro", "device": "/srv"}
    >>> elsewhere(MountPoint("volume", "/data"), where).step().describe()
    ('/data', 'bind', 'ro')
    """
    words = [word for word in options.get("o", "").split(",") if word]
    writable = point.writable and "ro" not in words
    point = point.replace(source=options["device"], writable=writable)
    if {"bind", "rbind"} & set(words):
        return point.replace(recursive="rbind" in words)
    data = ",".join(word for word in words if word not in ("ro", "rw"))
    return point.replace(fstype=options["type"], data=data)


def is_anonymous(name: str) -> bool:
    """Say whether a volume's name was made and not given."""
    return len(name) == 64 and is_hex(name)


def volumes_turn(store: VolumeStore) -> Any:
    """Return a ``with`` block in which nobody else makes or removes volumes."""
    return turn(store.lock)
