# From book/414-security.md. Edit there and tangle, or here and tangle --back.

# %% Security: root, but not quite
"""What a container's processes may do and see: capabilities, calls, hidden paths."""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache

from minidocker.calls import SysError
from minidocker.cgroups import Group
from minidocker.errors import RuntimeFault, UsageError, did_you_mean
from minidocker.linux import Capability, Prctl, capget, prctl
from minidocker.mounts import MountFlags
from minidocker.namespaces import (
    QUIET,
    Bind,
    Device,
    Filesystem,
    Link,
    Mask,
    MountStep,
    ReadOnly,
    Sysctl,
)
from minidocker.records import Record
from minidocker.seccomp import (
    ALLOW,
    REFUSE,
    UNKNOWN,
    X86,
    Compare,
    Machine,
    Op,
    Profile,
    Rule,
    compile_profiles,
    load_filter,
    this_machine,
)


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


# %% Capabilities
KEPT = frozenset(
    (
        Capability.CHOWN, Capability.DAC_OVERRIDE, Capability.FSETID,
        Capability.FOWNER, Capability.MKNOD, Capability.NET_RAW, Capability.SETGID,
        Capability.SETUID, Capability.SETFCAP, Capability.SETPCAP,
        Capability.NET_BIND_SERVICE, Capability.SYS_CHROOT, Capability.KILL,
        Capability.AUDIT_WRITE,
    )
)  # fmt: skip


def mask_of(capabilities: Iterable[Capability]) -> int:
    """Return capabilities as bits.

    >>> hex(mask_of([Capability.CHOWN, Capability.KILL]))
    '0x21'
    """
    return sum(1 << capability for capability in set(capabilities))


DOCKER_CAPABILITIES, ALL_CAPABILITIES = mask_of(KEPT), mask_of(Capability)


# %% Capabilities
def capability(name: str, flag: str) -> Capability:
    """Return a capability by its name on the command line.

    >>> capability("cap_net_admin", "CapAdd").name
    'NET_ADMIN'
    """
    short = name.upper().removeprefix("CAP_")
    found = Capability.__members__.get(short)
    if found is None:
        hint = did_you_mean(short, Capability.__members__)
        raise UsageError(
            f'invalid {flag}: unknown capability: "CAP_{short}"', hint=hint
        )
    return found


def capability_mask(add: Iterable[str], drop: Iterable[str]) -> int:
    """Return the mask that the two flags ask for.

    >>> hex(capability_mask(["NET_ADMIN"], ["ALL"]))
    '0x1000'
    """
    added, dropped = [n.upper() for n in add], [n.upper() for n in drop]
    plus = mask_of(capability(n, "CapAdd") for n in added if n != "ALL")
    minus = mask_of(capability(n, "CapDrop") for n in dropped if n != "ALL")
    if "ALL" in added:
        return ALL_CAPABILITIES & ~minus
    if "ALL" in dropped:
        return plus
    return DOCKER_CAPABILITIES & ~minus | plus


# %% Docker's list of calls
GIVEN_WITH = {
    Capability.SYS_ADMIN: "bpf clone3 fanotify_init fsconfig fsmount fsopen fspick "
    "lookup_dcookie mount mount_setattr move_mount open_tree open_tree_attr "
    "perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog "
    "umount umount2 unshare",
    Capability.BPF: "bpf",
    Capability.DAC_READ_SEARCH: "open_by_handle_at",
    Capability.PERFMON: "perf_event_open",
    Capability.SYS_BOOT: "reboot",
    Capability.SYS_CHROOT: "chroot",
    Capability.SYS_MODULE: "delete_module finit_module init_module",
    Capability.SYS_NICE: "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    Capability.SYS_PACCT: "acct",
    Capability.SYS_PTRACE: "kcmp pidfd_getfd process_madvise",
    Capability.SYS_RAWIO: "ioperm iopl",
    Capability.SYS_TIME: "clock_settime clock_settime64 settimeofday stime",
    Capability.SYS_TTY_CONFIG: "vhangup",
    Capability.SYSLOG: "syslog",
}
NEVER = """
_sysctl add_key afs_syscall create_module file_getattr file_setattr get_kernel_syms
getpmsg io_uring_enter io_uring_register io_uring_setup kexec_file_load kexec_load
keyctl listns lsm_get_self_attr lsm_list_modules lsm_set_self_attr migrate_pages
move_pages nfsservctl pivot_root putpmsg query_module request_key security swapoff
swapon sysfs tuxcall uselib userfaultfd ustat vserver
"""
NEVER_386 = """
bdflush break ftime gtty idle lock mpx nice oldfstat oldlstat oldolduname oldstat
olduname prof profil readdir sgetmask sigaction signal sigpending sigsuspend ssetmask
stty ulimit vm86 vm86old
"""


