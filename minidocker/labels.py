# From book/415-labels.md. Edit there and tangle, or here and tangle --back.

# %% Labels: a second opinion
"""AppArmor: the profile docker-default, who gets it, and how a process takes it."""

from __future__ import annotations

import os

from minidocker.errors import RuntimeFault
from minidocker.idmaps import find_program
from minidocker.mounts import is_first_user_namespace
from minidocker.namespaces import first_line, put
from minidocker.security import APPARMOR, UNCONFINED, Security


# %% The profile
DEFAULT = "docker-default"
PROFILE = """
profile docker-default flags=(attach_disconnected, mediate_deleted) {
  capability,
  file,
  network,
  umount,
  deny mount,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=docker-default,
  ptrace (read, readby, trace, tracedby) peer=docker-default,
  deny /proc/[^0-9]* wkl,
  deny /proc/[^0-9s]*/** wkl,
  deny /proc/s[^y]*/** wkl,
  deny /proc/sys/[^k]*/** wkl,
  deny /proc/sys/kernel/[^s]** wkl,
  deny /proc/sys/kernel/s[^h]** wkl,
  deny /proc/sys/kernel/sh[^m]** wkl,
  deny /proc/{kcore,sysrq-trigger} rwkl,
  deny /sys/[^f]*/** wkl,
  deny /sys/f[^s]*/** wkl,
  deny /sys/fs/[^c]*/** wkl,
  deny /sys/fs/c[^g]*/** wkl,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwkl,
}
"""


# %% Is it loaded
LISTED = "/sys/kernel/security/apparmor/profiles"


def is_enabled() -> bool:
    """Say whether this kernel has AppArmor on, and we are where it is managed.

    In a container of somebody's, where securityfs is not mounted, it is not our matter.
    """
    return first_line(APPARMOR) == "Y" and os.path.isdir(os.path.dirname(LISTED))


def loaded_profiles() -> set[str] | None:
    """Return the names of all profiles; None where we may not know."""
    try:
        with open(LISTED, encoding="utf-8", errors="replace") as file:
            return {line.rpartition(" (")[0] for line in file}
    except OSError:
        return None


def find_parser() -> str:
    """Return the path of apparmor_parser, or nothing."""
    return find_program("apparmor_parser", f"{os.environ.get('PATH', '')}:/usr/sbin")


def load_default() -> str:
    """Load docker-default into the kernel; return nothing, or why that failed."""
    import subprocess

    parser = find_parser()
    if not parser:
        return "apparmor_parser is not installed"
    argv = [parser, "--replace", "--skip-cache", "--quiet"]
    done = subprocess.run(
        argv, input=PROFILE.encode(), capture_output=True, check=False
    )
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""


def ensure_default() -> str:
    """See that docker-default is loaded; return nothing, or why it is not."""
    known = loaded_profiles()
    if known is not None and DEFAULT in known:
        return ""
    if os.geteuid() or not is_first_user_namespace():
        return "" if known is None and is_usable() else "only root can load a profile"
    return load_default()


def is_usable() -> bool:
    """Say whether docker-default can be asked for by this process: by trying it."""
    try:
        label_next_execve(DEFAULT)
        put(label_file(), "exec unconfined")
    except OSError:
        return False
    return True


# %% Who gets it
def chosen_profile(security: Security) -> str:
    """Return the profile of a container, "" for none.

    Without a wish it is docker-default, or ``unconfined`` with --privileged. Raises
    RuntimeFault where a profile was asked for and AppArmor is off, or where it is not
    loaded.
    """
    asked = security.profile
    if not is_enabled():
        if asked in ("", UNCONFINED):
            return ""
        hint = "boot the kernel with apparmor=1, or leave the option out"
        raise RuntimeFault(f"AppArmor is off: no profile {asked}", hint=hint)
    if not asked:
        if security.privileged:
            return UNCONFINED
        return "" if ensure_default() else DEFAULT
    if asked == DEFAULT and (why := ensure_default()):
        raise RuntimeFault(f"AppArmor profile {asked} cannot be loaded: {why}")
    known = loaded_profiles()
    if asked != UNCONFINED and known is not None and asked not in known:
        hint = f"apparmor_parser -r FILE loads one; {LISTED} lists them"
        raise RuntimeFault(f"AppArmor profile {asked} is not loaded", hint=hint)
    return asked


def verdict() -> tuple[bool, str]:
    """Say for `info` whether containers get a profile, and which or why not."""
    if not os.path.exists(APPARMOR):
        return False, "not in this kernel"
    if not is_enabled():
        off = first_line(APPARMOR) != "Y"
        return False, "it is off: apparmor=1" if off else "no /sys/kernel/security here"
    why = ensure_default()
    return not why, why or f"containers have the profile {DEFAULT}"


# %% How it is taken
def label_file() -> str:
    """Return the file that chooses the next label of AppArmor."""
    own = "/proc/self/attr/apparmor/exec"
    return own if os.path.exists(own) else "/proc/self/attr/exec"


def label_next_execve(profile: str) -> None:
    """Choose the profile that the next execve gives, as aa_change_onexec(2) does.

    To be called while /proc is the host's. Raises OSError: ENOENT where no such
    profile is loaded, EACCES where our own does not let us.
    """
    put(label_file(), f"exec {profile}")
