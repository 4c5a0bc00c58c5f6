# From book/492-walkthrough.md. Edit there and tangle, or here and tangle --back.

# %% A walk through a container's start
"""Tell each system call that starts a container, in order, with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from minidocker.drivers import Directory, RootView
from minidocker.identity import User, has_ids
from minidocker.linux import Capability, CloneFlags
from minidocker.mounts import MountAttr
from minidocker.namespaces import (
    Bind,
    Device,
    Filesystem,
    Link,
    Mask,
    MountStep,
    ReadOnly,
    Sysctl,
    container_kinds,
    first_line,
    flags_of,
)
from minidocker.overlayfs import Overlay, has_appending
from minidocker.program import ULIMITS, ProcessSpec
from minidocker.records import Record
from minidocker.runtime import plan_for
from minidocker.sharing import SharedMemory


# %% The noun
class Call(Record):
    """A system call: its name, its arguments as strace has them, and what it is for.

    ``shell`` is what one would type instead, or "" where no program does it.
    """

    name: str
    args: str
    why: str
    shell: str = ""
    chapter: str = "runtime"

    def __str__(self) -> str:
        lines = [f"{self.name}({self.args})", f"    {self.why}"]
        lines += [f"    $ {self.shell}"] if self.shell else []
        return "\n".join([*lines, f"    chapter {self.chapter}"])


Calls = Iterator[Call]


# %% The root
def quoted(text: str) -> str:
    """Return a text as strace shows it.

    >>> quoted("/srv")
    '"/srv"'
    """
    return f'"{text}"'


def root_calls(view: RootView | None, rootfs: str) -> Calls:
    """Yield how the root file system is mounted; other drivers tell less."""
    if isinstance(view, Directory):
        args = f"{quoted(view.path)}, {quoted(rootfs)}, NULL, MS_BIND, NULL"
        why = "the root is a plain directory, shown at a place of its own"
        yield Call("mount", args, why, f"mount --bind {view.path} {rootfs}", "drivers")
    elif isinstance(view, Overlay) and has_appending():
        yield from overlay_calls(view, rootfs)
    elif isinstance(view, Overlay):
        args = f'"overlay", {quoted(rootfs)}, "overlay", 0, "lowerdir=..."'
        yield Call("mount", args, "all layers as one tree", "", "overlayfs")


# %% The root
def overlay_calls(view: Overlay, rootfs: str) -> Calls:
    """Yield how a union is mounted by descriptors."""
    opens = "all layers are to be shown as one tree"
    yield Call("fsopen", '"overlay", FSOPEN_CLOEXEC', opens, "", "overlayfs")
    settings = [("lowerdir+", lower) for lower in view.lowers]
    for key, value in [*settings, *view.options()]:
        kind = "FSCONFIG_SET_FLAG" if value is None else "FSCONFIG_SET_STRING"
        said = "NULL" if value is None else quoted(value)
        args = f'FD, {kind}, "{key}", {said}, 0'
        yield Call("fsconfig", args, OVERLAY_WORDS.get(key, ""), "", "overlayfs")
    done = "FD, FSCONFIG_CMD_CREATE, NULL, NULL, 0"
    yield Call("fsconfig", done, "that is all: make it", "", "overlayfs")
    why = "a mount, not yet at any place"
    yield Call("fsmount", "FD, FSMOUNT_CLOEXEC, 0", why, "", "overlayfs")
    args = f'FD, "", AT_FDCWD, {quoted(rootfs)}, MOVE_MOUNT_F_EMPTY_PATH'
    shell = f"mount -t overlay -o lowerdir=...,upperdir=... overlay {rootfs}"
    yield Call("move_mount", args, "there it is", shell, "overlayfs")


OVERLAY_WORDS = {
    "lowerdir+": "a layer, read-only; the top one first",
    "upperdir": "where all changes go: the container's own layer",
    "workdir": "room for overlayfs to prepare a change before it shows it",
    "userxattr": "marks that a user namespace may write",
    "redirect_dir": "no renaming by marks, which a layer's tar could not say",
    "metacopy": "no files without content, which it could not say either",
    "volatile": "--rm: it need not survive a loss of power",
}


# %% The steps
def filesystem_calls(step: MountStep) -> Calls:
    """``mount -t``"""
    if not isinstance(step, Filesystem):
        return
    kind, where, flags = step.fstype, step.target, step.flags.strace()
    args = f'"{step.label}", "{where}", "{kind}", {flags}, "{step.data}"'
    why = FILESYSTEMS.get(kind, "a file system of the container's own")
    words = step.describe()[2]
    options = f" -o {words}" if words else ""
    shell = f"mount -t {kind}{options} {step.label} {where}"
    yield Call("mount", args, why, shell, "security")


FILESYSTEMS = {
    "proc": "the processes of this pid namespace, and no others",
    "tmpfs": "memory, which goes when the container goes",
    "devpts": "terminals of its own",
    "mqueue": "the message queues of this ipc namespace",
    "sysfs": "the devices, to be looked at only",
    "cgroup": "the limits that it lives under",
    "cgroup2": "the limits that it lives under",
}


# %% The steps
def bind_calls(step: MountStep) -> Calls:
    """A copy of a mount of the host, with attributes of its own, put in place."""
    if not isinstance(step, Bind):
        return
    flags = "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE"
    args, why = f'AT_FDCWD, "{step.source}", {flags}', "a path of the host, as a copy"
    yield Call("open_tree", args, why, "", "namespaces")
    attributes = MountAttr.RDONLY if step.readonly else MountAttr(0)
    if not step.devices:
        attributes |= MountAttr.NODEV
    if attributes:
        how = f'FD, "", AT_EMPTY_PATH|AT_RECURSIVE, {{attr_set={attributes.strace()}}}'
        why = "before anybody can see it: what may not be done there"
        yield Call("mount_setattr", how, why, "", "namespaces")
    shell = f"mount --rbind {step.source} {step.target}"
    yield placed(f"now it is at {step.target}", shell)


def placed(why: str, shell: str = "") -> Call:
    """Return the call that puts a detached mount at an open place."""
    flags = "MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_T_EMPTY_PATH"
    return Call("move_mount", f'FD, "", FD, "", {flags}', why, shell, "namespaces")


# %% The steps
def device_calls(step: MountStep) -> Calls:
    """A node of the host's /dev over an empty file."""
    if isinstance(step, Device):
        name = f"/dev/{step.name}"
        args = f'AT_FDCWD, "{name}", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC'
        why = "one of the few devices that are given"
        yield Call("open_tree", args, why, "", "security")
        args = f'FD, "", FD, "{step.name}", MOVE_MOUNT_F_EMPTY_PATH'
        shell = f"touch .{name}; mount --bind {name} .{name}"
        yield Call("move_mount", args, f"{name} is there", shell, "security")