# %% Docker's list of calls
NEW_NAMESPACES = 0x7E02_0000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
AF_ALG, AF_VSOCK = 38, 40
OTHER_FAMILIES = (
    Compare(0, Op.LT, AF_ALG), Compare(0, Op.EQ, 39), Compare(0, Op.GT, AF_VSOCK),
)  # fmt: skip
PERSONALITIES = (0, 0x8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)  # the last one only asks


@lru_cache(4)  # asked for twice: to be loaded, and to be written down
def docker_profile(capabilities: int, machine: Machine) -> Profile:
    """Return Docker's default profile for a mask of capabilities."""
    given = {
        name
        for capability, names in GIVEN_WITH.items()
        if capabilities >> capability & 1
        for name in names.split()
    }
    withheld = {name for names in GIVEN_WITH.values() for name in names.split()}
    decided = {"clone", "personality", "socket"}
    if "unshare" in given:
        decided.remove("clone")
    refused = (withheld - given) | decided | set(NEVER.split())
    if machine is X86:
        refused.update(NEVER_386.split())
    allowed = tuple(name for name in machine.numbers() if name not in refused)
    rules = [Rule(allowed, ALLOW), *decided_by_argument("clone" in decided)]
    if "clone3" not in given:
        rules.append(Rule(("clone3",), UNKNOWN))
    return Profile(REFUSE, tuple(rules))


def decided_by_argument(clone: bool) -> Iterable[Rule]:
    """Yield the rules that look at an argument."""
    if clone:
        same = Compare(0, Op.MASKED_EQ, NEW_NAMESPACES, 0)
        yield Rule(("clone",), ALLOW, (same,))
    for number in PERSONALITIES:
        yield Rule(("personality",), ALLOW, (Compare(0, Op.EQ, number),))
    for family in OTHER_FAMILIES:
        yield Rule(("socket",), ALLOW, (family,))


# %% One record
UNCONFINED = "unconfined"
APPARMOR = "/sys/module/apparmor/parameters/enabled"
SELINUX = "/sys/fs/selinux/enforce"


class Security(Record):
    """What a process in a container may do.

    ``capabilities`` is a mask. ``seccomp`` is empty for Docker's profile,
    ``unconfined``, or a profile's JSON. ``masked`` false shows all of /proc and /sys.
    ``privileged`` gives the host's devices, and /sys for writing. ``profile`` is
    AppArmor's, empty for the default. ``filter_for`` is the
    mask that the filter is made for, where that is another one; ``program`` is the
    filter itself, once ``prepared`` has made it.
    """

    capabilities: int = DOCKER_CAPABILITIES
    seccomp: str = ""
    no_new_privileges: bool = False
    masked: bool = True
    privileged: bool = False
    profile: str = ""
    filter_for: int | None = None
    program: bytes | None = None


DOCKER_SECURITY = Security()
PRIVILEGED = Security(ALL_CAPABILITIES, UNCONFINED, masked=False, privileged=True)


