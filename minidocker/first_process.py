# From book/478-first-process.md. Edit there and tangle, or here and tangle --back.

# %% The first process: a container that waits
"""Be the first process of an OCI container: build it from inside, wait, run."""

from __future__ import annotations

import os
from contextlib import suppress

from minidocker.bundle import Bundle
from minidocker.dialogue import say, wait_for_go
from minidocker.errors import CommandNotFoundError, NotExecutableError, RuntimeFault
from minidocker.hooks import hook_state, run_hooks
from minidocker.identity import set_labels, size_console, take_identity
from minidocker.last_call import candidates, execute, refusal
from minidocker.linux import (
    CloneFlags,
    Prctl,
    personality,
    pivot_root,
    prctl,
    setdomainname,
    sethostname,
    setns,
    unshare,
)
from minidocker.mounts import (
    MountFlags,
    UmountFlags,
    mount,
    mountinfo,
    umount2,
)
from minidocker.namespaces import (
    PLACE,
    apply_mounts,
    flags_of,
    open_in_root,
    raise_loopback,
)
from minidocker.program import DEFAULT_PATH
from minidocker.runtime import guard_root, mount_view, new_console, settle


TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any, NoReturn


# %% Inside
def enter_paths(bundle: Bundle) -> None:
    """Enter the namespaces that a bundle names by a path, the user's first."""
    ordered = sorted(bundle.paths, key=lambda pair: pair[0] != "user")
    for kind, path in ordered:
        if kind != "pid":
            try:
                handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                setns(handle, flags_of([kind]))
                os.close(handle)
            except OSError as why:
                what = f"cannot enter the {kind} namespace: {why}"
                raise RuntimeFault(what, where=path) from why


def be_root_here() -> None:
    """Take the ids 0 of a new user namespace, where they have a map."""
    with suppress(OSError):
        os.setgroups(())
    with suppress(OSError):
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


# %% Inside
def cut_off(rootfs: str, propagation: MountFlags) -> None:
    """Choose what of the host's mounts travels in; the root's parent keeps apart."""
    mount(None, "/", None, propagation)
    if propagation & MountFlags.SHARED:
        above = [m.target for m in mountinfo() if is_above(m.target, rootfs)]
        mount(None, max(above, key=len), None, MountFlags.PRIVATE)


def is_above(mounted: str, path: str) -> bool:
    """Say whether ``path`` is at or below where something is mounted."""
    return path == mounted or path.startswith(mounted.rstrip("/") + "/")


def leave_old_root(root: int) -> None:
    """Make the mount ``root`` the root; the old one goes, and takes nothing along."""
    old = os.open("/", PLACE | os.O_DIRECTORY)
    os.fchdir(root)
    pivot_root(".", ".")
    os.fchdir(old)
    os.close(old)
    mount(None, ".", None, MountFlags.SLAVE | MountFlags.REC)
    umount2(".", UmountFlags.DETACH)
    os.chdir("/")


# %% Inside
def build_container(bundle: Bundle, channel: socket, state: dict[str, Any]) -> int:
    """Build the container around this process; return its terminal's slave, or -1."""
    spec = bundle.spec
    cut_off(bundle.rootfs, bundle.propagation)
    root = mount_view(spec)
    for step in spec.mounts:
        try:
            apply_mounts((step,), root)
        except OSError as why:
            raise RuntimeFault(str(why), where=step.describe()[0]) from why
    slave = -1
    if spec.tty:
        slave = new_console(root, spec, channel)
        size_console(slave, bundle.identity.console)
    set_labels(bundle.identity)
    say(channel, b"H")
    wait_for_go(channel)
    run_hooks(bundle.config, "createContainer", state)
    guard_root(spec, root, devices=True)  # a group says which
    leave_old_root(root)
    prctl(Prctl.SET_DUMPABLE, 0)  # who shares the pid namespace may not look into us
    name_container(bundle)
    return slave


def name_container(bundle: Bundle) -> None:
    """Give the container its names, and its loopback where the network is its own."""
    if bundle.spec.hostname:
        sethostname(bundle.spec.hostname)
    if bundle.domainname:
        setdomainname(bundle.domainname)
    if "net" in bundle.kinds:
        raise_loopback()
    if bundle.personality >= 0:
        personality(bundle.personality)


# %% Inside
def variables(env: tuple[str, ...], home: str) -> dict[str, str]:
    """Return a bundle's variables; HOME is the user's where it is not given.

    >>> variables(("A=1", "A=2"), "/root")
    {'A': '2', 'HOME': '/root'}
    """
    found = dict(line.partition("=")[::2] for line in env)
    if not found.get("HOME"):
        found["HOME"] = home
    return found


def check_program(root: int, program: str, path: str) -> None:
    """Raise what Docker would say of a program that cannot be executed."""
    fault: RuntimeFault | None = None
    for place in candidates(program, path):
        inside = os.path.join(os.getcwd(), place)
        try:
            handle = open_in_root(root, inside)
        except OSError as why:
            fault = refusal(program, inside, why.errno or 0, missing=True)
            continue
        mode = os.fstat(handle).st_mode
        os.close(handle)
        if mode & 0o111 and mode & 0o170000 == 0o100000:
            return
        if "/" in program:
            raise NotExecutableError(f'exec: "{program}": permission denied')
    if "/" in program and fault:
        raise fault
    raise CommandNotFoundError(f'exec: "{program}": executable file not found in $PATH')


# %% Inside
def wait_and_run(
    bundle: Bundle, slave: int, channel: socket, fifo: int, state: dict[str, Any]
) -> NoReturn:
    """Say that all is ready, wait for ``start``, and become the program.

    What fails after the wait has nobody to be told to but the container's own
    standard error.
    """
    root, user = settle(bundle.spec, slave)
    env = variables(bundle.spec.env, user.home)
    check_program(root, bundle.spec.argv[0], env.get("PATH", DEFAULT_PATH))
    keep_open(bundle.identity.preserve)
    say(channel, b"R")
    channel.close()
    os.read(fifo, 1)
    try:
        run_hooks(bundle.config, "startContainer", {**state, "status": "created"})
        take_identity(user, bundle.identity, bundle.spec.security)
        execute(root, bundle.spec.argv, env, bundle.spec.init, alone=False)
    except (OSError, RuntimeFault) as why:
        os.write(2, os.fsencode(f"{why}\n"))
    os._exit(1)


def keep_open(count: int) -> None:
    """Let the first ``count`` descriptors after 0, 1, 2 outlive the execve."""
    for number in range(3, 3 + count):
        with suppress(OSError):
            os.set_inheritable(number, True)


# %% Inside
def be_first(bundle: Bundle, id: str, channel: socket, fifo: int) -> NoReturn:
    """Be the first process of a container, from the clone to the program."""
    wait_for_go(channel)
    if bundle.maps[0] or "user" in dict(bundle.paths):
        be_root_here()
    if "user" not in dict(bundle.paths):
        enter_paths(bundle)
    if "cgroup" in bundle.kinds:
        unshare(CloneFlags.NEWCGROUP)
    pid = int(os.readlink("/proc/self"))  # /proc is the host's: the number is, too
    state = hook_state(id, pid, "creating", bundle.path, bundle.config)
    slave = build_container(bundle, channel, state)
    wait_and_run(bundle, slave, channel, fifo, state)
