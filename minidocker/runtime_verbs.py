# From book/666-runtime-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Runtime verbs: a program for programs
"""``runtime``: the OCI runtime's commands, with runc's command line and messages."""

from __future__ import annotations

import os
import sys

from minidocker.documents import Part
from minidocker.errors import (
    ConflictError,
    MinidockerError,
    RuntimeFault,
    UnsupportedError,
    UsageError,
)
from minidocker.flags import (
    LIST,
    NUMBER,
    TEXT,
    Command,
    Flag,
    Given,
    env_lines,
    parse_command,
)
from minidocker.hooks import OCI_VERSION
from minidocker.oci_state import OciContainer, Phase, phase_of
from minidocker.records import parse_json
from minidocker.runtime_views import (
    Log,
    container_given,
    events_verb,
    features_verb,
    list_verb,
    ps_verb,
    root_given,
    state_verb,
    told,
    version_text,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.oci_runtime import Launch
    from minidocker.runtime import Process


# %% How it is launched
def launch_given(given: Given, *, attended: bool = False) -> Launch:
    """Return how a process is to be launched."""
    from minidocker.oci_runtime import Launch

    if given.on("no-pivot"):
        raise UnsupportedError("--no-pivot: a container without pivot_root is not safe")
    return Launch(
        given.text("pid-file"),
        given.text("console-socket"),
        given.number("preserve-fds") or 0,
        not given.on("no-new-keyring"),
        attended,
    )


def attend_to_end(process: Process) -> int:
    """Wait for a process, with its terminal and our signals; return its status."""
    from minidocker.pump import (
        Client,
        Ends,
        pump_process,
        raw_terminal,
        signals_forwarded,
    )

    client = Client()
    with signals_forwarded(process.pidfd), raw_terminal(client, process.terminal):
        if process.terminal >= 0:
            pump_process(process, Ends(), client, None)
        return process.wait()


# %% create, start, run
def create_verb(given: Given) -> int:
    """``create [OPTIONS] ID``"""
    from minidocker.oci_runtime import create

    bundle = given.text("bundle") or "."
    create(root_given(given), given.args[0], bundle, launch_given(given))
    return 0


def start_verb(given: Given) -> int:
    """``start ID``"""
    from minidocker.oci_start import start_created

    start_created(container_given(given))
    return 0


def run_bundle(given: Given) -> int:
    """``run [OPTIONS] ID``"""
    from minidocker.linux import pidfd_open
    from minidocker.oci_life import delete
    from minidocker.oci_runtime import create
    from minidocker.oci_start import start_created
    from minidocker.runtime import Process

    root, bundle = root_given(given), given.text("bundle") or "."
    launch = launch_given(given, attended=not given.on("detach"))
    container, terminal = create(root, given.args[0], bundle, launch)
    goes = not given.on("keep")
    try:
        if given.on("detach"):
            start_created(container)
            goes = False
            return 0
        pid = container.pid
        process = Process(pid, pidfd_open(pid), container.start_time, terminal)
        start_created(container)
        return attend_to_end(process)
    finally:
        if goes:
            delete(root, container.id, force=True)


# %% exec
def process_given(given: Given, container: OciContainer) -> Part:
    """Return the process that ``exec`` is given, by a file or by flags."""
    if path := given.text("process"):
        try:
            with open(path, encoding="utf-8") as file:
                return Part(parse_json(file.read()), "process")
        except (OSError, ValueError) as why:
            raise RuntimeFault(f"cannot read the process: {why}", where=path) from why
    if len(given.args) < 2:
        raise UsageError("process args cannot be empty")
    found = {**container.document.get("process").value}
    env = (*found.get("env", ()), *env_lines(given))
    changes: dict[str, Any] = {"args": list(given.args[1:]), "env": list(env)}
    changes["terminal"] = given.on("tty")
    if given.text("cwd"):
        changes["cwd"] = given.text("cwd")
    if given.on("no-new-privs"):
        changes["noNewPrivileges"] = True
    if given.text("user"):
        changes["user"] = user_given(given)
    if given.list("cap"):
        sets = found.get("capabilities", {})
        keys = ("bounding", "effective", "permitted")
        more = {key: [*sets.get(key, ()), *given.list("cap")] for key in keys}
        changes["capabilities"] = {**sets, **more}
    return Part({**found, **changes}, "process")


def user_given(given: Given) -> dict[str, Any]:
    """Return ``--user UID[:GID]`` and ``--additional-gids`` as a document."""
    uid, _, gid = given.text("user").partition(":")
    more = given.list("additional-gids")
    if not all(n.isdecimal() for n in (uid, gid or "0", *more)):
        raise UsageError(f"invalid user: {given.text('user')}", hint="UID[:GID]")
    groups = [int(number) for number in more]
    return {"uid": int(uid), "gid": int(gid or 0), "additionalGids": groups}


# %% exec
def exec_verb(given: Given) -> int:
    """``exec [OPTIONS] ID [COMMAND [ARG...]]``"""
    from minidocker.oci_exec import execute_in, plan_within

    container = container_given(given)
    if phase_of(container) is Phase.STOPPED:
        raise ConflictError("cannot exec in a stopped container")
    process, launch = process_given(given, container), launch_given(given)
    plan = plan_within(container, process, launch.preserve)
    if plan.spec.tty and given.on("detach") and not launch.console_socket:
        raise UsageError("cannot allocate tty without a console socket")
    started = execute_in(container, plan, launch)
    return 0 if given.on("detach") else attend_to_end(started)


# %% kill, delete, pause, resume, update
def kill_verb(given: Given) -> int:
    """``kill [OPTIONS] ID [SIGNAL]``"""
    from minidocker.blueprint import signal_number
    from minidocker.oci_life import kill_container

    word = given.args[1] if len(given.args) > 1 else "TERM"
    try:
        number = signal_number(word) if word != "0" else 0  # 0: does it run?
    except UsageError as why:
        raise UsageError(f'unknown signal "{word}"', hint=why.hint) from why
    kill_container(container_given(given), number, everyone=given.on("all"))
    return 0


def delete_verb(given: Given) -> int:
    """``delete [OPTIONS] ID``"""
    from minidocker.oci_life import delete

    root, force = root_given(given), given.on("force")
    if force and not os.path.exists(f"{root}/{given.args[0]}/state.json"):
        return 0
    for text in delete(root, given.args[0], force=force):
        log_given(given).error(text)
    return 0


def pause_verb(given: Given) -> int:
    """``pause ID``"""
    from minidocker.oci_life import pause

    pause(container_given(given))
    return 0


def resume_verb(given: Given) -> int:
    """``resume ID``"""
    from minidocker.oci_life import resume

    resume(container_given(given))
    return 0


# %% kill, delete, pause, resume, update
UPDATES = {
    "memory": ("memory", "limit"), "memory-swap": ("memory", "swap"),
    "memory-reservation": ("memory", "reservation"), "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"), "cpu-share": ("cpu", "shares"),
    "cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems"),
    "pids-limit": ("pids", "limit"), "blkio-weight": ("blockIO", "weight"),
}  # fmt: skip
SETS = ("cpuset-cpus", "cpuset-mems")


