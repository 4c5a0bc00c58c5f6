# From book/680-cli.md. Edit there and tangle, or here and tangle --back.

# %% The command line
"""The command line: which chapter has a command, errors on one line, exit status."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

from minidocker.errors import MinidockerError, WordFault, did_you_mean
from minidocker.flags import (
    LIST,
    TEXT,
    Command,
    Flag,
    Given,
    command_help,
    group_help,
    parse_command,
    parse_flags,
    program_help,
    refused,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Where the commands are
CHAPTERS: dict[str, tuple[str, ...]] = {
    "run_verb": ("run", "create"),
    "container_verbs": ("stop", "restart", "rename", "kill", "rm", "wait"),
    "watch_verbs": ("ps", "logs", "top"),
    "exec_verb": ("exec",),
    "attach_verbs": ("attach", "start"),
    "events": ("events",),
    "copy_verb": ("cp",),
    "volume_verbs": (
        "volume create", "volume ls", "volume inspect", "volume rm", "volume prune",
    ),
    "limit_verbs": ("stats", "update", "pause", "unpause"),
    "network_verbs": (
        "network create", "network ls", "network inspect", "network rm",
        "network prune",
    ),
    "connection_verbs": ("network connect", "network disconnect", "port"),
    "build_verbs": ("build", "context ls"),
    "image_verbs": ("import", "commit", "diff", "export", "info"),
    "look_verbs": ("images", "history", "inspect", "explain", "ids", "lineage"),
    "tidy_verbs": (
        "tag", "rmi", "image prune", "container prune", "builder prune",
        "system prune", "system df",
    ),
    "integrity": ("system check",),
    "ship_verbs": ("save", "load"),
    "registry_verbs": ("pull", "push", "login", "logout"),
    "runtime_verbs": ("runtime",),
    "union_verb": ("union",),
    "cli": ("completion", "version"),
}  # fmt: skip
HOMES = {name: chapter for chapter, names in CHAPTERS.items() for name in names}


def commands_of(chapter: str) -> tuple[Command, ...]:
    """Return the table of a chapter of verbs, which is read now if it was not yet."""
    found: tuple[Command, ...] = import_module(f"minidocker.{chapter}").COMMANDS
    return found


# %% Where the commands are
GROUPS = {
    "builder": "Manage builds",
    "container": "Manage containers",
    "context": "Inspect build contexts",
    "image": "Manage images",
    "network": "Manage networks",
    "system": "Manage minidocker",
    "volume": "Manage volumes",
}
ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("container ls", "container ps", "container list"), ("ps",)),
    "container inspect": ("inspect", "--type", "container"),
    **dict.fromkeys(("image ls", "image list"), ("images",)),
    **dict.fromkeys(("image rm", "image remove"), ("rmi",)),
    "container remove": ("rm",),
    **{
        f"{group} {long}": (f"{group} {short}",)
        for group in ("network", "volume")
        for long, short in (("list", "ls"), ("remove", "rm"))
    },
    "image inspect": ("inspect", "--type", "image"),
    "system info": ("info",),
    "system events": ("events",),
    "container cp": ("cp",),
    **{
        f"container {name}": (name,)
        for chapter in (
            "run_verb",
            "container_verbs",
            "watch_verbs",
            "exec_verb",
            "attach_verbs",
            "limit_verbs",
        )
        for name in (*CHAPTERS[chapter], "commit", "diff", "export", "port")
        if name != "ps"
    },
    **{
        f"image {name}": (name,)
        for name in (
            "build",
            "history",
            "import",
            "load",
            "pull",
            "push",
            "save",
            "tag",
        )
    },
}


# %% Where the commands are
def every_command() -> dict[str, Command]:
    """Return all commands by name; imports every chapter of verbs."""
    return {
        command.name: command
        for chapter in CHAPTERS
        for command in commands_of(chapter)
    }


def find_command(words: list[str]) -> tuple[Command, list[str]]:
    """Return the command that the first words name, and the other words.

    Raises WordFault when there is none.
    """
    name, *rest = words
    if name in GROUPS and rest:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name in ALIASES:
        name, *more = ALIASES[name]
        rest = [*more, *rest]
    for command in commands_of(HOMES[name]) if name in HOMES else ():
        if command.name == name:
            return command, rest
    known = [*HOMES, *ALIASES, *GROUPS]
    hint = did_you_mean(name, known, other="`minidocker --help` lists them")
    raise WordFault(f'"{name}" is not a minidocker command', hint=hint)


# %% Our own commands
def show_completion(given: Given) -> int:
    """``completion bash|zsh|fish``"""
    from minidocker.completion import completion

    print(completion(every_command(), given.args[0], ALIASES))
    return 0


def show_version(given: Given) -> int:
    """``version``"""
    from minidocker import __version__

    if form := given.text("format"):
        from minidocker.values import fill

        print(fill(form, version_fields(__version__)))
        return 0
    print(f"minidocker version {__version__}")
    return 0


def version_fields(version: str) -> dict[str, Any]:
    """Return Docker's fields for the two halves of a program that is one."""
    from minidocker.manifests import host_platform

    here = host_platform()
    half = {"Version": version, "Os": here.os, "Arch": here.architecture}
    more = {"KernelVersion": os.uname().release, "ApiVersion": "1.41"}
    return {"Client": half, "Server": half | more}


