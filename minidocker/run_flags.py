# From book/659-run-flags.md. Edit there and tangle, or here and tangle --back.

# %% The flags of run, as a table
"""The flags of ``run`` and ``create``, in groups that other commands share."""

from __future__ import annotations

from minidocker.flags import LIST, NUMBER, PROCESS, TEXT, Flag


# %% What it may take
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


# %% What it may do, and where it is
SECURITY_FLAGS = (
    Flag("cap-add", "Add Linux capabilities", takes=LIST),
    Flag("cap-drop", "Drop Linux capabilities", takes=LIST),
    Flag("cgroupns", "Cgroup namespace to use (host|private)", takes=TEXT),
    Flag("device", "Add a host device to the container", takes=LIST),
    Flag("ipc", "IPC mode to use: private, none, host, container:NAME", takes=TEXT),
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


# %% What it may do, and where it is
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


# %% How it is asked
HEALTH_FLAGS = (
    Flag("health-cmd", "Command to run to check health", takes=TEXT),
    Flag("health-interval", "Time between running the check (ms|s|m|h)", takes=TEXT),
    Flag("health-retries", "Consecutive failures for unhealthy", takes=NUMBER),
    Flag("health-start-period", "Time in which failures do not count", takes=TEXT),
    Flag("health-timeout", "Maximum time to allow one check to run", takes=TEXT),
    Flag("no-healthcheck", "Disable any container-specified HEALTHCHECK"),
)


# %% All of them
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
        "Connect to a network: none, host, container:NAME, its name, name=N,alias=A",
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


# %% All of them
RUN_FLAGS = (
    *CREATE_FLAGS,
    Flag("bundle", "Write the OCI bundle to a directory and run nothing", takes=TEXT),
    Flag("dry-run", "Print the OCI bundle's config.json and run nothing"),
    Flag("explain", "Print each system call and why, and run nothing"),
    Flag("detach", "Run container in background and print container ID", "d"),
    Flag("detach-keys", "Override the keys for detaching a container", takes=TEXT),
    Flag("sig-proxy", "Proxy received signals to the process", default="true"),
)