def resources_given(given: Given) -> Part:
    """Return the new limits: of a file, of standard input for ``-``, or of flags."""
    if path := given.text("resources"):
        try:
            handle = 0 if path == "-" else path
            with open(handle, encoding="utf-8", closefd=path != "-") as file:
                return Part(parse_json(file.read()), "resources")
        except (OSError, ValueError) as why:
            raise RuntimeFault(f"cannot read the limits: {why}", where=path) from why
    found: dict[str, dict[str, Any]] = {}
    for flag, (group, key) in UPDATES.items():
        if text := given.text(flag):
            if flag not in SETS and not text.removeprefix("-").isdecimal():
                raise UsageError(f'invalid value "{text}" for --{flag}')
            value = text if flag in SETS else int(text)
            found.setdefault(group, {})[key] = value
    return Part(found, "resources")


def update_verb(given: Given) -> int:
    """``update [OPTIONS] ID``"""
    from minidocker.oci_life import update

    update(container_given(given), resources_given(given))
    return 0


# %% The table
LAUNCH = (
    Flag("console-socket", "Socket that receives the pty's master", takes=TEXT),
    Flag("pid-file", "File to write the process id to", takes=TEXT),
    Flag("preserve-fds", "Descriptors after 0, 1, 2 to keep", takes=NUMBER),
)
CREATE = (
    *LAUNCH,
    Flag("bundle", "Directory of the bundle", "b", TEXT),
    Flag("no-new-keyring", "Keep the caller's session keyring"),
    Flag("no-pivot", "Not supported: a container is entered by pivot_root"),
)
EXEC = (
    *LAUNCH,
    Flag("additional-gids", "More groups", "g", LIST),
    Flag("cap", "A capability more", "c", LIST),
    Flag("cwd", "Working directory", takes=TEXT),
    Flag("detach", "Leave when the program runs", "d"),
    Flag("env", "Set environment variables", "e", LIST),
    Flag("no-new-privs", "Make the promise of no new privileges"),
    Flag("process", "File with the process as JSON", "p", TEXT),
    Flag("tty", "Allocate a pseudo-TTY", "t"),
    Flag("user", "UID[:GID]", "u", TEXT),
)
FORMAT = Flag("format", "table or json", "f", TEXT)
UPDATE = (
    *(Flag(name, "New limit", takes=TEXT) for name in UPDATES),
    Flag("resources", "File with the limits as JSON, - for standard input", "r", TEXT),
)
VERBS = (
    Command("create", "[OPTIONS] ID", "Create a container", create_verb, CREATE, 1, 1),
    Command(
        "delete", "[OPTIONS] ID", "Remove a container", delete_verb,
        (Flag("force", "Kill it first where it runs", "f"),), 1, 1,
    ),
    Command(
        "events", "[OPTIONS] ID", "Print figures", events_verb,
        (
            Flag("interval", "Time between two of them", "", TEXT, "5s"),
            Flag("stats", "Print them once"),
        ), 1, 1,
    ),
    Command(
        "exec", "[OPTIONS] ID [COMMAND [ARG...]]", "Run one more process",
        exec_verb, EXEC, 1, greedy=True,
    ),
    Command("features", "", "Show what this runtime can do", features_verb, most=0),
    Command(
        "kill", "[OPTIONS] ID [SIGNAL]", "Send a signal", kill_verb,
        (Flag("all", "To every process in the groups", "a"),), 1, 2,
    ),
    Command("list", "[OPTIONS]", "List containers", list_verb,
            (FORMAT, Flag("quiet", "Only the ids", "q")), most=0),
    Command("pause", "ID", "Freeze a container", pause_verb, (), 1, 1),
    Command("ps", "[OPTIONS] ID", "List processes", ps_verb, (FORMAT,), 1, greedy=True),
    Command("resume", "ID", "Let a frozen container go on", resume_verb, (), 1, 1),
    Command(
        "run", "[OPTIONS] ID", "Create and start a container, and wait", run_bundle,
        (
            *CREATE,
            Flag("detach", "Leave when the program runs", "d"),
            Flag("keep", "Do not delete it in the end"),
            Flag("no-subreaper", "Taken for runc's sake"),
        ), 1, 1,
    ),
    Command("start", "ID", "Run a created container's program", start_verb, (), 1, 1),
    Command("state", "ID", "Print a container's state", state_verb, (), 1, 1),
    Command("update", "[OPTIONS] ID", "Change limits", update_verb, UPDATE, 1, 1),
)  # fmt: skip


