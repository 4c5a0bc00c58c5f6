# From book/660-run-verb.md. Edit there and tangle, or here and tangle --back.

# %% Run: one verb with a hundred flags
"""``run`` and ``create``: read what was asked for, refuse nonsense, make it."""

from __future__ import annotations

import os
from contextlib import suppress

from minidocker.cgroups import Limits, check_limits, swap_of
from minidocker.container_verbs import (
    Needs,
    label_map,
    open_engine,
)
from minidocker.engine import Engine, Pull
from minidocker.errors import (
    MinidockerError,
    RuntimeFault,
    UsageError,
    did_you_mean,
    recast,
)
from minidocker.flags import (
    Command,
    Flag,
    Given,
    env_lines,
    lines_of,
    need_terminal,
    size,
    wrong,
)
from minidocker.oci import ContainerConfig
from minidocker.program import HostConfig, Network, network_mode
from minidocker.run_flags import CREATE_FLAGS, HEALTH_FLAGS, NETWORK_FLAGS, RUN_FLAGS
from minidocker.security import SHM_SIZE, check_ours
from minidocker.trees import sync_file_system


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from minidocker.containers import Container
    from minidocker.manifests import Platform
    from minidocker.pump import Client


# %% Numbers with units
def billionths(text: str) -> int:
    """Return a number of processors in billionths.

    >>> billionths("1.5"), billionths("")
    (1500000000, 0)
    """
    whole, _, rest = text.partition(".")
    if text and not (whole + rest).isdecimal():
        raise UsageError(f"failed to parse {text} as a rational number")
    if len(rest) > 9:
        raise UsageError(f"value is too precise: {text}")
    return int(whole or 0) * 10**9 + int(rest.ljust(9, "0"))


def limits_of(given: Given, before: Limits | None = None) -> Limits:
    """Return the limits that were asked for, over those from before; checked."""
    asked = {
        "memory": size(given, "memory"),
        "memory_swap": size(given, "memory-swap"),
        "memory_reservation": size(given, "memory-reservation"),
        "nano_cpus": billionths(given.text("cpus")),
        "cpu_shares": given.number("cpu-shares") or 0,
        "cpuset_cpus": given.text("cpuset-cpus"),
        "cpuset_mems": given.text("cpuset-mems"),
        "pids": given.number("pids-limit") or 0,
        "blkio_weight": given.number("blkio-weight") or 0,
    }
    given_ones = {name: value for name, value in asked.items() if value}
    found = check_limits((before or Limits()).replace(**given_ones))
    return found.replace(memory_swap=swap_of(found)) if found.memory else found


# %% Modes
MODES = {  # the words of each flag that mean a namespace of one's own
    "pid": ("private",), "ipc": ("private", "shareable"), "uts": ("private",),
    "userns": (), "cgroupns": ("private",),
}  # fmt: skip
JOINABLE = ("pid", "ipc")


def namespace_mode(engine: Engine, kind: str, text: str) -> str:
    """Return a mode: "", ``host``, ``container:ID``, of IPC also ``none``.

    Raises UsageError for others.
    """
    if text in ("", *MODES[kind]):
        return ""
    if text == "host" or (kind, text) == ("ipc", "none"):
        return text
    if kind in JOINABLE and text.startswith("container:"):
        other = text.partition(":")[2]
        return f"container:{engine.containers.resolve(other).id}"
    hint = "host, or container:NAME" if kind in JOINABLE else "host"
    raise UsageError(f"--{kind}: invalid mode: {text}", hint=hint)