# %% Our own commands
COMMANDS = (
    Command(
        "completion", "bash|zsh|fish", "Print the completion script of a shell",
        show_completion, least=1, most=1,
        example="source <(minidocker completion bash)",
    ),
    Command(
        "version", "[OPTIONS]", "Show the version", show_version,
        (
            Flag("format", "Format the output using a template", "f", TEXT),
            refused("kubeconfig", "there is no Kubernetes behind this program"),
        ),
        most=0,
    ),
)  # fmt: skip
GLOBAL_FLAGS = (
    Flag("root", "Directory of the store (or MINIDOCKER_ROOT)", takes=TEXT),
    Flag("driver", "The same as --storage-driver", takes=TEXT),
    Flag("storage-driver", "Of a new store: overlay2, vfs or devicemapper", takes=TEXT),
    Flag("storage-opt", "Option of the storage driver: dm.basesize=10G", takes=LIST),
    Flag("version", "Print version information and quit", "v"),
)


# %% main
def helped(words: list[str]) -> str:
    """Return the help for the words after ``help``, or for none."""
    if not words:
        return program_help(every_command(), GROUPS, GLOBAL_FLAGS)
    if words[0] in GROUPS and words[1:2] in ([], ["--help"], ["-h"]):
        group = words[0]
        names = {name: ALIASES.get(name, (name,))[0] for name in (*HOMES, *ALIASES)}
        return group_help(group, GROUPS[group], names, every_command())
    return command_help(find_command(words)[0])


def before_command(first: Given) -> dict[str, Any]:
    """Return the flags that stood before a command; some have ``--driver`` too.

    A container has a ``--storage-opt`` as well: that of the store is ``driver-opt``.
    """
    found = dict(first.flags)
    for name, meant in (("driver", "storage-driver"), ("storage-opt", "driver-opt")):
        if value := found.pop(name, None):
            found.setdefault(meant, value)
    return found


def dispatch(words: list[str]) -> int:
    """Do what the words of a command line say; return the exit status."""
    first = parse_flags(GLOBAL_FLAGS, words, "", greedy=True)
    named = list(first.args)
    if first.on("version"):
        return show_version(first)
    if named[:1] == ["help"] or not named or first.on("help"):
        print(helped(named[1:]))
        return 0
    if named[0] in GROUPS and named[1:2] in ([], ["--help"], ["-h"]):
        print(helped(named))
        return 0
    command, rest = find_command(named)
    given = parse_command(command, rest)
    if given.on("help"):
        print(command_help(command))
        return 0
    return command.run(given.replace(flags={**before_command(first), **given.flags}))


def main(words: list[str] | None = None) -> int:
    """Run a command line, ours by default; print an error; return the exit status."""
    try:
        status = dispatch(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
    except MinidockerError as why:
        print(f"minidocker: {why}", file=sys.stderr)
        status = why.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is buffered goes nowhere
        status = 141
    except KeyboardInterrupt:
        status = 130
    except OSError as why:
        print(f"minidocker: {os_words(why)}", file=sys.stderr)
        status = 1
    return status


def os_words(why: OSError) -> str:
    """Phrase what the kernel refused as our own errors are phrased.

    >>> os_words(OSError(28, "No space left on device", "/store/tmp/f"))
    '/store/tmp/f: no space left on device\\nhint: `minidocker system prune` frees some'
    """
    if type(why).__str__ is not OSError.__str__ or not why.strerror:
        return str(why)  # strace's line
    named = isinstance(why.filename, (str, bytes)) and why.filename
    where = f"{os.fsdecode(named)}: " if named else ""  # it may be a descriptor
    full = why.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "\nhint: `minidocker system prune` frees some" if full else ""
    return f"{where}{why.strerror.lower()}{hint}"


def end(status: int) -> None:
    """Leave at once: tearing the interpreter down takes longer than a container."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def script() -> None:
    """Be the program ``minidocker``; ``__main__`` has put off looking for cycles.

    What a short life leaves of them may wait: a look at all that was imported so far
    costs a millisecond.
    """
    end(main())