# %% The table
def log_given(given: Given) -> Log:
    """Return where errors go."""
    return Log(given.text("log"), given.text("log-format") or "text")


def verb_named(words: tuple[str, ...]) -> tuple[Command, list[str]]:
    """Return the command that the first word names, and the other words."""
    for verb in VERBS if words else ():
        if verb.name == words[0]:
            return verb, list(words[1:])
    names = ", ".join(verb.name for verb in VERBS)
    raise UsageError(f'no such command: "{" ".join(words[:1])}"', hint=names)


def why_no_systemd() -> str:
    """Say why --systemd-cgroup is refused, as runc does where no systemd runs."""
    if os.path.isdir("/run/systemd/system"):
        return "systemd is not asked for control groups: we make them ourselves"
    return "systemd not running on this host, cannot use systemd cgroups manager"


def runtime(given: Given) -> int:
    """``runtime [OPTIONS] COMMAND [ARG...]``

    Errors are written as runc does, and the status is 1, or 255 of a failed exec.
    """
    if given.on("version"):
        print(f"minidocker-runtime version {version_text()}\nspec: {OCI_VERSION}")
        return 0
    verb = None
    try:
        if given.on("systemd-cgroup"):
            hint = (
                "use cgroupfs: native.cgroupdriver=cgroupfs, --cgroup-manager=cgroupfs"
            )
            raise UnsupportedError(why_no_systemd(), hint=hint)
        verb, words = verb_named(given.args)
        own = parse_command(verb, words)
        return verb.run(own.replace(flags={**given.flags, **own.flags}))
    except (MinidockerError, OSError) as why:
        log_given(given).error(told(verb.name if verb else "", why))
        return 255 if verb and verb.name == "exec" else 1


COMMANDS = (
    Command(
        "runtime", "[OPTIONS] COMMAND [ARG...]", "Be an OCI runtime, as runc is",
        runtime,
        (
            Flag("debug", "Taken for runc's sake"),
            Flag("log", "File for errors", takes=TEXT),
            Flag("log-format", "text or json", takes=TEXT, default="text"),
            Flag("root", "Where containers are kept", takes=TEXT),
            Flag("rootless", "Taken for runc's sake", takes=TEXT),
            Flag("systemd-cgroup", "Not supported: groups are made by us"),
            Flag("version", "Print the version", "v"),
        ),
        greedy=True,
        example="minidocker runtime run --bundle /srv/box box",
    ),
)  # fmt: skip


# %% The table
def script() -> None:
    """Be the program ``minidocker-runtime``; cycles of so short a life may wait."""
    import gc

    gc.disable()
    try:
        status = COMMANDS[0].run(parse_command(COMMANDS[0], sys.argv[1:]))
        sys.stdout.flush()
    except UsageError as why:
        print(why, file=sys.stderr)
        status = 1
    os._exit(status)
