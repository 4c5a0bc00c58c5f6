# From book/210-oci.md. Edit there and tangle, or here and tangle --back.

# %% OCI: digests, references and the image JSON
"""Digests, references, chain ids, and the image JSON as Docker writes it.

A digest is a text ``sha256:`` and 64 hexadecimal digits. Layers are bottom-first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from minidocker.errors import IntegrityError, ReferenceFault
from minidocker.records import Record, json_text, parse_json


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Digests
HEX_DIGITS = frozenset("0123456789abcdef")
EMPTY_DIGEST = "sha256:" + "0" * 64


def is_hex(text: str) -> bool:
    """Tell whether a text is nothing but lower case hexadecimal digits.

    >>> is_hex("0af"), is_hex("0AF"), is_hex("")
    (True, False, False)
    """
    return bool(text) and HEX_DIGITS.issuperset(text)


def sha256_text(data: bytes) -> str:
    """Return the digest of a few bytes.

    >>> sha256_text(b"")
    'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
    """
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]  # Python 3.11
    except ImportError:
        from hashlib import sha256
    return "sha256:" + str(sha256(data).hexdigest())


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest, whole and exact.

    >>> is_digest("sha256:" + "0" * 64), is_digest("sha256:../../etc")
    (True, False)
    """
    return len(text) == 71 and text.startswith("sha256:") and is_hex(text[7:])


def hex_of(digest: str) -> str:
    """Return the 64 digits of a digest, safe to use as a file name.

    Raises IntegrityError for anything else.
    """
    if not is_digest(digest):
        raise IntegrityError(f'"{digest}" is no sha256 digest')
    return digest[7:]


def short_id(digest: str) -> str:
    """Return the twelve digits that Docker's tables show."""
    return digest.removeprefix("sha256:")[:12]


# %% Chain ids
def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """Return the chain id of each layer of a stack, bottom-first.

    Source: image-spec, config.md, "Layer ChainID".
    """
    chains: list[str] = []
    for diff_id in diff_ids:
        text = f"{chains[-1]} {diff_id}".encode() if chains else b""
        chains.append(sha256_text(text) if text else diff_id)
    return chains


def chain_id(diff_ids: Iterable[str]) -> str:
    """Return the chain id of the top of a stack; IntegrityError for no layer at all."""
    chains = chain_ids(diff_ids)
    if not chains:
        raise IntegrityError("an empty stack of layers has no chain id")
    return chains[-1]


# %% References
HUB = "docker.io"
PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = rf"{PART}(?:/{PART})*"
TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
HOST = rf"(?:{LABEL}(?:\.{LABEL})*|\[[0-9a-fA-F:.]+\])(?::[0-9]+)?"


def matches(pattern: str, text: str) -> bool:
    """Tell whether a pattern describes the whole text.

    An image that is here is found by its exact name, without this import.
    """
    import re

    return re.fullmatch(pattern, text) is not None


# %% References
class Reference(Record):
    """A name for an image; ``tag`` and ``digest`` are None where not given."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def name(self) -> str:
        """The name as people write it: without the hub and its ``library/``."""
        if self.registry != HUB:
            return f"{self.registry}/{self.repository}"
        return self.repository.removeprefix("library/")

    @property
    def familiar(self) -> str:
        """The whole reference as people write it."""
        tag = f":{self.tag}" if self.tag else ""
        return self.name + tag + (f"@{self.digest}" if self.digest else "")

    def __str__(self) -> str:
        return self.familiar

    @property
    def tagged(self) -> Reference:
        """This reference with ``latest`` where it has neither tag nor digest."""
        return self if self.tag or self.digest else self.replace(tag="latest")


# %% References
def parse_reference(text: str) -> Reference:
    """Return the reference that ``text`` is; ReferenceFault says what is wrong.

    >>> parse_reference("kb-centos:v11").tag, parse_reference("kb-centos:v11").name
    ('v11', 'kb-centos')
    >>> parse_reference("127.0.0.1:5000/a/b").familiar
    '127.0.0.1:5000/a/b'
    """
    rest, at, digest = text.partition("@")
    if is_digest(f"sha256:{text}"):
        raise bad_reference(text, "64 hexadecimal digits are an id, and no name")
    if at and not is_digest(digest):
        raise bad_reference(text, f'"{digest}" is no sha256 digest')
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        head, tag = rest, ""
    elif not matches(TAG, tag):
        raise bad_reference(text, "a tag has letters, digits, '_', '.' and '-'")
    registry, repository = split_registry(head)
    if not matches(NAME, repository):
        raise bad_reference(text, name_fault(repository))
    if len(repository) > 255:
        raise bad_reference(text, "a name has at most 255 characters")
    return Reference(registry, repository, tag or None, digest or None)


def split_registry(name: str) -> tuple[str, str]:
    """Return the registry and the repository of a name without tag."""
    first, slash, rest = name.partition("/")
    named = "." in first or ":" in first or first == "localhost"
    if slash and named and matches(HOST, first):
        return first, rest
    return HUB, name if slash else f"library/{name}"


# %% References
def name_fault(repository: str) -> str:
    """Return what is wrong with a repository's name."""
    if repository.removeprefix("library/") == "":
        return "it has no name"
    if repository.lower() != repository:
        return "a repository name must be lowercase"
    return "a name has lower case letters and digits, parted by '.', '_', '-' or '/'"


