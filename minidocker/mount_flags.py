# From book/656-mount-flags.md. Edit there and tangle, or here and tangle --back.

# %% Mount flags: three ways to say what is mounted
"""``-v``, ``--mount``, ``--volumes-from``: words that become mounts."""

from __future__ import annotations

import os

from minidocker.errors import RuntimeFault, UsageError, did_you_mean
from minidocker.flags import Given, wrong
from minidocker.mounts import mountinfo
from minidocker.program import HostConfig
from minidocker.volumes import (
    PROPAGATIONS,
    check_driver,
    check_options,
    check_volume_name,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% -v
MODES = (  # of each at most one word
    ("ro", "rw"), ("z", "Z"), ("nocopy",), ("consistent", "cached", "delegated"),
    PROPAGATIONS,
)  # fmt: skip


def check_target(target: str, text: str) -> None:
    """Raise UsageError for a place in the container that is none."""
    if not target.startswith("/"):
        what = f"invalid volume specification: '{text}': invalid mount path: '{target}'"
        raise UsageError(what, hint="the mount path must be absolute")
    if os.path.normpath(target) == "/":
        what = f"invalid volume specification: '{text}': destination can't be '/'"
        raise UsageError(what)


def check_propagation(word: str, source: str) -> None:
    """Raise UsageError for no propagation, RuntimeFault for one that cannot be.

    Mounts travel to a container only from a mount from which they travel.
    """
    if word not in PROPAGATIONS:
        hint = did_you_mean(word, PROPAGATIONS, other=", ".join(PROPAGATIONS))
        raise UsageError(f"invalid propagation mode: {word}", hint=hint)
    kind = word.removeprefix("r")
    if kind == "private":
        return
    place, tags = mount_of(os.path.realpath(source))
    travels = {tag.partition(":")[0] for tag in tags}
    if not travels & ({"shared"} if kind == "shared" else {"shared", "master"}):
        wanted = "shared" if kind == "shared" else "shared or slave"
        what = f"path {source} is mounted on {place} but it is not a {wanted} mount"
        raise RuntimeFault(what, hint=f"mount --make-shared {place}")


def mount_of(path: str) -> tuple[str, list[str]]:
    """Return where the mount is that a path lies on, and its optional fields.

    Source: proc_pid_mountinfo(5).
    """
    here = f"{path}/"
    around = [m for m in mountinfo() if here.startswith(m.target.rstrip("/") + "/")]
    if not around:  # in a chroot the root is no mount
        return "/", []
    best = max(reversed(around), key=lambda one: len(one.target))  # it hides the others
    return best.target, best.propagation.split()


def volume_text(text: str) -> str:
    """Return ``SOURCE:TARGET[:MODE]`` of a ``-v``, checked; a path is made absolute.

    A source that is a path and is not there becomes a directory, as in Docker.
    """
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if text.count(":") > 2 or not source or not target:
        raise UsageError(f"invalid volume specification: '{text}'")
    check_target(target, text)
    words = mode.split(",") if mode else []
    every = {word for group in MODES for word in group}
    if set(words) - every or any(len(set(group) & set(words)) > 1 for group in MODES):
        raise UsageError(f"invalid mode: {mode}", hint="ro, rw, z, nocopy, rslave")
    travels = [word for word in words if word in PROPAGATIONS]
    if not source.startswith(("/", ".")):
        check_volume_name(source)
        if travels:
            what = f"invalid mode: {mode}: a volume is no mount of the host"
            raise UsageError(what)
        return text
    if "nocopy" in words:
        raise UsageError(f"invalid mode: {mode}", hint="nocopy is for volumes")
    source = os.path.abspath(source)
    if not os.path.lexists(source):
        os.makedirs(source)
    for word in travels:
        check_propagation(word, source)
    return f"{source}:{rest}"


# %% --mount
KEYS = {
    "type": "type", "source": "source", "src": "source", "target": "target",
    "dst": "target", "destination": "target", "readonly": "readonly", "ro": "readonly",
    "consistency": "consistency", "bind-propagation": "bind-propagation",
    "bind-nonrecursive": "bind-nonrecursive", "volume-nocopy": "volume-nocopy",
    "volume-label": "volume-label", "volume-driver": "volume-driver",
    "volume-opt": "volume-opt", "tmpfs-size": "tmpfs-size", "tmpfs-mode": "tmpfs-mode",
}  # fmt: skip
WITHOUT_VALUE = ("readonly", "volume-nocopy", "bind-nonrecursive")
TRUTHS = {"true": True, "1": True, "false": False, "0": False}
UNITS = {"k": 10, "m": 20, "g": 30}


def mount_fields(text: str) -> dict[str, Any]:
    """Return the fields of a ``--mount`` by name, repeated ones as lists.

    >>> mount_fields("type=bind,src=/a,dst=/b,ro")["readonly"]
    True
    """
    found: dict[str, Any] = {"type": "volume"}
    for part in csv_fields(text):
        name, equals, value = part.partition("=")
        key = KEYS.get(name.strip().lower(), "")
        if equals and not key:
            hint = did_you_mean(name, KEYS)
            what = f"unexpected key '{name}' in '{part}'"
            raise invalid_mount(text, what, hint)
        if not equals and key not in WITHOUT_VALUE:
            raise invalid_mount(
                text, f"invalid field '{part}' must be a key=value pair"
            )
        if key in WITHOUT_VALUE:
            if (value.lower() or "true") not in TRUTHS:
                raise invalid_mount(text, f"invalid value for {key}: {value}")
            found[key] = TRUTHS[value.lower() or "true"]
        elif key in ("volume-label", "volume-opt"):
            found.setdefault(key, []).append(value)
        else:
            found[key] = value
    return found


def csv_fields(text: str) -> list[str]:
    """Split a line of comma-separated values, where a quoted one may hold commas.

    >>> csv_fields('type=volume,"volume-opt=o=size=1m,mode=700"')
    ['type=volume', 'volume-opt=o=size=1m,mode=700']
    """
    import csv

    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as why:
        raise invalid_mount(text, f"parse error: {why}") from why


def invalid_mount(text: str, why: str, hint: str | None = None) -> UsageError:
    """Return the error for a ``--mount``."""
    return wrong("--mount", text, why, hint)


# %% --mount
OWN_KEYS = {
    "bind": ("bind-propagation", "bind-nonrecursive"),
    "volume": ("volume-nocopy", "volume-label", "volume-driver", "volume-opt"),
    "tmpfs": ("tmpfs-size", "tmpfs-mode"),
}


def mount_spec(text: str) -> dict[str, Any]:
    """Return a ``--mount`` as Docker's HostConfig.Mounts has it. Raises UsageError."""
    found = mount_fields(text)
    kind = found["type"].lower()
    if kind not in OWN_KEYS:
        raise UsageError(f'invalid mount config for type "{kind}": mount type unknown')
    for key in found:
        owner = next((k for k, keys in OWN_KEYS.items() if key in keys), kind)
        if owner != kind:
            what = f"cannot mix '{owner}-*' options with mount type '{kind}'"
            raise invalid_mount(text, what)
    if not found.get("target"):
        raise invalid_mount(text, "target is required")
    check_target(found["target"], text)
    spec = {"Type": kind, "Source": found.get("source", ""), "Target": found["target"]}
    if not spec["Source"]:
        del spec["Source"]
    if found.get("readonly"):
        spec["ReadOnly"] = True
    return spec | OPTIONS[kind](found, text)


def bind_options(found: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the options of a bind; its source must be there."""
    source = found.get("source", "")
    if not source:
        raise UsageError('invalid mount config for type "bind": field Source is empty')
    if not source.startswith("/"):
        what = "invalid mount path: mount path must be absolute"
        raise UsageError(f'invalid mount config for type "bind": {what}', where=source)
    if not os.path.lexists(source):
        what = "bind source path does not exist"
        raise RuntimeFault(f'invalid mount config for type "bind": {what}: {source}')
    options: dict[str, Any] = {}
    if word := found.get("bind-propagation"):
        check_propagation(word, source)
        options["Propagation"] = word
    if found.get("bind-nonrecursive"):
        options["NonRecursive"] = True
    return {"BindOptions": options} if options else {}


def volume_options(found: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the options of a volume."""
    if source := found.get("source"):
        check_volume_name(source)
    check_driver(found.get("volume-driver", ""))
    labels = dict(label.partition("=")[::2] for label in found.get("volume-label", ()))
    options: dict[str, Any] = {"Labels": labels} if labels else {}
    if words := found.get("volume-opt"):
        opts = check_options(dict(word.partition("=")[::2] for word in words))
        options["DriverConfig"] = {"Name": "local", "Options": dict(opts)}
    if found.get("volume-nocopy"):
        options["NoCopy"] = True
    return {"VolumeOptions": options} if options else {}


def tmpfs_options(found: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the options of a tmpfs."""
    options: dict[str, Any] = {}
    if found.get("source"):
        what = (
            'invalid mount config for type "tmpfs": field Source must not be specified'
        )
        raise UsageError(what)
    if size := found.get("tmpfs-size", "").lower():
        number = size.removesuffix("b")
        digits = number.rstrip("kmg")
        if not digits.isdecimal() or len(number) - len(digits) > 1:
            raise invalid_mount(text, f"invalid value for tmpfs-size: {size}")
        options["SizeBytes"] = int(digits) << UNITS.get(number[len(digits) :], 0)
    if mode := found.get("tmpfs-mode"):
        if not mode or set(mode) - set("01234567") or int(mode, 8) > 0o7777:
            raise invalid_mount(text, f"invalid value for tmpfs-mode: {mode}")
        options["Mode"] = int(mode, 8)
    return {"TmpfsOptions": options} if options else {}


OPTIONS = {"bind": bind_options, "volume": volume_options, "tmpfs": tmpfs_options}


# %% All three flags
def with_mounts(given: Given, host: HostConfig) -> HostConfig:
    """Return a HostConfig with what these flags ask for. Each place is taken once."""
    specs = tuple(map(mount_spec, given.list("mount")))
    texts = [text for text in given.list("volume") if ":" in text]
    for text in given.list("volume"):
        if ":" not in text:
            check_target(text, text)
    binds = tuple(map(volume_text, texts))
    targets = [os.path.normpath(text.split(":")[1]) for text in binds]
    targets += [os.path.normpath(spec["Target"]) for spec in specs]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"duplicate mount point: {target}")
    return host.replace(
        binds=binds, mounts=specs, volumes_from=given.list("volumes-from")
    )
