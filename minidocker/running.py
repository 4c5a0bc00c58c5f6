# From book/355-running.md. Edit there and tangle, or here and tangle --back.

# %% Running: what a RUN sees and no layer keeps
"""RUN: the process of a step, and the mounts that no layer keeps."""

from __future__ import annotations

import fcntl
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from minidocker.cache import digest_of_source
from minidocker.commits import begin_container, commit, end_container, writable_layer
from minidocker.context import clean_source, one_source
from minidocker.copying import copy_sources
from minidocker.dockerfile import Instruction, no_variables
from minidocker.durable import lock_file
from minidocker.errors import (
    BuildError,
    DockerfileError,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from minidocker.lines import heredoc_mark
from minidocker.manner import Manner, set_owner
from minidocker.moves import clean_path, is_cached
from minidocker.oci import ContainerConfig, chain_id, sha256_text
from minidocker.outside import context_of, emptied, replaced_image, tree_from
from minidocker.records import Enum, Record
from minidocker.stage import (
    UNDECLARED,
    Around,
    Fresh,
    Secret,
    Shown,
    Stage,
    Workshop,
    Written,
)


# %% The nouns
class MountKind(Enum):
    """What a ``--mount`` shows."""

    BIND = "bind"
    CACHE = "cache"
    TMPFS = "tmpfs"
    SECRET = "secret"  # noqa: S105


class Sharing(Enum):
    """What two builds do that want the same cache at once."""

    SHARED = "shared"  # both write
    PRIVATE = "private"  # the second gets another one
    LOCKED = "locked"  # the second waits


# %% The nouns
class RunMount(Record):
    """One ``--mount`` of a RUN; ``text`` is what of it counts for the cache.

    ``target`` is absolute. ``origin`` is what ``from=`` names. ``variable`` is the
    environment variable that a secret is put in.
    """

    kind: MountKind
    target: str
    text: str
    source: str = ""
    origin: str = ""
    id: str = ""
    writable: bool = False
    sharing: Sharing = Sharing.SHARED
    mode: int | None = None
    owner: tuple[int, int] = (0, 0)
    size: int = 0
    required: bool = False
    variable: str = ""


class Command(Record):
    """What a RUN runs: ``shown`` is for the history, ``argv`` for the kernel.

    ``script`` is a file that ``argv`` names, where it is a here-document's.
    """

    argv: tuple[str, ...]
    shown: tuple[str, ...]
    script: Written | None = None
    mounts: tuple[RunMount, ...] = ()
    network: str = "default"


# %% Reading a mount
ALIASES = {
    "src": "source", "dst": "target", "destination": "target", "ro": "readonly",
    "rw": "readwrite",
}  # fmt: skip
SWITCHES = {"readonly", "readwrite", "required"}
OPTIONS = {
    MountKind.BIND: {"target", "source", "from", "readonly", "readwrite"},
    MountKind.CACHE: {
        "target", "source", "from", "readonly", "readwrite", "id", "sharing", "mode",
        "uid", "gid",
    },
    MountKind.TMPFS: {"target", "size"},
    MountKind.SECRET: {"target", "id", "required", "mode", "uid", "gid", "env"},
}  # fmt: skip
UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def split_options(text: str) -> dict[str, str]:
    """Return the options of a ``--mount`` by their full names.

    >>> split_options("type=cache,dst=/c,ro")
    {'type': 'cache', 'target': '/c', 'readonly': 'true'}
    """
    found: dict[str, str] = {}
    for field in filter(None, text.split(",")):
        name, equals, value = field.partition("=")
        name = ALIASES.get(name.strip().lower(), name.strip().lower())
        if not equals and name not in SWITCHES:
            raise DockerfileError(f'--mount: "{field}" needs a value', word=field)
        if name == "from" and "$" in value:
            what, hint = no_variables(value)
            raise DockerfileError(what, hint=hint, word=value)
        found[name] = value if equals else "true"
    return found


TRUE, FALSE = {"true", "t", "1"}, {"false", "f", "0"}


def is_true(given: Mapping[str, str], name: str) -> bool:
    """Say whether an option is given, and not as ``=false``. Raises DockerfileError."""
    value = given.get(name, "false")
    if value.lower() not in TRUE | FALSE:
        what = f'--mount: {name} is true or false, not "{value}"'
        raise DockerfileError(what, word=value)
    return value.lower() in TRUE


def number_of(text: str, name: str, base: int = 10) -> int:
    """Return a number of an option. Raises DockerfileError."""
    try:
        value = int(text, base)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32 - 1:
        raise DockerfileError(f'--mount: bad {name} "{text}"', word=text)
    return value


def bytes_of(text: str) -> int:
    """Return the bytes of a size such as 64m. Raises DockerfileError."""
    found = re.fullmatch(r"([0-9]+)\s*([bkmg]?)(?:i?b)?", text.lower())
    if not found:
        raise DockerfileError(
            f'--mount: bad size "{text}"', hint="such as 64m", word=text
        )
    return int(found[1]) * UNITS[found[2]]


# %% Reading a mount
def mount_kind(given: dict[str, str]) -> MountKind:
    """Return the kind that ``type=`` says, bind without one."""
    text = given.get("type", "bind").lower()
    if text == "ssh":
        hint = "give the key as a secret"
        raise UnsupportedError("RUN --mount=type=ssh is not supported", hint=hint)
    known = [kind.value for kind in MountKind]
    if text not in known:
        near = did_you_mean(text, known, other=", ".join(known))
        raise DockerfileError(f'--mount: unknown type "{text}"', hint=near, word=text)
    return MountKind(text)


def read_mount(text: str, expand: Callable[[str], str], directory: str) -> RunMount:
    """Read a ``--mount``; values are expanded, relative targets are in ``directory``.

    Raises DockerfileError for what cannot be meant, UnsupportedError for ssh.
    """
    given = split_options(text)
    for name in given.keys() - {"from", "type"}:
        given[name] = expand(given[name])
    kind = mount_kind(given)
    for name in given:
        if name not in OPTIONS[kind] | {"type"}:
            hint = did_you_mean(name, OPTIONS[kind])
            what = f'--mount: type={kind.value} has no option "{name}"'
            raise DockerfileError(what, hint=hint, word=name)
    target: str = given.get("target", "")
    id: str = given.get("id", "")
    if kind is MountKind.SECRET:
        id = id or posixpath.basename(target)
        if not id:
            raise DockerfileError("--mount: a secret needs an id", hint="id=NAME")
        target = target or ("" if "env" in given else f"/run/secrets/{id}")
    elif not target:
        what = f"--mount: type={kind.value} needs a target"
        raise DockerfileError(what, hint="target=/PATH")
    if target:
        target = clean_path(posixpath.join(directory or "/", target))
    if target == "/":
        raise DockerfileError("--mount: nothing can be mounted on /", word="target")
    return filled(kind, given, target, id or target)


# %% Reading a mount
def filled(kind: MountKind, given: dict[str, str], target: str, id: str) -> RunMount:
    """Return the mount that checked options describe."""
    sharing, known = given.get("sharing", "shared"), [one.value for one in Sharing]
    if sharing not in known:
        hint = did_you_mean(sharing, known, other=", ".join(known))
        raise DockerfileError(f'--mount: unknown sharing "{sharing}"', hint=hint)
    readonly, written = is_true(given, "readonly"), is_true(given, "readwrite")
    return RunMount(
        kind,
        target,
        f"--mount=type={kind.value}"
        + "".join(f",{n}={v}" for n, v in sorted(given.items()) if n != "type"),
        source=given.get("source", ""),
        origin=given.get("from", ""),
        id=id,
        writable=(written or kind is MountKind.CACHE) and not readonly,
        sharing=Sharing(sharing),
        mode=number_of(given["mode"], "mode", 8) if "mode" in given else None,
        owner=(
            number_of(given.get("uid", "0"), "uid"),
            number_of(given.get("gid", "0"), "gid"),
        ),
        size=bytes_of(given.get("size", "0")),
        required=is_true(given, "required"),
        variable=given.get("env", ""),
    )


# %% A cache that outlives the build
@contextmanager
def cache_directory(shop: Workshop, mount: RunMount) -> Iterator[str]:
    """Give the directory of a cache mount, held as its sharing says."""
    home = f"{shop.layers.root}/buildcache/mounts"
    os.makedirs(home, 0o700, exist_ok=True)
    name, number, fd = sha256_text(os.fsencode(mount.id))[7:], 0, None
    shared = mount.sharing is Sharing.SHARED
    while fd is None:
        place = f"{home}/{name}" + (f"-{number}" if number else "")
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        private = mount.sharing is Sharing.PRIVATE
        fd = lock_file(f"{place}.lock", how | (fcntl.LOCK_NB if private else 0))
        number += 1
    try:
        os.utime(fd)  # used now
        if not os.path.isdir(place):
            new_cache(shop, mount, place)
        yield place
    finally:
        os.close(fd)


# %% A cache that outlives the build
def new_cache(shop: Workshop, mount: RunMount, place: str) -> None:
    """Make the directory of a cache, whole and then at once."""
    new = shop.layers.batch.new_path()
    os.mkdir(new)
    if mount.origin:
        with tree_from(shop, mount.origin) as tree:
            source = one_source(tree, clean_source(mount.source or "."))
            copy_sources(tree, [source], new, "/", Manner(owner=None))
    fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        set_owner(fd, mount.owner)
        os.fchmod(fd, 0o755 if mount.mode is None else mount.mode)
    finally:
        os.close(fd)
    try:
        os.rename(new, place)
    except OSError:
        if not os.path.isdir(place):  # another build was quicker
            raise


# %% What is mounted
def content_note(shop: Workshop, mount: RunMount) -> str:
    """Return what a bind shows, for the cache's question; "" for other kinds."""
    if mount.kind is not MountKind.BIND:
        return ""
    stage = shop.find_stage(mount.origin)
    given = context_of(shop, mount.origin) if mount.origin else ""
    image = replaced_image(shop, mount.origin)
    if mount.origin and not image and not given:
        image = stage.image if stage else shop.find_image(mount.origin)
    if image is not None:
        diff_ids = shop.images.get(image).diff_ids if image else ()
        return f" in {chain_id(diff_ids) if diff_ids else 'scratch'}"
    with ExitStack() as stack:
        tree = shop.context
        if given:
            tree = stack.enter_context(tree_from(shop, mount.origin))
        source = one_source(tree, clean_source(mount.source or "."))
        return f" in {digest_of_source(tree, source, shop.index_of(tree))[0]}"


# %% What is mounted
def bound(shop: Workshop, mount: RunMount, stack: ExitStack) -> Shown:
    """Prepare a bind; what it takes is undone when ``stack`` is."""
    if not mount.origin or context_of(shop, mount.origin):
        tree = shop.context
        if mount.origin:
            tree = stack.enter_context(tree_from(shop, mount.origin))
        if not tree.owned:
            place = stack.enter_context(emptied(shop))
            source = one_source(tree, clean_source(mount.source or "."))
            copy_sources(tree, [source], place, "/shown", Manner())
            return Shown(f"{place}/shown", mount.target, not mount.writable)
    else:
        tree = stack.enter_context(tree_from(shop, mount.origin))
    try:
        path = tree.real_path(mount.source or ".")
    except OSError as why:
        what = f'--mount: "{mount.source}" is not in "{mount.origin}"'
        raise BuildError(what) from why
    return Shown(posixpath.join(tree.root, path), mount.target, not mount.writable)


# %% What is mounted
def refuse_secret(mount: RunMount) -> None:
    """Raise BuildError where a secret that was not given must be there."""
    if mount.required or mount.variable:
        hint = f"--secret id={mount.id},src=FILE"
        raise BuildError(f'the secret "{mount.id}" was not given', hint=hint)


def secret_bytes(mount: RunMount, secrets: Mapping[str, Secret]) -> bytes | None:
    """Return a secret; None where it was not given and need not be."""
    secret = secrets.get(mount.id)
    if secret is None:
        refuse_secret(mount)
        return None
    if secret.variable:
        return os.environb.get(os.fsencode(secret.variable), b"")
    try:
        with open(secret.path, "rb") as file:
            return file.read(MOST_OF_A_SECRET)
    except OSError as why:
        raise UsageError(
            f"cannot read the secret: {why.strerror}", where=secret.path
        ) from why


MOST_OF_A_SECRET = 500 * 1024  # bytes, as in Docker


# %% What is mounted
def surround(
    shop: Workshop, command: Command, stack: ExitStack
) -> tuple[Around, dict[str, str]]:
    """Prepare all that is around a command; return it, and secret variables."""
    shown: list[Shown | Fresh | Written] = []
    variables: dict[str, str] = {}
    for mount in command.mounts:
        if mount.kind is MountKind.BIND:
            shown.append(bound(shop, mount, stack))
        elif mount.kind is MountKind.CACHE:
            place = stack.enter_context(cache_directory(shop, mount))
            shown.append(Shown(place, mount.target, not mount.writable))
        elif mount.kind is MountKind.TMPFS:
            shown.append(Fresh(mount.target, mount.size))
        elif (data := secret_bytes(mount, shop.options.secrets)) is not None:
            mode = 0o400 if mount.mode is None else mount.mode
            if mount.target:
                shown.append(Written(mount.target, data, mode, mount.owner))
            if mount.variable:
                variables[mount.variable] = os.fsdecode(data)
    if command.script:
        shown.append(command.script)
    host, joins = command.network == "host", command.network == "default"
    return Around(tuple(shown), host, joins), variables


# %% The command
SCRIPTS = "/dev/pipes"


def command_of(it: Instruction, shell: tuple[str, ...]) -> Command:
    """Return what a RUN runs, its mounts apart."""
    if it.json or not it.heredocs:
        argv = it.args if it.json else (*shell, *it.args)
        return Command(argv, argv)
    line, first = it.args[0], it.heredocs[0]
    whole = line + "".join(f"\n{one.content}{one.name}" for one in it.heredocs)
    if heredoc_mark(line) is None:
        return Command((*shell, whole), (*shell, whole))
    if not first.content.startswith("#!"):
        return Command((*shell, first.content), (*shell, first.content))
    path = f"{SCRIPTS}/{first.name}"
    script = Written(path, first.content.encode(), 0o755)
    return Command((*shell, path), (*shell, whole), script)


# %% The command
def check_run(it: Instruction, stage: Stage) -> None:
    """Refuse a RUN where there is nothing, or with rights that we do not give."""
    if not stage.image:
        hint = "COPY or ADD something first: scratch has no programs"
        raise BuildError("nothing to run in", hint=hint)
    if it.flag("security") == "insecure":
        raise UnsupportedError("RUN --security=insecure is not supported")
    if it.flag("device"):
        hint = "`run --device` gives one to a container"
        raise UnsupportedError("RUN --device is not supported", hint=hint)


def mounts_of(it: Instruction, stage: Stage, shop: Workshop) -> tuple[RunMount, ...]:
    """Return the mounts of a RUN, in order."""
    directory = stage.config.working_dir
    return tuple(
        read_mount(text, lambda word: shop.expand(stage, word), directory)
        for text in it.flag_all("mount")
    )


def run(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """RUN [--mount=...] [--network=...] text for the shell, or ["program", ...]"""
    check_run(it, stage)
    mounts = mounts_of(it, stage, shop)
    network = it.flag("network") or shop.options.network
    command = command_of(it, stage.shell)
    run_step(shop, stage, command.replace(mounts=mounts, network=network))


# %% The step
def shown_command(shop: Workshop, stage: Stage, command: Command) -> tuple[str, ...]:
    """Return the command for history and cache: arguments, mounts, program."""
    arguments = shop.run_arguments(stage)
    declared = sorted(f"{n}={v}" for n, v in arguments.items() if n in stage.args)
    secret = UNDECLARED & set(arguments) - set(stage.args)
    count = (f"|{len(declared)}", *declared) if declared or secret else ()
    notes = tuple(m.text + content_note(shop, m) for m in command.mounts)
    if command.network != shop.options.network:
        notes += (f"--network={command.network}",)
    return (*count, *notes, *command.shown)


def stubs(around: Around) -> tuple[str, ...]:
    """Return the paths that may have been made only to be mounted on.

    >>> stubs(Around((Fresh("/a/b"),)))
    ('/a/b', '/a')
    """
    found: list[str] = []
    for mount in around.mounts:
        path = mount.target
        while path != "/":
            found.append(path)
            path = posixpath.dirname(path)
    return tuple(dict.fromkeys(found))


# %% The step
def run_step(shop: Workshop, stage: Stage, command: Command) -> None:
    """Run a command in a container of the image so far, and commit what it wrote.

    Raises BuildError, with the command's status, when that is not 0.
    """
    cmd = shown_command(shop, stage, command)
    wanted = stage.config.replace(cmd=cmd, entrypoint=None)
    if is_cached(shop, stage, wanted):
        return
    container = begin_container(shop, stage, wanted)
    with ExitStack() as stack:
        around, variables = surround(shop, command, stack)
        name = stack.enter_context(writable_layer(shop, stage.image))
        given = shop.run_arguments(stage) | variables
        env = (*(stage.config.env or ()), *(f"{n}={v}" for n, v in given.items()))
        config = stage.config.replace(cmd=command.argv, entrypoint=None, env=env)
        run_in(shop, name, config, container[:12], around)
        layer = shop.layers.commit_rw(name, stubs(around))
        commit(shop, stage, wanted, container=container, layer=layer)
    end_container(shop, container)


def run_in(
    shop: Workshop, layer: str, config: ContainerConfig, hostname: str, around: Around
) -> None:
    """Run ``config.cmd`` over a read-write layer; BuildError when it fails."""
    argv, view = config.cmd or (), shop.layers.rw_view(layer)
    status = shop.runner.run(view, config, argv, hostname=hostname, around=around)
    if not status:
        return
    if shop.options.shell_on_error:
        shop.runner.shell(shop.layers.rw_view(layer), config, around)
    text = f"The command '{' '.join(argv)}' returned a non-zero code: {status}"
    raise BuildError(text, status=status)