def link_calls(step: MountStep) -> Calls:
    """A symbolic link in /dev."""
    if isinstance(step, Link):
        args = f'"{step.target}", FD, "{step.name}"'
        shell = f"ln -s {step.target} dev/{step.name}"
        yield Call("symlinkat", args, "programs expect it", shell, "security")


# %% The steps
def readonly_calls(step: MountStep) -> Calls:
    """A read-only copy over a path, where there is such a path."""
    if isinstance(step, ReadOnly) and os.path.exists(step.path):
        flags = "OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_EMPTY_PATH|AT_RECURSIVE"
        why = f"{step.path} may be read"
        yield Call("open_tree", f'FD, "", {flags}', why, "", "security")
        how = 'FD, "", AT_EMPTY_PATH|AT_RECURSIVE, {attr_set=MOUNT_ATTR_RDONLY}'
        yield Call("mount_setattr", how, "and not written", "", "security")
        shell = f"mount --bind -o ro {step.path} {step.path}"
        yield placed("by whoever looks there", shell)


def mask_calls(step: MountStep) -> Calls:
    """Something empty over a path, where there is such a path."""
    if not isinstance(step, Mask) or not os.path.exists(step.path):
        return
    why = f"nobody in there needs {step.path}, and it tells about the host"
    if os.path.isdir(step.path):
        args = f'"tmpfs", "{step.path}", "tmpfs", MS_RDONLY, "size=0"'
        shell = f"mount -t tmpfs -o ro,size=0 tmpfs {step.path}"
    else:
        args = f'"/dev/null", "{step.path}", NULL, MS_BIND, NULL'
        shell = f"mount --bind /dev/null {step.path}"
    yield Call("mount", args, why, shell, "security")