# %% The two halves
def config_of(given: Given) -> ContainerConfig:
    """Return the command line's part of a container's config."""
    streams = attached_streams(given)
    entrypoint = given.flags.get("entrypoint")
    return ContainerConfig(
        hostname=given.text("hostname"),
        domainname=given.text("domainname"),
        user=given.text("user"),
        attach_stdin="stdin" in streams,
        attach_stdout="stdout" in streams,
        attach_stderr="stderr" in streams,
        tty=given.on("tty"),
        open_stdin=given.on("interactive"),
        stdin_once="stdin" in streams and given.on("interactive"),
        env=env_lines(given) or None,
        cmd=given.args[1:] or None,
        working_dir=given.text("workdir"),
        entrypoint=(entrypoint,) if entrypoint else None,
        labels=label_map([*lines_of(given, "label-file"), *given.list("label")]),
        stop_signal=given.text("stop-signal"),
        stop_timeout=given.number("stop-timeout"),
        healthcheck=health_of(given),
        volumes={text: {} for text in given.list("volume") if ":" not in text} or None,
    )


def health_of(given: Given) -> dict[str, Any] | None:
    """Return the health check that the flags ask for, or None for the image's own."""
    if not any(given.flags.get(flag.name) for flag in HEALTH_FLAGS):
        return None
    from minidocker.health import health_flags

    return health_flags(given.flags)


def attached_streams(given: Given) -> set[str]:
    """Return which streams are ours: those of ``-a``, or what suits."""
    asked = {text.lower() for text in given.list("attach")}
    for text in asked - {"stdin", "stdout", "stderr"}:
        why = "valid streams are STDIN, STDOUT and STDERR"
        raise wrong("-a, --attach", text, why)
    if given.on("detach"):
        if asked:
            raise UsageError("conflicting options: -a and -d")
        return set()
    own = {"stdin"} if given.on("interactive") else set()
    return asked or {"stdout", "stderr"} | own


# %% The two halves
def plain_binds(given: Given) -> tuple[str, ...]:
    """Return each ``-v`` that binds a path of the host, unless there are others."""
    texts, targets = given.list("volume"), set[str]()
    for text in texts:
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        targets.add(os.path.normpath(target))
        absolute = source.startswith("/") and target.startswith("/")
        if not absolute or mode not in ("", "ro", "rw"):
            return ()
    return texts if len(targets) == len(texts) and "/" not in targets else ()


def existing_bind(text: str) -> str:
    """Return ``SOURCE:TARGET``; a source that is missing is made."""
    source, _, rest = text.partition(":")
    source = os.path.abspath(source)
    if not os.path.lexists(source):
        os.makedirs(source)
    return f"{source}:{rest}"


# %% The two halves
SOME = (
    "device", "log-driver", "log-opt", "restart", "security-opt", "tmpfs", "ulimit",
)  # fmt: skip
RARE = frozenset((
    "blkio-weight-device", "cpu-period", "cpu-quota", "cpu-rt-period",
    "cpu-rt-runtime", "device-read-bps", "device-read-iops", "device-write-bps",
    "device-write-iops", "disable-content-trust", "isolation", "kernel-memory", "link",
    "memory-swappiness", "oom-kill-disable", "platform", "runtime", "storage-opt",
    "volume-driver",
))  # fmt: skip


def rare_flags() -> tuple[Flag, ...]:
    """Return the flags that few people give; their chapter is loaded only for them."""
    from minidocker.rare_flags import FLAGS

    return FLAGS


def words_of(given: Given) -> HostConfig:
    """Return the words of a command line that need no store, checked."""
    host = with_seldom_words(given, usual_words(given))
    if host.shm_size < 4096:
        raise UsageError("SHM size can not be less than 0")
    host.security  # noqa: B018  unknown capabilities and options are refused here
    return host


def usual_words(given: Given) -> HostConfig:
    """Return the words that every container has, given or not."""
    network, of = network_word(given)
    return HostConfig(
        auto_remove=given.on("rm"),
        network=network,
        network_of=of,
        readonly=given.on("read-only"),
        binds=tuple(map(existing_bind, plain_binds(given))),
        limits=limits_of(given),
        cap_add=given.list("cap-add"),
        cap_drop=given.list("cap-drop"),
        privileged=given.on("privileged"),
        shm_size=size(given, "shm-size") or SHM_SIZE,
        oom_score_adj=oom_score(given),
        init=given.on("init"),
        group_add=given.list("group-add"),
    )