def bad_reference(text: str, why: str) -> ReferenceFault:
    """Return the error for a reference that cannot be read."""
    return ReferenceFault(
        f'invalid reference format: "{text}": {why}', hint="NAME[:TAG][@DIGEST]"
    )


# %% The container configuration
OMIT = object()


class Field(Record):
    """A key of the JSON: its attribute, and whether Go leaves it out when empty."""

    key: str
    attribute: str
    omit_empty: bool = False


CONFIG_FIELDS = (
    Field("Hostname", "hostname"),
    Field("Domainname", "domainname"),
    Field("User", "user"),
    Field("AttachStdin", "attach_stdin"),
    Field("AttachStdout", "attach_stdout"),
    Field("AttachStderr", "attach_stderr"),
    Field("ExposedPorts", "exposed_ports", True),
    Field("Tty", "tty"),
    Field("OpenStdin", "open_stdin"),
    Field("StdinOnce", "stdin_once"),
    Field("Env", "env"),
    Field("Cmd", "cmd"),
    Field("Healthcheck", "healthcheck", True),
    Field("ArgsEscaped", "args_escaped", True),
    Field("Image", "image"),
    Field("Volumes", "volumes"),
    Field("WorkingDir", "working_dir"),
    Field("Entrypoint", "entrypoint"),
    Field("NetworkDisabled", "network_disabled", True),
    Field("MacAddress", "mac_address", True),
    Field("OnBuild", "on_build"),
    Field("Labels", "labels"),
    Field("StopSignal", "stop_signal", True),
    Field("StopTimeout", "stop_timeout", True),
    Field("Shell", "shell", True),
)