def sysctl_calls(step: MountStep) -> Calls:
    """A value for the container's own kernel settings."""
    if isinstance(step, Sysctl):
        shell = f"sysctl -w {step.name}={step.value}"
        yield Call("write", f'FD, "{step.value}"', f"{step.name} was asked for", shell)


def memory_calls(_: MountStep) -> Calls:
    """Yield how another container's shared memory is shown."""
    flags = "AT_EMPTY_PATH|AT_RECURSIVE"
    how = f'FD, "", {flags}, {{attr_set=MOUNT_ATTR_NODEV}}'
    yield Call("mount_setattr", how, "no devices in there", "", "namespaces")
    yield placed("the other container's shared memory")


STEPS: dict[type[MountStep], Callable[[MountStep], Calls]] = {
    Filesystem: filesystem_calls, Bind: bind_calls, Device: device_calls,
    Link: link_calls, ReadOnly: readonly_calls, Mask: mask_calls,
    Sysctl: sysctl_calls, SharedMemory: memory_calls,
}  # fmt: skip


# %% From the first call to the last
def visit(*calls: Call) -> Calls:
    """Yield calls that are made inside the new network, and the way in and out."""
    shell = "nsenter --net=..."
    yield Call("setns", "FD, CLONE_NEWNET", "into it", shell, "rtnetlink")
    yield from calls
    yield Call("setns", "FD, CLONE_NEWNET", "and home", "exit", "rtnetlink")


def message(kind: str, why: str, shell: str, chapter: str = "wiring") -> Call:
    """Return the call that sends a message of rtnetlink."""
    return Call("sendto", f"FD, {{nlmsg_type={kind}, ...}}", why, shell, chapter)


def network_calls(names: bool, ports: bool) -> Calls:
    """Yield how the parent makes a network for a container, and cables it to a bridge.

    ``names``: with a resolver, ``ports``: with published ports.
    """
    why = "a network of its own, made by the parent before there is a container"
    yield Call("unshare", "CLONE_NEWNET", why, "ip netns add", "rtnetlink")
    yield Call("setns", "FD, CLONE_NEWNET", "back on the host's", "", "rtnetlink")
    yield from visit(message("RTM_NEWLINK", "localhost answers", "ip link set lo up"))
    yield from visit()  # a free name for the device
    shell = "ip link add vethX master BRIDGE type veth peer eth0 netns ..."
    yield message("RTM_NEWLINK", "a cable: one end here, one end there", shell)
    yield from visit(
        message("RTM_NEWADDR", "its address", "ip addr add ... dev eth0"),
        message("RTM_NEWROUTE", "its way out", "ip route add default via ..."),
    )
    if names:
        yield from visit()  # the sockets of the resolver
    if names or ports:
        why = "an attendant for names and ports; it dies with its parent, too"
        yield Call("clone", "SIGCHLD", why, "", "sandbox")
        args = "PR_SET_PDEATHSIG, SIGKILL"
        yield Call("prctl", args, "(the attendant's)", "", "sandbox")
        yield Call("setsid", "", "(the attendant's)", "setsid", "sandbox")