def oom_score(given: Given) -> int:
    """Return ``--oom-score-adj``, in the kernel's range; 0 where it is not given."""
    score = given.number("oom-score-adj") or 0
    if not -1000 <= score <= 1000:
        what = f"invalid value {score}, range for oom score adj is [-1000, 1000]"
        raise UsageError(what)
    return score


def network_word(given: Given) -> tuple[Network, str]:
    """Return the first network of ``--network``, and whose it is."""
    text = (*given.list("network"), "default")[0]
    if "=" in text:
        from minidocker.network_flags import attachment_of

        text = attachment_of(text)[0]
    return network_mode(text)


def with_seldom_words(given: Given, host: HostConfig) -> HostConfig:
    """Add the words whose chapters are loaded only where they are given."""
    if (
        given.list("mount")
        or given.list("volumes-from")
        or (given.list("volume") and not host.binds)
    ):
        from minidocker.mount_flags import with_mounts

        host = with_mounts(given, host)
    if any(given.flags.get(name) for name in SOME):
        from minidocker.flag_words import rare_words

        host = host.replace(**rare_words(given))
    if given.flags.keys() & RARE:
        from minidocker.rare_flags import with_rare

        host = with_rare(given, host)
    return host


# %% The two halves
def host_of(given: Given, words: HostConfig, engine: Engine) -> HostConfig:
    """Return what holds on this host: ``words``, and what names other containers."""
    modes = {f"{k}_mode": namespace_mode(engine, k, given.text(k)) for k in MODES}
    of = words.network_of
    if words.network is Network.CONTAINER and of:
        of = engine.containers.resolve(of).id
    host = words.replace(network_of=of, **modes)
    if given.text("hostname") and host.network is Network.CONTAINER:
        raise UsageError("conflicting options: hostname and the network mode")
    if given.text("hostname") and host.uts_mode:
        raise UsageError("conflicting options: hostname and the UTS mode")
    if host.network is Network.CONTAINER and not of:
        raise UsageError("invalid container format container:<name|id>")
    if given.list("sysctl"):
        from minidocker.flag_words import check_sysctl

        for text in given.list("sysctl"):
            check_sysctl(text, host)
    check_ours(host.cap_add)
    for text in host.links:
        engine.containers.resolve(text.partition(":")[0])
    return host.replace(sysctls=given.list("sysctl"))


# %% The verb
def pull_policy(text: str) -> Pull:
    """Return when an image is to be fetched. Raises UsageError for another word."""
    for one in Pull:
        if one.value == text:
            return one
    hint = did_you_mean(text, [one.value for one in Pull])
    raise UsageError(f'invalid pull option: "{text}"', hint=hint)


def about_network(given: Given, words: HostConfig) -> bool:
    """Say whether a command line asks more of the network than the default."""
    asked = given.list("network")
    if len(asked) > 1 or any("=" in text for text in asked):
        return True
    named = words.network is Network.BRIDGE and words.network_of != "default"
    return named or any(given.flags.get(flag.name) for flag in NETWORK_FLAGS)


# %% The verb
def made(given: Given) -> tuple[Engine, Container]:
    """Make the container that a command line asks for: `create`, and half of `run`.

    What goes wrong leaves nothing.
    """
    config, words = config_of(given), words_of(given)
    networked = about_network(given, words)
    if networked:
        from minidocker import network_flags

        config, words = network_flags.with_network(given, config, words)
    refuse_old_cidfile(given.text("cidfile"))
    platform = platform_of(given.text("platform"))
    engine = open_engine(given, Needs.TREES)
    host = host_of(given, words, engine)
    when = pull_policy(given.text("pull"))
    if networked:
        wishes = network_flags.wishes_given(given)
        network_flags.check_networks(engine, host, wishes)
    name = given.text("name")
    container = engine.create(
        given.args[0], config, host, name, when, platform=platform
    )
    if networked:
        network_flags.keep_wishes(engine, container, wishes)
    if path := given.text("cidfile"):
        with open(path, "x", encoding="ascii") as file:
            file.write(container.id)
    return engine, container


