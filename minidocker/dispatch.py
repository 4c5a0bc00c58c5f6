# From book/37-dispatch.md. Edit there and tangle, or here and tangle --back.

# %% Dispatch: one function for each instruction
"""What each instruction of a Dockerfile does: the dispatchers and their table."""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable
from contextlib import suppress

from minidocker.context import SourceTree
from minidocker.copying import Manner
from minidocker.dockerfile import Instruction, Word
from minidocker.errors import (
    BuildError,
    DockerfileError,
    NotFoundError,
    UnsupportedError,
)
from minidocker.expansion import expand, expand_words
from minidocker.oci import ContainerConfig
from minidocker.stage import (
    Copying,
    Stage,
    Workshop,
    clean_path,
    copy_step,
    directory_step,
    metadata_step,
    run_step,
    writable_layer,
)


# %% Words that Go prints
GO_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
    "\v": "\\v", "\\": "\\\\", '"': '\\"',
}  # fmt: skip


def go_quote(text: str) -> str:
    """Quote a text as Go's ``strconv.Quote``.

    >>> print(go_quote('say "hi"\\n'))
    "say \\"hi\\"\\n"
    """

    def one(char: str) -> str:
        if char in GO_ESCAPES or char.isprintable():
            return GO_ESCAPES.get(char, char)
        code = ord(char)
        if code < 0x80:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(one, text)) + '"'


def quoted_list(words: tuple[str, ...]) -> str:
    """Return ``["a" "b"]``, Go's %q of a list."""
    return "[" + " ".join(map(go_quote, words)) + "]"


def bare_list(words: tuple[str, ...]) -> str:
    """Return ``[a b]``, Go's %v of a list."""
    return "[" + " ".join(words) + "]"


# %% Where a stage comes from
STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


def begin_stage(it: Instruction, shop: Workshop) -> Stage:
    """FROM image|stage|scratch [AS name]"""
    if it.flag("platform"):
        raise UnsupportedError("FROM --platform is not supported")
    base = expand(it.args[0], shop.globals(), shop.escape)
    if not base:
        raise DockerfileError(f'"{it.args[0]}" is empty', hint="give it a --build-arg")
    name = it.args[2].lower() if len(it.args) > 2 else ""
    if name and not STAGE_NAME.fullmatch(name):
        raise DockerfileError(f'bad name for a stage: "{name}"')
    earlier = next((s for s in reversed(shop.stages) if s.name == base.lower()), None)
    if earlier:
        image = earlier.image
    else:
        image = "" if base == "scratch" else shop.images.resolve(base)
    config = shop.images.get(image).config if image else None
    config = config or ContainerConfig()
    if config.on_build:
        raise UnsupportedError(
            f'"{base}" has ONBUILD triggers, which are not supported'
        )
    return Stage(name, image, config)


def declare(
    it: Instruction, args: dict[str, str | None], value_of: Callable[[str], str]
) -> str:
    """Enter the names of an ARG into ``args``; return it as the history shows it."""
    found: dict[str, str | None] = {}
    for word in it.args:
        text, equals, default = word.partition("=")
        name = value_of(text)
        if not name:
            raise DockerfileError(f'"{word}" is not of the form NAME[=VALUE]')
        found[name] = value_of(default) if equals else None
    args.update(found)
    return " ".join(n if v is None else f"{n}={v}" for n, v in found.items())


def declare_before_from(it: Instruction, shop: Workshop) -> None:
    """ARG name[=default] ..., before the first FROM"""
    declare(it, shop.meta_args, lambda text: expand(text, shop.globals(), shop.escape))