# %% From the first call to the last
def birth_calls(spec: ProcessSpec) -> Calls:
    """Yield how the process comes into its namespaces and groups."""
    own = bool(spec.group and spec.group.places)
    late = CloneFlags.NEWCGROUP if own else CloneFlags(0)
    own_kinds = flags_of(container_kinds(spec.shared))
    flags = own_kinds & ~late
    joins = bool(dict(spec.shares).get("pid"))
    if joins:
        why = "children are born in another container's pid namespace now"
        yield Call("setns", "FD, CLONE_NEWPID", why, "nsenter --pid --target ...")
    args = f"{{flags={(flags | CloneFlags.PIDFD).strace()}}}"
    why = "a process in namespaces of its own; all that follows is done by it"
    yield Call("clone3", args, why, "unshare --fork --pid --mount ...", "namespaces")
    if joins:
        yield Call("setns", "FD, CLONE_NEWPID", "(the parent's) back at home")
    if profile := spec.security.profile:
        why, shell = "AppArmor's profile, from the execve on", f"aa-exec -p {profile}"
        yield Call("write", f'FD, "exec {profile}"', why, shell, "labels")
    for place in spec.group.joined if spec.group else ():
        shell = f"echo $$ > {place}/cgroup.procs"
        yield Call("write", 'FD, "0"', "from here on its limits hold", shell, "cgroups")
    if spec.oom_score_adj:
        shell = f"echo {spec.oom_score_adj} > /proc/self/oom_score_adj"
        yield Call("write", f'FD, "{spec.oom_score_adj}"', "--oom-score-adj", shell)
    if late & own_kinds:
        why = "what it sees of the groups begins at its own"
        yield Call("unshare", late.strace(), why, "unshare --cgroup", "cgroups")
    if "pid" in spec.shared:
        why = "who is in this pid namespace may not look into us"
        yield Call("prctl", "PR_SET_DUMPABLE, 0", why)
    yield from shared_calls(spec)
    why = "it dies with whoever looks after it"
    yield Call("prctl", "PR_SET_PDEATHSIG, SIGKILL", why, "setpriv --pdeathsig KILL")
    yield from borrowing_calls(spec)
    args = 'NULL, "/", NULL, MS_REC|MS_PRIVATE, NULL'
    why = "no mount travels out of here, and none in"
    yield Call("mount", args, why, "mount --make-rprivate /", "namespaces")


def shared_calls(spec: ProcessSpec) -> Calls:
    """Yield how the process enters namespaces that are there already."""
    if spec.netns >= 0:
        yield Call("setns", "FD, CLONE_NEWNET", "the network that was made for it")
    for kind, pid in spec.shares:
        if pid and kind != "pid":
            flag, shell = flags_of([kind]).strace(), f"nsenter --{kind} --target {pid}"
            yield Call("setns", f"FD, {flag}", "shared with another container", shell)


def borrowing_calls(spec: ProcessSpec) -> Calls:
    """Yield how another container's shared memory is taken along."""
    if dict(spec.shares).get("ipc"):
        yield Call("setns", "FD, CLONE_NEWNS", "to the other's mounts")
        args = 'AT_FDCWD, "/dev/shm", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE'
        yield Call("open_tree", args, "its shared memory, to be taken along")
        yield Call("setns", "FD, CLONE_NEWNS", "and back")


# %% From the first call to the last
def step_calls(steps: tuple[MountStep, ...]) -> Calls:
    """Yield what steps of the plan do."""
    for step in steps:
        yield from STEPS[type(step)](step)


def terminal_calls(spec: ProcessSpec) -> Calls:
    """Yield how a terminal is made inside."""
    if spec.tty:
        args = "FD, TIOCSPTLCK, [0]"
        yield Call("ioctl", args, "the new terminal's other side may be opened")
        yield Call("ioctl", "FD, TIOCGPTPEER, O_RDWR", "the side of the program")
        args = 'AT_FDCWD, "/proc/self/fd/N", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC'
        yield Call("open_tree", f"{args}|AT_RECURSIVE", "to be shown by its usual name")
        shell = "mount --bind /dev/pts/0 /dev/console"
        yield placed("it is the console", shell)


