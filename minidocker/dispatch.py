# From book/360-dispatch.md. Edit there and tangle, or here and tangle --back.

# %% Dispatch: one function for each instruction
"""What each instruction of a Dockerfile does: the dispatchers and their table."""

from __future__ import annotations

import posixpath
import re
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress

from minidocker.addresses import FOREIGN, SCHEMES, check_checksum, tree_of_address
from minidocker.commits import writable_layer
from minidocker.context import SourceTree
from minidocker.dockerfile import Instruction, Word, duration, trigger_text
from minidocker.errors import BuildError, DockerfileError, NotFoundError
from minidocker.expansion import expand_words
from minidocker.go_words import bare_list, go_duration, go_quote, go_rune, quoted_list
from minidocker.linked import files_step
from minidocker.manner import Manner, symbolic_mode
from minidocker.moves import Copying, Origin, clean_path, directory_step, metadata_step
from minidocker.outside import tree_from, tree_of_texts
from minidocker.patterns import read_patterns
from minidocker.running import run
from minidocker.stage import Stage, Workshop


# %% Arguments
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


# %% Metadata
def maintainer(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """MAINTAINER name <address>, which a LABEL says better"""
    better = "LABEL org.opencontainers.image.authors"
    shop.progress(f"[Warning] MAINTAINER is deprecated: write {better}")
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


def workdir(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """WORKDIR path, relative to the one before"""
    set_workdir(it, stage, shop)
    directory_step(shop, stage, stage.config.working_dir)


def set_workdir(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """Set the working directory, and make none."""
    path = shop.expand(stage, it.args[0])
    if not path:
        raise DockerfileError("WORKDIR is empty")
    if not path.startswith("/"):
        path = clean_path(posixpath.join(stage.config.working_dir, path))
    stage.config = stage.config.replace(working_dir=path)


# %% Files
def number(text: str) -> int | None:
    """Return an id that is written as a number; None for a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    if int(text) >= 2**32 - 1:
        raise BuildError(f'the id "{text}" is out of range')
    return int(text)


def id_of(text: str, table: str, tree: SourceTree, column: int = 2) -> int:
    """Return the id of a user or group, by number or by the image's ``table``."""
    found = number(text)
    if found is not None:
        return found
    raw = b""
    with suppress(NotFoundError):
        raw = tree.read(table)
    lines = raw.decode("utf-8", "surrogateescape").splitlines()
    for fields in (line.split(":") for line in lines):
        named = fields[0] == text and len(fields) > column
        known = number(fields[column]) if named else None
        if known is not None:
            return known
    raise BuildError(f'"{text}" is not in the image\'s {table}')


# %% Files
def owner_of(text: str, stage: Stage, shop: Workshop) -> tuple[int, int]:
    """Return the ids that a ``--chown=user[:group]`` means in this stage's image."""
    name, _, group = text.partition(":")
    name = name or "0"
    ids = number(name), number(group or name)
    if ids[0] is not None and ids[1] is not None:
        return ids[0], ids[1]
    with (
        writable_layer(shop, stage.image) as rw,
        shop.layers.rw_mounted(rw) as root,
        SourceTree(root) as tree,
    ):
        uid = id_of(name, "/etc/passwd", tree)
        try:
            return uid, id_of(group or name, "/etc/group", tree)
        except BuildError:
            if group:
                raise
            return uid, id_of(name, "/etc/passwd", tree, column=3)


def mode_of(text: str) -> int | str | None:
    """Return the mode of a ``--chmod``, None for none. Raises DockerfileError."""
    if re.fullmatch("[0-7]{1,4}|0[0-7]{4}", text):
        return int(text, 8)
    if text:
        symbolic_mode(text, 0)  # raises for what is no mode
    return text or None


def manner_of(it: Instruction, stage: Stage, shop: Workshop) -> tuple[Manner, str]:
    """Return how files arrive, and the flags as the history shows them."""
    chown = shop.expand(stage, it.flag("chown") or "")
    chmod = shop.expand(stage, it.flag("chmod") or "")
    own = None if it.flag("from") else (0, 0)
    manner = Manner(
        owner=owner_of(chown, stage, shop) if chown else own,
        mode=mode_of(chmod),
        ignore_owner=shop.layers.driver.rootless,
        link=it.is_on("link"),
    )
    notes = f"--chown={chown}" if chown else ""
    notes += f"--chmod={chmod}" if chmod else ""
    switches = ("link", "parents", "unpack")
    return manner, notes + "".join(f"--{n}" for n in switches if it.is_on(n))


# %% Files
def copying(
    it: Instruction, stage: Stage, shop: Workshop, origins: tuple[Origin, ...]
) -> Copying:
    """Return what a COPY or ADD does with its sources."""
    manner, notes = manner_of(it, stage, shop)
    exclude = (shop.expand(stage, word) for word in it.flag_all("exclude"))
    return Copying(
        it.word.value,
        origins,
        shop.expand(stage, it.args[-1]),
        notes,
        manner,
        read_patterns("\n".join(exclude), "--exclude"),
        it.is_on("parents"),
    )


# %% Files
def sources_of(it: Instruction, stage: Stage, shop: Workshop) -> list[str]:
    """Return the words for the sources, expanded but for here-documents.

    Raises DockerfileError for a ``--checksum`` that is none, or of no address.
    """
    words = [w if it.heredoc(w) else shop.expand(stage, w) for w in it.args[:-1]]
    if it.flag("checksum") is not None:
        if len(words) > 1 or not is_address(it, words[0]):
            raise DockerfileError("--checksum is for one address", word="--checksum")
        checksum_of(it, stage, shop)
    return words


def checksum_of(it: Instruction, stage: Stage, shop: Workshop) -> str:
    """Return the ``--checksum`` of an ADD, expanded, "" without one.

    Raises DockerfileError where it is none: also where a variable left it empty.
    """
    text = it.flag("checksum")
    return "" if text is None else check_checksum(shop.expand(stage, text), text)


def is_address(it: Instruction, source: str) -> bool:
    """Say whether a source is fetched."""
    return it.word is Word.ADD and source.startswith((*SCHEMES, *FOREIGN))


def origins_of(
    it: Instruction, stage: Stage, shop: Workshop, tree: SourceTree, stack: ExitStack
) -> tuple[Origin, ...]:
    """Return the sources, in order; paths are in ``tree``."""
    unpacks = it.word is Word.ADD and it.flag("unpack") != "false"
    found: list[Origin] = []
    for word in sources_of(it, stage, shop):
        if document := it.heredoc(word):
            made = stack.enter_context(tree_of_texts(shop, stage, (document,)))
            found.append(Origin(made, (document.name,)))
        elif is_address(it, word):
            found.append(address_origin(it, word, stage, shop, stack))
        else:
            found.append(Origin(tree, (word,), unpacks))
    return tuple(found)


def address_origin(
    it: Instruction, url: str, stage: Stage, shop: Workshop, stack: ExitStack
) -> Origin:
    """Fetch what an ADD names; it is unpacked only where ``--unpack`` says so."""
    to, checksum = shop.expand(stage, it.args[-1]), checksum_of(it, stage, shop)
    tree, name = stack.enter_context(tree_of_address(shop, url, to, checksum))
    return Origin(tree, (name,), it.is_on("unpack"))


# %% Files
def copy(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """COPY [--from=stage|image] [--chown=user[:group]] [--chmod=mode] [--link]
    [--parents] [--exclude=pattern ...] source|<<text ... to
    """
    with ExitStack() as stack:
        tree = shop.context
        if origin := it.flag("from"):
            tree = stack.enter_context(tree_from(shop, origin))
        origins = origins_of(it, stage, shop, tree, stack)
        files_step(shop, stage, copying(it, stage, shop, origins))


def add(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """ADD [--checksum=digest] [--unpack=true|false] and the flags of COPY
    source|address|<<text ... to; unpacks local tars
    """
    with ExitStack() as stack:
        origins = origins_of(it, stage, shop, shop.context, stack)
        files_step(shop, stage, copying(it, stage, shop, origins))


# %% For later
HEALTH = {
    "Interval": "interval", "Timeout": "timeout", "StartPeriod": "start-period",
    "StartInterval": "start-interval",
}  # fmt: skip


def healthcheck(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """HEALTHCHECK [--interval=... --timeout=... --retries=N] CMD command, or NONE"""
    old = stage.config.healthcheck or {}
    if old.get("Test", ["NONE"])[0] != "NONE":
        note = f"Note: overriding previous HEALTHCHECK: {bare_list(tuple(old['Test']))}"
        shop.progress(note)
    kind, *command = it.args
    shown = "CMD" if it.json else "CMD-SHELL"
    test = (shown, *command) if kind == "CMD" else ("NONE",)
    times = {key: duration(it.flag(name) or "0") for key, name in HEALTH.items()}
    retries = int(it.flag("retries") or 0)
    health = {"Test": list(test), **times, "Retries": retries}
    kept = {key: value or old.get(key) for key, value in health.items()}
    kept = {key: value for key, value in kept.items() if value}
    stage.config = stage.config.replace(healthcheck=kept)
    told = (go_quote(go_duration(times[key])) for key in list(HEALTH)[:3])
    text = " ".join([quoted_list(test), *told, go_rune(retries)])
    metadata_step(shop, stage, f"HEALTHCHECK &{{{text}}}")


def onbuild(it: Instruction, stage: Stage, shop: Workshop) -> None:
    """ONBUILD instruction"""
    text = trigger_text(it)
    triggers = (*(stage.config.on_build or ()), text)
    stage.config = stage.config.replace(on_build=triggers)
    metadata_step(shop, stage, f"ONBUILD {text}")


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
    Word.HEALTHCHECK: healthcheck,
    Word.ONBUILD: onbuild,
}