# %% The verb
def platform_of(text: str) -> Platform | None:
    """Return what ``--platform`` names. Raises UsageError."""
    if not text:
        return None
    from minidocker.manifests import parse_platform

    return parse_platform(text)


def refuse_old_cidfile(path: str) -> None:
    """Raise UsageError for a file that is there, or can never be."""
    if not path:
        return
    if os.path.lexists(path):
        hint = f"make sure the other container isn't running, or delete {path}"
        raise UsageError("container ID file found", where=path, hint=hint)
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise UsageError("failed to create the container ID file", where=path)


# %% The verb
def create(given: Given) -> int:
    """``create [OPTIONS] IMAGE [COMMAND] [ARG...]``"""
    try:
        engine, container = made(given)
    except RuntimeFault as why:  # only `run` has statuses of its own for these
        raise recast(why, MinidockerError) from why
    from minidocker.bundling import write_down

    write_down(engine.containers, container)
    if container.host.auto_remove:
        sync_file_system(engine.root)
    print(container.id)
    return 0


def run(given: Given) -> int:
    """``run [OPTIONS] IMAGE [COMMAND] [ARG...]``"""
    need_terminal(given)
    if given.text("detach-keys"):
        from minidocker.attach import key_bytes

        key_bytes(given.text("detach-keys"))
    try:
        return made_and_run(given)
    except MinidockerError as why:
        if why.status != 1:
            raise
        raise recast(why, RuntimeFault) from why


def made_and_run(given: Given) -> int:
    """Make a container and run it; return its status."""
    engine, container = made(given)
    if given.on("dry-run") or given.on("explain") or given.text("bundle"):
        from minidocker.rehearsal import rehearse

        return rehearse(engine, container, given)
    from minidocker.supervisor import run_foreground

    store, client = engine.containers, client_of(container.config)
    if given.on("detach"):
        from minidocker.background import run_detached

        run_detached(store, container)
        print(container.id)
        return 0
    if client.stdout < 0 and client.stderr < 0:
        print(container.id, flush=True)
    if needs_own_supervisor(given, container):
        from minidocker.attach import Detached
        from minidocker.attach_verbs import run_as_guest

        with suppress(Detached):
            return run_as_guest(store, container, client, given)
        return 0
    return run_foreground(store, container, client)


# %% The verb
def client_of(config: ContainerConfig) -> Client:
    """Return our descriptors, of the streams that are attached."""
    from minidocker.pump import Client

    return Client(
        0 if config.attach_stdin else -1,
        1 if config.attach_stdout else -1,
        2 if config.attach_stderr else -1,
    )


def needs_own_supervisor(given: Given, container: Container) -> bool:
    """Say whether this command may end before the container does."""
    config, host = container.config, container.host
    leaves = config.tty and config.attach_stdin
    return leaves or bool(host.restart) or not given.on("sig-proxy")


# %% The verb
COMMANDS = (
    Command(
        "run", "[OPTIONS] IMAGE [COMMAND] [ARG...]", "Run a command in a new container",
        run, RUN_FLAGS, least=1, greedy=True, rare=rare_flags,
        example="minidocker run --rm -it minidocker/base sh",
    ),
    Command(
        "create", "[OPTIONS] IMAGE [COMMAND] [ARG...]", "Create a new container",
        create, CREATE_FLAGS, least=1, greedy=True, rare=rare_flags,
        example="minidocker start -a $(minidocker create minidocker/base date)",
    ),
)  # fmt: skip