# %% One record
def security_option(security: Security, text: str) -> Security:
    """Return ``security`` changed by one ``--security-opt``.

    Raises UsageError for one that is not known, or that we cannot keep.
    """
    mark = min((m for m in "=:" if m in text), key=text.index, default="=")
    name, _, value = text.partition(mark)
    if name == "no-new-privileges" and value in ("", "true", "false"):
        return security.replace(no_new_privileges=value != "false")
    if name == "seccomp" and value:
        return security.replace(seccomp="" if value == "builtin" else value)
    if text in ("systempaths=unconfined", "systempaths:unconfined"):
        return security.replace(masked=False)
    if name == "apparmor" and value:
        return security.replace(profile=value)
    if name == "label" and (value == "disable" or not os.path.exists(SELINUX)):
        return security
    hint = "apparmor, label, no-new-privileges, seccomp, systempaths"
    raise UsageError(f'invalid --security-opt: "{text}"', hint=hint)


def make_security(
    add: Iterable[str] = (),
    drop: Iterable[str] = (),
    options: Iterable[str] = (),
    *,
    privileged: bool = False,
) -> Security:
    """Return the record for a command line; raises UsageError for nonsense.

    ``privileged`` wins over ``add`` and ``drop``, which are still checked.
    """
    mask = capability_mask(add, drop)
    security = PRIVILEGED if privileged else Security(mask)
    for text in options:
        security = security_option(security, text)
    return security


# %% What is hidden
MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = (
    Link("fd", "/proc/self/fd"), Link("stdin", "/proc/self/fd/0"),
    Link("stdout", "/proc/self/fd/1"), Link("stderr", "/proc/self/fd/2"),
    Link("core", "/proc/kcore"), Link("ptmx", "pts/ptmx"),
)  # fmt: skip


# %% What is hidden
def has_one_group() -> bool:
    """Say whether the group of terminals, 5, may not exist in our user namespace."""
    with open("/proc/self/gid_map", "rb") as file:
        return sum(int(line.split()[2]) for line in file) == 1


SHM_SIZE = 64 << 20  # bytes


def docker_mounts(
    *,
    rootless: bool = False,
    shared: Iterable[str] = (),
    shm_size: int = SHM_SIZE,
    sysctls: tuple[Sysctl, ...] = (),
    masked: bool = True,
    privileged: bool = False,
    group: Group | None = None,
) -> tuple[MountStep, ...]:
    """Return what Docker mounts in every container, in order.

    ``shared`` names the namespaces that are not the container's own.
    """
    gid = "" if rootless and has_one_group() else ",gid=5"
    pts = f"newinstance,ptmxmode=0666,mode=0620{gid}"
    readonly = MountFlags(0) if privileged else MountFlags.RDONLY
    sysfs = Filesystem("/sys", "sysfs", QUIET | readonly)
    no_devices = MountFlags.NOSUID | (MountFlags(0) if privileged else MountFlags.NODEV)
    return (
        Filesystem("/proc", "proc", QUIET),
        Filesystem("/dev", "tmpfs", no_devices, "mode=755,size=65536k"),
        Filesystem("/dev/pts", "devpts", MountFlags.NOSUID | MountFlags.NOEXEC, pts),
        *ipc_mounts("ipc" in shared, shm_size),
        Bind("/sys", "/sys", readonly=True) if rootless and "net" in shared else sysfs,
        *map(Device, host_devices() if privileged else DEVICES),
        *LINKS,
        *cgroup_mounts(group, QUIET | readonly),
        *sysctls,
        *(hidden_paths() if masked else ()),
    )


def ipc_mounts(shared: bool, shm_size: int) -> tuple[MountStep, ...]:
    """Return the mounts of the IPC namespace: queues and shared memory, or 0 of it."""
    queues = Filesystem("/dev/mqueue", "mqueue", QUIET)
    if shared:
        return queues, Bind("/dev/shm", "/dev/shm")  # noqa: S108
    if not shm_size:
        return (queues,)
    size = f"mode=1777,size={shm_size >> 10}k"
    memory = Filesystem("/dev/shm", "tmpfs", QUIET, size, source="shm")  # noqa: S108
    return queues, memory