def arg(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """ARG name[=default] ..."""
    text = declare(it, stage.args, lambda text: shop.expand(stage, text))
    metadata_step(shop, stage, f"ARG {text}")


# %% Metadata
def merged(old: tuple[str, ...] | None, name: str, value: str) -> tuple[str, ...]:
    """Set one variable in a list of ``NAME=value``; it keeps its place.

    >>> merged(("A=1", "B=2"), "A", "3")
    ('A=3', 'B=2')
    """
    new = f"{name}={value}"
    names = [one.partition("=")[0] for one in old or ()]
    if name not in names:
        return (*(old or ()), new)
    at = names.index(name)
    return (*(old or ())[:at], new, *(old or ())[at + 1 :])


def expanded_pairs(
    it: Instruction, stage: Stage, shop: Workshop
) -> list[tuple[str, str]]:
    """Expand names and values, all with what was set before the instruction."""
    words = [shop.expand(stage, word) for word in it.args]
    return list(zip(words[::2], words[1::2], strict=True))


def env(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """ENV name=value ..., or the old form: ENV name value"""
    text = "ENV"
    for name, value in expanded_pairs(it, stage, shop):
        if not name:
            raise DockerfileError("ENV names can not be blank")
        stage.config = stage.config.replace(env=merged(stage.config.env, name, value))
        text += f" {name}={value}"
    metadata_step(shop, stage, text)


def label(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """LABEL name=value ..."""
    found = expanded_pairs(it, stage, shop)
    labels = {**(stage.config.labels or {}), **dict(found)}
    stage.config = stage.config.replace(labels=dict(sorted(labels.items())))
    metadata_step(shop, stage, " ".join(["LABEL", *(f"{n}={v}" for n, v in found)]))


def maintainer(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """MAINTAINER name <address>"""
    stage.author = it.args[0]
    metadata_step(shop, stage, f"MAINTAINER {it.args[0]}")


def user(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """USER name|uid[:group|gid]"""
    name = shop.expand(stage, it.args[0])
    stage.config = stage.config.replace(user=name)
    metadata_step(shop, stage, f"USER {name}")


def volume(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """VOLUME path ..., or VOLUME ["path", ...]"""
    paths = tuple(shop.expand(stage, path) for path in it.args)
    if "" in paths:
        raise DockerfileError("VOLUME specified can not be an empty string")
    volumes = {**(stage.config.volumes or {}), **{path: {} for path in paths}}
    stage.config = stage.config.replace(volumes=dict(sorted(volumes.items())))
    metadata_step(shop, stage, f"VOLUME {bare_list(paths)}")


# %% Metadata
PORT = re.compile(r"(?:[0-9-]*:)?([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp|sctp))?")


def ports(spec: str) -> list[str]:
    """Return the ports of one EXPOSE word.

    >>> ports("8000-8001/udp")
    ['8000/udp', '8001/udp']
    """
    found = PORT.fullmatch(spec.lower())
    first = int(found[1]) if found else 0
    last = int(found[2] or found[1]) if found else 0
    if not found or not 0 < first <= last <= 65_535:
        raise DockerfileError(f'invalid port "{spec}"', hint="such as 80, 53/udp, 1-9")
    return [f"{port}/{found[3] or 'tcp'}" for port in range(first, last + 1)]


def expose(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """EXPOSE port[-port][/protocol] ..."""
    seen = shop.variables(stage)
    words = [w for a in sorted(it.args) for w in expand_words(a, seen, shop.escape)]
    opened: dict[str, dict[str, str]] = {p: {} for word in words for p in ports(word)}
    exposed = {**(stage.config.exposed_ports or {}), **opened}
    stage.config = stage.config.replace(exposed_ports=dict(sorted(exposed.items())))
    metadata_step(shop, stage, f"EXPOSE {' '.join(words)}")


# %% Metadata
def stopsignal(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """STOPSIGNAL name|number"""
    text = shop.expand(stage, it.args[0])
    name = "SIG" + text.upper().removeprefix("SIG")
    known = set(signal.Signals.__members__) - {"SIG_DFL", "SIG_IGN"}
    late = re.fullmatch(r"SIGRTM(?:IN\+|AX-)[0-9]{1,2}", name)
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not (0 < number < signal.NSIG or name in known or late):
        raise DockerfileError(f'invalid signal "{text}"', hint="such as SIGTERM or 15")
    stage.config = stage.config.replace(stop_signal=text)
    metadata_step(shop, stage, f"STOPSIGNAL {text}")


def shell(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """SHELL ["program", "argument", ...]"""
    if not it.json or not it.args:
        raise DockerfileError("SHELL needs a JSON list", hint='["/bin/bash", "-c"]')
    stage.config = stage.config.replace(shell=it.args)
    metadata_step(shop, stage, f"SHELL {bare_list(it.args)}")


# %% What will run
def command_line(it: Instruction, stage: Stage) -> tuple[str, ...]:
    """Return the program and its arguments; the shell form gets its shell."""
    return it.args if it.json else (*stage.shell, *it.args)


def cmd(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """CMD ["program", "argument", ...], or CMD text for the shell"""
    argv = command_line(it, stage)
    stage.config = stage.config.replace(cmd=argv)
    metadata_step(shop, stage, f"CMD {quoted_list(argv)}")
    stage.cmd_set = bool(it.args)


def entrypoint(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """ENTRYPOINT ["program", "argument", ...], or ENTRYPOINT text for the shell"""
    argv = command_line(it, stage) if it.args else None
    kept = stage.config.cmd if stage.cmd_set else None
    stage.config = stage.config.replace(entrypoint=argv, cmd=kept)
    metadata_step(shop, stage, f"ENTRYPOINT {quoted_list(argv or ())}")


def run(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """RUN text for the shell, or RUN ["program", "argument", ...]"""
    if not stage.image:
        hint = "COPY or ADD something first: scratch has no programs"
        raise BuildError("nothing to run in", hint=hint)
    run_step(shop, stage, command_line(it, stage))


def workdir(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """WORKDIR path, relative to the one before"""
    path = shop.expand(stage, it.args[0])
    if not path:
        raise DockerfileError("WORKDIR is empty")
    if not path.startswith("/"):
        path = clean_path(posixpath.join(stage.config.working_dir, path))
    stage.config = stage.config.replace(working_dir=path)
    directory_step(shop, stage, path)


# %% Files
def number(text: str) -> int | None:
    """Return an id that is written as a number; None for a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    if int(text) >= 2**32 - 1:
        raise BuildError(f'the id "{text}" is out of range')
    return int(text)


def id_of(text: str, table: str, tree: SourceTree) -> int:
    """Return the id of a user or group, by number or by the image's ``table``."""
    found = number(text)
    if found is not None:
        return found
    raw = b""
    with suppress(NotFoundError):
        raw = tree.read(table)
    lines = raw.decode("utf-8", "surrogateescape").splitlines()
    for fields in (line.split(":") for line in lines):
        known = number(fields[2]) if fields[0] == text and len(fields) > 2 else None
        if known is not None:
            return known
    raise BuildError(f'"{text}" is not in the image\'s {table}')


def owner_of(text: str, stage: Stage, shop: Workshop) -> tuple[int, int]:
    """Return the ids that a ``--chown=user[:group]`` means in this stage's image."""
    name, _, group = text.partition(":")
    ids = number(name), number(group or name)
    if ids[0] is not None and ids[1] is not None:
        return ids[0], ids[1]
    with (
        writable_layer(shop, stage.image) as rw,
        shop.layers.rw_mounted(rw) as root,
        SourceTree(root) as tree,
    ):
        return (
            id_of(name, "/etc/passwd", tree),
            id_of(group or name, "/etc/group", tree),
        )


def copying(it: Instruction, stage: Stage, shop: Workshop) -> Copying:
    """Expand a COPY or ADD and read its flags."""
    *sources, to = (shop.expand(stage, word) for word in it.args)
    chown = shop.expand(stage, it.flag("chown") or "")
    chmod = it.flag("chmod") or ""
    if chmod and not re.fullmatch("[0-7]{3,4}", chmod):
        raise DockerfileError(f'bad mode "{chmod}"', hint="octal, such as 0755")
    own = None if it.flag("from") else (0, 0)
    notes = f"--chown={chown}" if chown else ""
    manner = Manner(
        owner=owner_of(chown, stage, shop) if chown else own,
        mode=int(chmod, 8) if chmod else None,
        unpacks=it.word is Word.ADD,
        ignore_owner=shop.layers.driver.rootless,
    )
    notes += f"--chmod={chmod}" if chmod else ""
    return Copying(it.word.value, tuple(sources), to, notes, manner)


def copy(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """COPY [--from=stage|image] [--chown=user[:group]] [--chmod=mode] source ... to"""
    what = copying(it, stage, shop)
    origin = it.flag("from")
    if not origin:
        copy_step(shop, stage, shop.context, what)
        return
    other = shop.find_stage(origin)
    image = other.image if other else shop.images.resolve(origin)
    with (
        writable_layer(shop, image) as rw,
        shop.layers.rw_mounted(rw) as root,
        SourceTree(root, owned=True) as tree,
    ):
        copy_step(shop, stage, tree, what)


def add(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """ADD [--chown=user[:group]] [--chmod=mode] source ... to; unpacks local tars"""
    for source in it.args[:-1]:
        if re.match(r"(https?|ftp|git)://|git@", source):
            hint = "fetch it beforehand, or in a RUN"
            raise UnsupportedError(
                f'ADD of a URL is not supported: "{source}"', hint=hint
            )
    copy_step(shop, stage, shop.context, copying(it, stage, shop))


# %% What is refused
NOT_YET = frozenset({
    "mount", "network", "security", "link", "parents", "exclude", "checksum",
    "keep-git-dir", "unpack", "platform",
})  # fmt: skip


def refusal(it: Instruction) -> str:
    """Say what of an instruction is not supported; "" for nothing."""
    if DISPATCH.get(it.word) is refuse:
        return it.word.value
    flags = (name for name, _ in it.flags if name in NOT_YET)
    if flag := next(flags, ""):
        return f"{it.word.value} --{flag}"
    return f"a here-document of {it.word.value}" if it.heredocs else ""


def refuse(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """HEALTHCHECK and ONBUILD, which would be promises that nobody here keeps"""
    raise UnsupportedError(f"{it.word.value} is not supported", hint="leave it out")


# %% The table
Dispatcher = Callable[[Instruction, Stage, Workshop], None]

DISPATCH: dict[Word, Dispatcher] = {
    Word.ARG: arg,
    Word.ENV: env,
    Word.LABEL: label,
    Word.MAINTAINER: maintainer,
    Word.COPY: copy,
    Word.ADD: add,
    Word.RUN: run,
    Word.CMD: cmd,
    Word.ENTRYPOINT: entrypoint,
    Word.SHELL: shell,
    Word.USER: user,
    Word.WORKDIR: workdir,
    Word.VOLUME: volume,
    Word.EXPOSE: expose,
    Word.STOPSIGNAL: stopsignal,
    Word.HEALTHCHECK: refuse,
    Word.ONBUILD: refuse,
}
