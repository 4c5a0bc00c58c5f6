# From book/660-run-verb.md. Edit there and tangle, or here and tangle --back.

# %% Run: one verb with fifty flags
"""``run`` and ``create``: read what was asked for, refuse nonsense, make it."""

from __future__ import annotations

import os
from contextlib import suppress

from minidocker.cgroups import Limits, check_limits, swap_of
from minidocker.container_verbs import (
    PROCESS,
    Needs,
    env_lines,
    label_map,
    lines_of,
    need_terminal,
    open_engine,
)
from minidocker.engine import Engine, Pull
from minidocker.errors import (
    MinidockerError,
    RuntimeFault,
    UsageError,
    WordFault,
    did_you_mean,
    recast,
)
from minidocker.flags import (
    LIST,
    NUMBER,
    TEXT,
    Command,
    Flag,
    Given,
    size,
    wrong,
)
from minidocker.oci import ContainerConfig
from minidocker.program import HostConfig, Network, network_mode
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
    """Return a mode: "", ``host`` or ``container:ID``; UsageError for others."""
    if text in ("", *MODES[kind]):
        return ""
    if text == "host":
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
    """Return the one network of ``--network``, and whose it is."""
    networks = given.list("network")
    if len(networks) > 1:
        what = "a container is made on one network; these are more"
        hint = "give it another with `network connect`"
        raise WordFault(f"{what}: {', '.join(networks)}", hint=hint)
    return network_mode(networks[0] if networks else "default")


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
    named = words.network is Network.BRIDGE and words.network_of != "default"
    return named or any(given.flags.get(flag.name) for flag in NETWORK_FLAGS)


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
        wish = network_flags.wish_of(given)
        network_flags.check_network(engine, host, wish)
    name = given.text("name")
    container = engine.create(
        given.args[0], config, host, name, when, platform=platform
    )
    if networked:
        network_flags.write_wish(engine, container, wish)
    if path := given.text("cidfile"):
        with open(path, "x", encoding="ascii") as file:
            file.write(container.id)
    return engine, container


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
        engine, container = made(given)
    except MinidockerError as why:
        if why.status != 1:
            raise
        raise recast(why, RuntimeFault) from why
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
LIMIT_FLAGS = (
    Flag(
        "blkio-weight",
        "Block IO (relative weight), between 10 and 1000, or 0",
        takes=NUMBER,
    ),
    Flag("cpu-shares", "CPU shares (relative weight)", "c", NUMBER),
    Flag("cpus", "Number of CPUs", takes=TEXT),
    Flag("cpuset-cpus", "CPUs in which to allow execution (0-3, 0,1)", takes=TEXT),
    Flag("cpuset-mems", "MEMs in which to allow execution (0-3, 0,1)", takes=TEXT),
    Flag("memory", "Memory limit", "m", TEXT),
    Flag("memory-reservation", "Memory soft limit", takes=TEXT),
    Flag("memory-swap", "Limit of memory plus swap: -1 for no end of swap", takes=TEXT),
    Flag(
        "pids-limit", "Limit of processes and threads (-1 for unlimited)", takes=NUMBER
    ),
)
SECURITY_FLAGS = (
    Flag("cap-add", "Add Linux capabilities", takes=LIST),
    Flag("cap-drop", "Drop Linux capabilities", takes=LIST),
    Flag("cgroupns", "Cgroup namespace to use (host|private)", takes=TEXT),
    Flag("device", "Add a host device to the container", takes=LIST),
    Flag("ipc", "IPC mode to use: host or container:NAME", takes=TEXT),
    Flag("oom-score-adj", "Tune host's OOM preferences (-1000 to 1000)", takes=NUMBER),
    Flag("pid", "PID namespace to use: host or container:NAME", takes=TEXT),
    Flag("privileged", "Give extended privileges to this container"),
    Flag("pull", "Fetch the image: always, missing, never", "", TEXT, "missing"),
    Flag("read-only", "Mount the container's root filesystem as read only"),
    Flag("security-opt", "Security Options", takes=LIST),
    Flag("shm-size", "Size of /dev/shm", takes=TEXT),
    Flag("sysctl", "Sysctl options", takes=LIST),
    Flag("tmpfs", "Mount a tmpfs directory", takes=LIST),
    Flag("ulimit", "Ulimit options", takes=LIST),
    Flag("userns", "User namespace to use", takes=TEXT),
    Flag("uts", "UTS namespace to use", takes=TEXT),
)
NETWORK_FLAGS = (
    Flag("add-host", "Add a custom host-to-IP mapping (host:ip)", takes=LIST),
    Flag("dns", "Set custom DNS servers", takes=LIST),
    Flag("dns-option", "Set DNS options", takes=LIST, other="dns-opt"),
    Flag("dns-search", "Set custom DNS search domains", takes=LIST),
    Flag("domainname", "Container NIS domain name", takes=TEXT),
    Flag("expose", "Expose a port or a range of ports", takes=LIST),
    Flag("ip", "IPv4 address (e.g., 172.30.100.104)", takes=TEXT),
    Flag("ip6", "IPv6 address (e.g., 2001:db8::33)", takes=TEXT),
    Flag("mac-address", "Container MAC address (e.g., 92:d0:c6:0a:29:33)", takes=TEXT),
    Flag(
        "network-alias",
        "Add network-scoped alias for the container",
        takes=LIST,
        other="net-alias",
    ),
    Flag("publish", "Publish a container's port(s) to the host", "p", LIST),
    Flag("publish-all", "Publish all exposed ports to random ports", "P"),
)
HEALTH_FLAGS = (
    Flag("health-cmd", "Command to run to check health", takes=TEXT),
    Flag("health-interval", "Time between running the check (ms|s|m|h)", takes=TEXT),
    Flag("health-retries", "Consecutive failures for unhealthy", takes=NUMBER),
    Flag("health-start-period", "Time in which failures do not count", takes=TEXT),
    Flag("health-timeout", "Maximum time to allow one check to run", takes=TEXT),
    Flag("no-healthcheck", "Disable any container-specified HEALTHCHECK"),
)
CREATE_FLAGS = (
    *HEALTH_FLAGS,
    *PROCESS,
    *LIMIT_FLAGS,
    *NETWORK_FLAGS,
    *SECURITY_FLAGS,
    Flag("attach", "Attach to STDIN, STDOUT or STDERR", "a", LIST),
    Flag("cidfile", "Write the container ID to the file", takes=TEXT),
    Flag("entrypoint", "Overwrite the default ENTRYPOINT of the image", takes=TEXT),
    Flag("group-add", "Add additional groups to join", takes=LIST),
    Flag("hostname", "Container host name", "h", TEXT),
    Flag("init", "Run an init that forwards signals and reaps processes"),
    Flag("label", "Set meta data on a container", "l", LIST),
    Flag("label-file", "Read in a line delimited file of labels", takes=LIST),
    Flag("log-driver", "How the output is kept: json-file, local, none", takes=TEXT),
    Flag("log-opt", "Log driver options: max-size=10m, max-file=3", takes=LIST),
    Flag("name", "Assign a name to the container", takes=TEXT),
    Flag(
        "network",
        "Connect to a network: none, host, container:NAME or its name",
        takes=LIST,
        other="net",
    ),
    Flag(
        "restart",
        "Restart policy: no, always, unless-stopped, on-failure[:N]",
        takes=TEXT,
    ),
    Flag("rm", "Automatically remove the container when it exits"),
    Flag("stop-signal", "Signal to stop the container", takes=TEXT),
    Flag("stop-timeout", "Timeout (in seconds) to stop a container", takes=NUMBER),
    Flag("mount", "Attach a filesystem mount to the container", takes=LIST),
    Flag("volume", "Bind mount a volume: [SOURCE:]TARGET[:ro]", "v", LIST),
    Flag("volumes-from", "Mount volumes from the specified container(s)", takes=LIST),
)
RUN_FLAGS = (
    *CREATE_FLAGS,
    Flag("bundle", "Write the OCI bundle to a directory and run nothing", takes=TEXT),
    Flag("dry-run", "Print the OCI bundle's config.json and run nothing"),
    Flag("explain", "Print each system call and why, and run nothing"),
    Flag("detach", "Run container in background and print container ID", "d"),
    Flag("detach-keys", "Override the keys for detaching a container", takes=TEXT),
    Flag("sig-proxy", "Proxy received signals to the process", default="true"),
)
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