# %% What is hidden
def cgroup_mounts(group: Group | None, flags: MountFlags) -> tuple[MountStep, ...]:
    """Return the mounts that show a container its groups; none where it has none.

    In version 1 the tree of "cpu,cpuacct" is asked for by that very list.
    """
    if group is None or not group.places:
        return ()
    top = "/sys/fs/cgroup"
    if group.version == 2:
        return (Filesystem(top, "cgroup2", flags),)
    names = dict.fromkeys(place.split("/")[-3] for _, place in group.places)
    trees = (Filesystem(f"{top}/{name}", "cgroup", flags, name) for name in names)
    return (Filesystem(top, "tmpfs", QUIET, "mode=755"), *trees, ReadOnly(top))


# %% What is hidden
def host_devices() -> list[str]:
    """Return the names of all devices of the host but terminals, for --privileged."""
    with os.scandir("/dev") as entries:
        kinds = {e.name: e.stat(follow_symlinks=False).st_mode for e in entries}
    nodes = (n for n, m in kinds.items() if stat.S_ISCHR(m) or stat.S_ISBLK(m))
    return sorted(n for n in nodes if n not in ("ptmx", "console"))


def hidden_paths() -> tuple[MountStep, ...]:
    """Return the steps that mask or write-protect the kernel's own windows."""
    cpus = range(os.cpu_count() or 0)
    throttles = (f"/sys/devices/system/cpu/cpu{n}/thermal_throttle" for n in cpus)
    masks = (Mask(path) for path in (*MASKED, *throttles))
    return (*masks, *(ReadOnly(path) for path in READONLY))


# %% The promise, and the locks
def drop_capabilities(keep: int = DOCKER_CAPABILITIES) -> None:
    """Lower the bounding set to the mask ``keep``; raises what the kernel says."""
    for one in Capability:
        if not keep >> one & 1:
            try:
                prctl(Prctl.CAPBSET_DROP, one)
            except SysError as why:
                if why.errno != errno.EINVAL:  # an older kernel has fewer of them
                    raise


def check_ours(add: Iterable[str]) -> None:
    """Raise RuntimeFault when a capability is asked for that we do not have."""
    held = capget()[1]
    for name in add:
        if name.upper() != "ALL" and not held >> capability(name, "CapAdd") & 1:
            what = f"this process does not have {name.upper()} and cannot give it"
            raise RuntimeFault(what, hint="grep CapPrm /proc/self/status")


# %% The promise, and the locks
@lru_cache(4)  # every RUN of a build has the same
def filter_program(choice: str, capabilities: int) -> bytes:
    """Return the program for a choice: "" (Docker's), "unconfined", or JSON.

    Empty where there is to be no filter.
    """
    if choice == "unconfined":
        return b""
    machine = this_machine()
    if choice:
        from minidocker.profiles import machines_of, read_profile

        profile = read_profile(choice, capabilities, machine)
        return compile_profiles(
            *((profile, one) for one in machines_of(choice, machine))
        )
    machines = (machine, *machine.others)
    return compile_profiles(*((docker_profile(capabilities, m), m) for m in machines))


def prepared(security: Security) -> Security:
    """Return ``security`` with its filter compiled.

    That needs modules and time, and is done before the host's files are out of sight.
    """
    mask = security.filter_for
    mask = security.capabilities if mask is None else mask
    return security.replace(program=filter_program(security.seccomp, mask))


def confine(security: Security) -> None:
    """Bind this process to the promise and to the filter; it still has its rights.

    Everything after this must be calls that the filter lets pass.
    """
    if security.no_new_privileges:
        prctl(Prctl.SET_NO_NEW_PRIVS, 1)
    if security.program is None:
        security = prepared(security)
    if security.program:
        load_filter(security.program)