# %% The container configuration
class ContainerConfig(Record):
    """How a container of an image starts; None is ``null`` in the JSON.

    Mappings are not to be changed: make a new one and ``replace``.
    """

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: Mapping[str, Any] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    healthcheck: Mapping[str, Any] | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: Mapping[str, Any] | None = None
    working_dir: str = ""
    entrypoint: tuple[str, ...] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: tuple[str, ...] | None = None
    labels: Mapping[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as Docker's JSON has it."""
        return to_dict(self, CONFIG_FIELDS)


def to_dict(record: Record, fields: Iterable[Field]) -> dict[str, Any]:
    """Return the JSON object of a record, keys in the order of ``fields``."""
    found: dict[str, Any] = {}
    for field in fields:
        value = getattr(record, field.attribute)
        empty = value is None if field.key == "StopTimeout" else not value
        if field.omit_empty and empty:
            continue
        if isinstance(value, Mapping) and field.key != "Healthcheck":  # a Go struct
            value = dict(sorted(value.items()))
        found[field.key] = value
    return found


# %% The container configuration
def config_from(data: Mapping[str, Any] | None) -> ContainerConfig:
    """Return the configuration of a JSON object; keys that are unknown are dropped."""
    known = {field.key: field.attribute for field in CONFIG_FIELDS}
    given = {known[k]: frozen(v) for k, v in (data or {}).items() if k in known}
    defaults = ContainerConfig()
    return ContainerConfig(
        **{
            k: v
            for k, v in given.items()
            if v is not None or getattr(defaults, k) is None
        }
    )


def frozen(value: Any) -> Any:
    """Return a JSON value with its lists as tuples."""
    return tuple(value) if isinstance(value, list) else value


# %% The image JSON
class HistoryEntry(Record):
    """One line of an image's history. ``created`` is RFC 3339 with nanoseconds."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


HISTORY_FIELDS = (
    Field("created", "created", True),
    Field("author", "author", True),
    Field("created_by", "created_by", True),
    Field("comment", "comment", True),
    Field("empty_layer", "empty_layer", True),
)


# %% The image JSON
class ImageConfig(Record):
    """An image JSON. ``diff_ids`` are bottom-first; ``extra`` holds unknown keys."""

    architecture: str = "amd64"
    author: str = ""
    comment: str = ""
    config: ContainerConfig | None = None
    container: str = ""
    container_config: ContainerConfig | None = None
    created: str | None = None
    docker_version: str = ""
    history: tuple[HistoryEntry, ...] = ()
    os: str = "linux"
    diff_ids: tuple[str, ...] = ()
    extra: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the image as Docker's JSON has it, keys in alphabetical order."""
        found: dict[str, Any] = dict(self.extra or {})
        found["architecture"], found["os"] = self.architecture, self.os
        for name in ("author", "comment", "container", "created", "docker_version"):
            if value := getattr(self, name):
                found[name] = value
        for name in ("config", "container_config"):
            if (config := getattr(self, name)) is not None:
                found[name] = config.to_dict()
        if self.history:
            found["history"] = [
                to_dict(entry, HISTORY_FIELDS) for entry in self.history
            ]
        found["rootfs"] = {"type": "layers"}
        if self.diff_ids:
            found["rootfs"]["diff_ids"] = list(self.diff_ids)
        return dict(sorted(found.items()))

    def to_json(self) -> bytes:
        """Return the bytes whose digest is the image's id."""
        return go_json(self.to_dict())


# %% The image JSON
GO_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
GO_ESCAPES |= {"\u2028": "\\u2028", "\u2029": "\\u2029"}
GO_ESCAPES |= {"\\b": "\\u0008", "\\f": "\\u000c"}  # until Go 1.22


def go_json(value: Any) -> bytes:
    """Return JSON as Go's encoding/json writes it.

    >>> go_json({"Cmd": ["a && b"], "Env": None})
    b'{"Cmd":["a \\\\u0026\\\\u0026 b"],"Env":null}'
    """
    text = json_text(value)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, GO_ESCAPES[character])
    if "\\b" in text or "\\f" in text:
        import re

        text = re.sub(r"\\(.)", lambda m: GO_ESCAPES.get(m[0], m[0]), text)
    return text.encode(errors="replace")


# %% The image JSON
@lru_cache(4)  # a step of a build asks for the same one three times
def parse_image(data: bytes, where: str = "image JSON") -> ImageConfig:
    """Return the image that a JSON text describes.

    Raises IntegrityError for what is no image JSON.
    """
    try:
        found = parse_json(data.decode())
        return image_from(found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as why:
        raise IntegrityError(f"no image JSON: {why}", where=where) from why


def image_from(found: Mapping[str, Any]) -> ImageConfig:
    """Return the image of a JSON object."""
    ours = set(ImageConfig.__match_args__) | {"rootfs"}
    diff_ids = tuple(found["rootfs"].get("diff_ids") or ())
    for diff_id in diff_ids:
        hex_of(diff_id)
    texts = {k: str(found.get(k) or "") for k in ("author", "comment", "container")}
    return ImageConfig(
        architecture=str(found.get("architecture", "")),
        **texts,
        config=maybe_config(found.get("config")),
        container_config=maybe_config(found.get("container_config")),
        created=found.get("created"),
        docker_version=str(found.get("docker_version") or ""),
        history=tuple(history_entry(entry) for entry in found.get("history") or ()),
        os=str(found.get("os", "")),
        diff_ids=diff_ids,
        extra={k: v for k, v in found.items() if k not in ours} or None,
    )


def history_entry(data: Mapping[str, Any]) -> HistoryEntry:
    """Return the line of history of a JSON object."""
    names = HistoryEntry.__match_args__
    return HistoryEntry(**{name: data[name] for name in names if name in data})


def maybe_config(data: Mapping[str, Any] | None) -> ContainerConfig | None:
    """Return the configuration of a JSON object, or None for null."""
    return None if data is None else config_from(data)
