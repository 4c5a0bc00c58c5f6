# From book/65-cli.md. Edit there and tangle, or here and tangle --back.

# %% The command line
"""The command line: the table of commands, errors on the last line, exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from minidocker import container_verbs as box
from minidocker.errors import MinidockerError, UsageError, did_you_mean
from minidocker.flags import (
    Command,
    Flag,
    Given,
    Takes,
    command_help,
    completion,
    parse_command,
    parse_flags,
    program_help,
)


# %% The table
def image(name: str) -> Callable[[Given], int]:
    """Return the command ``name`` of chapter `image-verbs`, imported when called."""

    def run(given: Given) -> int:
        from minidocker import image_verbs

        return int(getattr(image_verbs, name)(given))

    run.__name__ = name
    return run


# %% The table
TEXT, LIST, NUMBER = Takes.TEXT, Takes.LIST, Takes.NUMBER
FORMAT = Flag("format", "Format the output: json, or a template", takes=TEXT)
QUIET = Flag("quiet", "Only show IDs", "q")
NO_TRUNC = Flag("no-trunc", "Don't truncate output")
CHANGE = Flag("change", "Apply Dockerfile instruction to the image", "c", LIST)
PROCESS = (
    Flag("env", "Set environment variables", "e", LIST),
    Flag("env-file", "Read in a file of environment variables", takes=LIST),
    Flag("interactive", "Keep STDIN open", "i"),
    Flag("tty", "Allocate a pseudo-TTY", "t"),
    Flag("user", "Username or UID (format: <name|uid>[:<group|gid>])", "u", TEXT),
    Flag("workdir", "Working directory inside the container", "w", TEXT),
)
RUN_FLAGS = (
    *PROCESS,
    Flag("detach", "Run container in background and print container ID", "d"),
    Flag("entrypoint", "Overwrite the default ENTRYPOINT of the image", takes=TEXT),
    Flag("hostname", "Container host name", "h", TEXT),
    Flag("label", "Set meta data on a container", "l", LIST),
    Flag("name", "Assign a name to the container", takes=TEXT),
    Flag("network", "none (the loopback only) or host", takes=TEXT, default="none"),
    Flag("read-only", "Mount the container's root filesystem as read only"),
    Flag("rm", "Automatically remove the container when it exits"),
    Flag("stop-signal", "Signal to stop the container", takes=TEXT),
    Flag("volume", "Bind mount a volume: SOURCE:TARGET[:ro]", "v", LIST),
)


# %% The table
CONTAINER_COMMANDS = (
    Command(
        "run", "[OPTIONS] IMAGE [COMMAND] [ARG...]", "Run a command in a new container",
        box.run, RUN_FLAGS, least=1, greedy=True,
        example="minidocker run --rm -it minidocker/base sh",
    ),
    Command(
        "exec", "[OPTIONS] CONTAINER COMMAND [ARG...]",
        "Run a command in a running container",
        box.exec_, PROCESS, least=2, greedy=True,
        example="minidocker exec -it web sh",
    ),
    Command(
        "ps", "[OPTIONS]", "List containers", box.ps,
        (
            Flag("all", "Show all containers (default shows just running)", "a"),
            FORMAT,
            Flag("last", "Show n last created containers", "n", NUMBER),
            Flag("latest", "Show the latest created container", "l"),
            NO_TRUNC, QUIET,
            Flag("size", "Display total file sizes", "s"),
        ),
        most=0,
    ),
    Command(
        "logs", "[OPTIONS] CONTAINER", "Fetch the logs of a container", box.logs,
        (
            Flag("follow", "Follow log output", "f"),
            Flag("tail", "Number of lines to show from the end", "n", TEXT, "all"),
            Flag("timestamps", "Show timestamps", "t"),
        ),
        least=1, most=1,
    ),
    Command(
        "stop", "[OPTIONS] CONTAINER [CONTAINER...]", "Stop running containers",
        box.stop,
        (Flag("time", "Seconds to wait before killing it", "t", NUMBER),), least=1,
    ),
    Command(
        "kill", "[OPTIONS] CONTAINER [CONTAINER...]", "Kill running containers",
        box.kill,
        (Flag("signal", "Signal to send to the container", "s", TEXT, "KILL"),),
        least=1,
    ),
    Command(
        "rm", "[OPTIONS] CONTAINER [CONTAINER...]", "Remove containers", box.rm,
        (Flag("force", "Kill and remove a running container", "f"),), least=1,
    ),
    Command(
        "wait", "CONTAINER [CONTAINER...]",
        "Block until containers stop, then print their exit codes",
        box.wait, least=1,
    ),
    Command(
        "diff", "CONTAINER", "Inspect changes to files on a container's filesystem",
        image("diff"), least=1, most=1,
    ),
    Command(
        "export", "[OPTIONS] CONTAINER",
        "Export a container's filesystem as a tar archive", image("export"),
        (Flag("output", "Write to a file, instead of STDOUT", "o", TEXT),),
        least=1, most=1,
    ),
)  # fmt: skip


# %% The table
IMAGE_COMMANDS = (
    Command(
        "build", "[OPTIONS] PATH", "Build an image from a Dockerfile", image("build"),
        (
            Flag("build-arg", "Set build-time variables", takes=LIST),
            Flag("file", "Name of the Dockerfile (default PATH/Dockerfile)", "f", TEXT),
            Flag("no-cache", "Do not use cache when building the image"),
            Flag("quiet", "Print only the image ID", "q"),
            Flag("tag", "Name and optionally a tag (format: name:tag)", "t", LIST),
            Flag("target", "Set the target build stage to build", takes=TEXT),
        ),
        least=1, most=1, example="minidocker build -t web .",
    ),
    Command(
        "import", "[OPTIONS] FILE|- [REPOSITORY[:TAG]]",
        "Import the contents from a tarball to create an image", image("import_"),
        (CHANGE, Flag("message", "Set commit message for the image", "m", TEXT)),
        least=1, most=2, example="tar -C tree -c . | minidocker import - tree:v1",
    ),
    Command(
        "commit", "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
        "Create a new image from a container's changes", image("commit"),
        (
            Flag("author", "Author", "a", TEXT), CHANGE,
            Flag("message", "Commit message", "m", TEXT),
        ),
        least=1, most=2,
    ),
    Command(
        "images", "[OPTIONS] [REPOSITORY[:TAG]]", "List images", image("images"),
        (
            Flag("all", "Show all images (default hides intermediate images)", "a"),
            FORMAT, NO_TRUNC, QUIET,
        ),
        most=1,
    ),
    Command(
        "history", "[OPTIONS] IMAGE", "Show the history of an image", image("history"),
        (
            FORMAT,
            Flag("human", "Print sizes and dates in human readable format", "H"),
            NO_TRUNC, QUIET,
        ),
        least=1, most=1,
    ),
    Command(
        "lineage", "[OPTIONS] IMAGE", "Draw an image's layers and ancestors",
        image("lineage"),
        (
            Flag("diff", "Show the image JSON beside its parent's"),
            Flag("format", "text, dot or svg", takes=TEXT, default="text"),
            Flag("output", "Write the picture to a file (.svg or .dot)", "o", TEXT),
        ),
        least=1, most=1,
    ),
    Command(
        "tag", "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
        "Create a tag that refers to an image", image("tag"), least=2, most=2,
    ),
    Command(
        "rmi", "[OPTIONS] IMAGE [IMAGE...]", "Remove images", image("rmi"),
        (Flag("force", "Force removal of the image", "f"),), least=1,
    ),
)  # fmt: skip


# %% The table
def show_completion(given: Given) -> int:
    """``completion bash|zsh|fish``"""
    print(completion(COMMANDS, given.args[0]))
    return 0


def show_version(given: Given) -> int:
    """``version``"""
    from minidocker import __version__

    print(f"minidocker version {__version__}")
    return 0


OTHER_COMMANDS = (
    Command(
        "inspect", "[OPTIONS] NAME|ID [NAME|ID...]",
        "Return low-level information on containers and images", image("inspect"),
        (
            Flag("format", "Format the output: json, or a template", "f", TEXT),
            Flag("type", "container or image", takes=TEXT),
        ),
        least=1,
    ),
    Command(
        "info", "[OPTIONS]", "Say what this kernel and this user allow", image("info"),
        (Flag("format", "Format the output: json, or a template", "f", TEXT),), most=0,
    ),
    Command(
        "completion", "bash|zsh|fish", "Print the completion script of a shell",
        show_completion, least=1, most=1,
        example="source <(minidocker completion bash)",
    ),
    Command("version", "", "Show the version", show_version, most=0),
)  # fmt: skip
COMMANDS = {
    command.name: command
    for command in (*CONTAINER_COMMANDS, *IMAGE_COMMANDS, *OTHER_COMMANDS)
}
GLOBAL_FLAGS = (
    Flag("root", "Directory of the store (or MINIDOCKER_ROOT)", takes=TEXT),
    Flag("driver", "Storage driver of a new store", takes=TEXT),
    Flag("version", "Print version information and quit", "v"),
)


# %% main
def dispatch(words: list[str]) -> int:
    """Do what the words of a command line say; return the exit status."""
    first = parse_flags(GLOBAL_FLAGS, words, "", greedy=True)
    if first.on("version"):
        return show_version(first)
    if first.args == ("help",) or not first.args or first.on("help"):
        print(program_help(COMMANDS, GLOBAL_FLAGS))
        return 0
    name, *rest = first.args
    if name == "help":
        name, rest = rest[0], ["--help"]
    command = COMMANDS.get(name)
    if command is None:
        hint = did_you_mean(name, COMMANDS, other="`minidocker --help` lists them")
        raise UsageError(f'"{name}" is not a minidocker command', hint=hint)
    given = parse_command(command, rest)
    if given.on("help"):
        print(command_help(command))
        return 0
    return command.run(given.replace(flags={**first.flags, **given.flags}))


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
        print(f"minidocker: {why}", file=sys.stderr)
        status = 1
    return status


def end(status: int) -> None:
    """Leave at once: tearing the interpreter down takes longer than a container."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def script() -> None:
    """Be the program ``minidocker``."""
    end(main())
