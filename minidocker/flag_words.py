# From book/652-flag-words.md. Edit there and tangle, or here and tangle --back.

# %% Flag words: what a flag may say
"""Check the words of the flags of ``run`` that few people give; make them whole."""

from __future__ import annotations

import os
import stat

from minidocker.blueprint import tmpfs_step
from minidocker.errors import UsageError, WordFault
from minidocker.flags import Given, ulimit_text
from minidocker.logs import DRIVERS, check_tag, log_shape
from minidocker.profiles import machines_of, read_profile
from minidocker.program import HostConfig, Network
from minidocker.restarts import parse_policy
from minidocker.seccomp import this_machine
from minidocker.security import DOCKER_SECURITY, UNCONFINED


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Devices, limits, settings
def device_text(text: str) -> str:
    """Return ``HOST:CONTAINER:rwm`` for a ``--device``, whole.

    Raises UsageError for what is no device, or no mode.
    """
    host, *rest = text.split(":")
    inside, mode = host, "rwm"
    if len(rest) == 1 and not rest[0].startswith("/"):
        mode = rest[0]
    elif rest:
        inside, mode = rest[0], (rest[1:] or ["rwm"])[0]
    if len(rest) > 2 or not set(mode) <= set("rwm") or not inside.startswith("/"):
        raise UsageError(f'invalid device "{text}"', hint="HOST[:CONTAINER[:rwm]]")
    try:
        kind = os.stat(host).st_mode
    except OSError as why:
        raise UsageError(f"cannot add device: {why.strerror}", where=host) from why
    if not (stat.S_ISCHR(kind) or stat.S_ISBLK(kind)):
        raise UsageError("not a device node", where=host)
    return f"{host}:{inside}:{mode}"


# %% Devices, limits, settings
IPC_SYSCTLS = """
kernel.msgmax kernel.msgmnb kernel.msgmni kernel.sem kernel.shmall kernel.shmmax
kernel.shmmni kernel.shm_rmid_forced
"""


def check_sysctl(text: str, host: HostConfig) -> str:
    """Return a ``--sysctl NAME=VALUE``; UsageError where it would be the host's."""
    name, equals, _ = text.partition("=")
    ipc = name in IPC_SYSCTLS.split() or name.startswith("fs.mqueue.")
    if (
        not equals
        or "/" in name
        or ".." in name
        or not (ipc or name.startswith("net."))
    ):
        raise UsageError(f"sysctl '{text}' is not allowed", hint="net.*, fs.mqueue.*")
    ours = (Network.NONE, Network.BRIDGE)
    shared = host.ipc_mode if ipc else host.network not in ours
    if shared:
        which = "IPC" if ipc else "network"
        raise UsageError(f"sysctl '{text}' is not allowed: the {which} is not its own")
    return text


# %% Devices, limits, settings
def security_text(text: str) -> str:
    """Return a ``--security-opt`` with the file of a profile read.

    Raises UsageError for a file that cannot be read, RuntimeFault for no profile, and
    for one of AppArmor that is not loaded.
    """
    mark = min((m for m in "=:" if m in text), key=text.index, default="=")
    name, _, path = text.partition(mark)
    if name == "apparmor" and path:
        from minidocker.labels import chosen_profile

        chosen_profile(DOCKER_SECURITY.replace(profile=path))
    if name != "seccomp" or path in ("", UNCONFINED, "builtin"):
        return text
    try:
        with open(path, encoding="utf-8") as file:
            profile = file.read()
    except (OSError, UnicodeDecodeError) as why:
        said = getattr(why, "strerror", None) or "it is no text"
        what = f"opening seccomp profile ({path}) failed: {said}"
        raise UsageError(what) from why
    read_profile(profile, 0, this_machine())
    machines_of(profile, this_machine())
    return f"seccomp={profile}"


# %% After the end
def restart_text(given: Given) -> str:
    """Return the policy of ``--restart``; "" for none."""
    text = given.text("restart")
    if not text:
        return ""
    policy = parse_policy(text)
    if policy.name == "no":
        return ""
    if given.on("rm"):
        raise UsageError("conflicting options: --restart and --rm")
    return text


def log_options(given: Given) -> tuple[str, ...]:
    """Return the options of the log, checked, and its driver with them."""
    driver, options = given.text("log-driver") or "json-file", given.list("log-opt")
    if driver not in DRIVERS:
        what = f"logger: no log driver named '{driver}' is registered"
        hint = f"{', '.join(DRIVERS)}: a log is a file here, and sent nowhere"
        raise WordFault(what, hint=hint)
    for option in options:
        if "=" not in option:
            raise WordFault(f"invalid log opt '{option}'", hint="NAME=VALUE")
    if options and driver == "none":
        raise UsageError("invalid logging opts for driver none")
    if options:
        words = dict(text.split("=", 1) for text in options)
        log_shape(driver, words)
        check_tag(words.get("tag", ""))
    return options


# %% All of them
def rare_words(given: Given) -> dict[str, Any]:
    """Return the fields of a HostConfig that these flags give, checked."""
    for text in given.list("tmpfs"):
        tmpfs_step(text)
    return {
        "security_opt": tuple(map(security_text, given.list("security-opt"))),
        "devices": tuple(map(device_text, given.list("device"))),
        "tmpfs": given.list("tmpfs"),
        "ulimits": tuple(map(ulimit_text, given.list("ulimit"))),
        "restart": restart_text(given),
        "log_driver": given.text("log-driver") or "json-file",
        "log_opts": log_options(given),
    }