def leave_calls(spec: ProcessSpec) -> Calls:
    """Yield how the host's root is left behind, and what the container is named."""
    attributes = MountAttr(0) if spec.security.privileged else MountAttr.NODEV
    if spec.readonly:
        attributes |= MountAttr.RDONLY
    if attributes:
        how = f'FD, "", AT_EMPTY_PATH, {{attr_set={attributes.strace()}}}'
        yield Call("mount_setattr", how, "what may not be done in the root itself")
    yield Call("fchdir", "FD", "into the new root", "cd rootfs", "namespaces")
    why = "it is the root now; the old one lies on top"
    yield Call("pivot_root", '".", "."', why, "pivot_root . .", "namespaces")
    why = "the old one goes: there is no way back"
    yield Call("umount2", '".", MNT_DETACH', why, "umount -l .", "namespaces")
    yield Call("chdir", '"/"', "a directory that is inside", "cd /", "namespaces")
    if spec.hostname and "uts" not in spec.shared:
        args, shell = f'"{spec.hostname}"', f"hostname {spec.hostname}"
        yield Call("sethostname", args, "its name", shell)
    if "net" not in spec.shared and spec.netns < 0:
        shell = "ip link set lo up"
        yield Call("ioctl", "FD, SIOCSIFFLAGS, lo", "localhost answers", shell)


# %% From the first call to the last
def settle_calls(spec: ProcessSpec) -> Calls:
    """Yield the directory, the limits and the session."""
    yield Call("fchdir", "FD", f"--workdir {spec.cwd}", f"cd {spec.cwd}", "program")
    for number, soft, hard in spec.ulimits:
        name = ULIMITS.split()[number]
        args = f"0, RLIMIT_{name.upper()}, {{{soft}, {hard}}}"
        shell = f"prlimit --{name}={soft}:{hard}"
        yield Call("prlimit64", args, "a limit of the process", shell, "program")
    why = "no signal of the caller's terminal comes here"
    yield Call("setsid", "", why, "setsid")
    if spec.tty:
        why = "the terminal sends its signals here"
        yield Call("ioctl", "0, TIOCSCTTY, 0", why, "setsid --ctty")
    yield Call("umask", "022", "whatever the caller had", "umask 022")


# %% From the first call to the last
def rights_calls(spec: ProcessSpec, user: User, held: int) -> Calls:
    """Yield how rights are given up; ``held`` is the mask of those that we have."""
    rights = spec.security.capabilities & held
    yield from bounding_calls(rights)
    if has_ids(user):
        yield from id_calls(user, held)
    else:
        yield from renaming_calls(user, rights)
    why = "said again: a change of user clears it"
    yield Call("prctl", "PR_SET_PDEATHSIG, SIGKILL", why, "", "identity")
    promise = spec.security.no_new_privileges
    if not promise:
        yield from filter_calls(spec)
    mask = rights if user.uid == 0 else 0
    why = "what is left, and it is all that it has"
    yield Call("capset", f"{mask:#x}", why, "setpriv --inh-caps", "identity")
    if promise:
        shell, why = "setpriv --no-new-privs", "no set-user-id program adds rights"
        yield Call("prctl", "PR_SET_NO_NEW_PRIVS, 1", why, shell, "security")
        yield from filter_calls(spec)


def filter_calls(spec: ProcessSpec) -> Calls:
    """Yield how the filter of system calls is loaded, if there is one."""
    if spec.security.program != b"":
        args, why = "PR_SET_SECCOMP, FILTER", "some calls are refused from here on"
        yield Call("prctl", args, why, "", "seccomp")


def bounding_calls(rights: int) -> Calls:
    """Yield how the rights that are not in a mask are given up for ever."""
    for one in Capability:
        if not rights >> one & 1:
            args, why = f"PR_CAPBSET_DROP, CAP_{one.name}", "never again, by no program"
            shell = f"capsh --drop=cap_{one.name.lower()}"
            yield Call("prctl", args, why, shell, "security")


def renaming_calls(user: User, rights: int) -> Calls:
    """Yield how our one id, without root, gets the number of another user."""
    why, shell = "our only id is to have another number", "unshare --user"
    yield Call("unshare", "CLONE_NEWUSER", why, shell, "identity")
    args, why = "PR_SET_DUMPABLE, 1", "so that /proc/self is ours to write to"
    yield Call("prctl", args, why, "", "identity")
    for kind, number in (("uid", user.uid), ("gid", user.gid)):
        shell = f"echo {number} 0 1 > /proc/self/{kind}_map"
        args = f'FD, "{number} 0 1"'
        yield Call("write", args, f"here our {kind} is {number}", shell, "identity")
    yield Call("prctl", "PR_SET_DUMPABLE, 0", "and nobody else's", "", "identity")
    yield from bounding_calls(rights)  # a new namespace has all of them again


def id_calls(user: User, held: int) -> Calls:
    """Yield how the process takes the ids of its user."""
    groups = ", ".join(map(str, (user.gid, *user.groups)))
    if first_line("/proc/self/setgroups") != "deny":
        why = "its groups, none of ours"
        yield Call("setgroups", f"[{groups}]", why, "", "identity")
    args = f"{user.gid}, {user.gid}, {user.gid}"
    yield Call("setresgid", args, "for good", "setpriv --regid", "identity")
    if user.uid:
        why = "the right to load a filter is needed a moment longer"
        yield Call("prctl", "PR_SET_KEEPCAPS, 1", why, "", "identity")
    args = f"{user.uid}, {user.uid}, {user.uid}"
    yield Call("setresuid", args, "for good", "setpriv --reuid", "identity")
    if user.uid:
        mask = held & 1 << Capability.SYS_ADMIN
        yield Call("capset", f"{mask:#x}", "that one, and no other", "", "identity")


# %% From the first call to the last
def last_calls(spec: ProcessSpec) -> Calls:
    """Yield how the process becomes the program, found on its PATH."""
    argv, program = ", ".join(map(quoted, spec.argv)), quoted(spec.argv[0])
    if spec.init >= 0:
        args = f'FD, "", ["init", {program}, {argv}], AT_EMPTY_PATH'
        why = "an init of ours that is in no file: it reaps what others leave"
        yield Call("execveat", args, why, "docker-init -- ...", "elf")
        yield Call("fork", "", "(the init's) the program is its child", "", "elf")
    elif "pid" in spec.shared:
        why = "a program in memory: all that others see of us is this"
        yield Call("memfd_create", '"springboard"', why, "", "springboard")
        args = f'FD, "", [{program}, {argv}], AT_EMPTY_PATH'
        why = "from here on nothing of ours can be read"
        yield Call("execveat", args, why, "", "springboard")
    why = "the program; it finds the world as it was left here"
    args, shell = f"{program}, [{argv}]", f"exec {spec.argv[0]}"
    yield Call("execve", args, why, shell, "last_call")


# %% From the first call to the last
def calls_of(spec: ProcessSpec, user: User, held: int) -> Calls:
    """Yield every system call that starts a container, in order.

    ``user`` is who was found in the image, ``held`` the capabilities that we have. What
    only looks (``openat2``, ``fstat``), what only closes, and what parent and child
    say to each other is left out.
    """
    yield from birth_calls(spec)
    yield from root_calls(spec.view, spec.rootfs)
    yield from step_calls(plan_for(spec).steps)
    yield from terminal_calls(spec)
    yield from leave_calls(spec)
    yield from settle_calls(spec)
    yield from rights_calls(spec, user, held)
    yield from last_calls(spec)
