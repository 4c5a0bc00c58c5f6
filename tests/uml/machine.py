#!/usr/bin/env python3
"""Run one command as root in a User-Mode-Linux guest: another kernel to test on.

    python tests/uml/machine.py [OPTIONS] -- COMMAND [ARG...]

Debian's user-mode-linux is Linux 6.1 as an ordinary program, with device-mapper and
cgroup v2. The guest sees this machine's root, read-only under an overlay in memory,
with a fresh /tmp and /run. Output is streamed. Exit status: the command's; 124 when
the time is up, 125 when the guest did not boot or died. Nothing is left, also when
this program is killed.
"""

import argparse
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


PRCTL = ctypes.CDLL(None).prctl
PDEATHSIG, SUBREAPER = 1, 36
LOST = {"PWD", "OLDPWD", "TMPDIR", "TMP", "TEMP", "XDG_RUNTIME_DIR", "DOCKER_HOST"}
KERNEL = [
    "rootfstype=hostfs", "rootflags=/", "ro", "con=null", "ssl=null", "panic=-1",
    "lpj=7000000", "initcall_blacklist=raid6_select_algo,calibrate_xor_blocks",
]  # fmt: skip


class Died(Exception):
    """The guest ended without a result."""


def find_kernel() -> tuple[str, str]:
    """Return the kernel program and the directory of its modules."""
    program = shutil.which("linux.uml")
    if not program:
        raise Died("no linux.uml: Debian's package is user-mode-linux")
    done = subprocess.run([program, "--version"], capture_output=True, check=False)
    return program, f"/usr/lib/uml/modules/{done.stdout.decode().split()[-1]}"


def hidden(place: str) -> bool:
    """Whether the guest's own /tmp, /run and /dev would hide a directory."""
    return place.startswith(("/tmp/", "/run/", "/dev/shm/"))


def configuration(options: argparse.Namespace, modules: str) -> dict[str, object]:
    """Return what init.py reads."""
    cwd = os.path.realpath(options.cwd or os.getcwd())
    writable = [os.path.realpath(path) for path in options.writable]
    see = [os.path.realpath(path) for path in options.see]
    here = os.path.dirname(os.path.realpath(__file__))
    for place in (cwd, here):
        inside = any(f"{place}/".startswith(f"{top}/") for top in writable + see)
        if hidden(place) and not inside:
            see.append(place)
    env = {name: text for name, text in os.environ.items() if name not in LOST}
    env |= {"TERM": "dumb", "UML_RUN": "1"}
    env |= dict(pair.split("=", 1) for pair in options.env)
    return {
        "argv": options.command,
        "env": env,
        "cwd": cwd,
        "see": see,
        "writable": writable,
        "tmpfs": options.tmpfs,
        "cgroup": options.cgroup,
        "modules_at": modules,
        "modules": ["loop", "dm-thin-pool", "dm-snapshot", *options.module],
    }


def guard(place: str) -> tuple[int, int]:
    """Fork a watcher that cleans up if we are killed; its pid, and a pipe to it.

    Written to the pipe: the process group of the guest, then ``done``.
    """
    heard, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(heard)
        return pid, told
    os.setsid()
    os.close(told)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    words = b""
    while data := os.read(heard, 64):
        words += data
    if not words.endswith(b"done"):
        if words:
            end_group(int(words))
        shutil.rmtree(place, ignore_errors=True)
    os._exit(0)


def end_group(group: int) -> None:
    """Kill the guest: its kernel, and the processes that stand for its own."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def start(
    program: str, place: str, options: argparse.Namespace, ends: list[int]
) -> subprocess.Popen[bytes]:
    """Start the guest's kernel; ``ends`` are its console and three lines."""
    init = f"{place}/init"
    script = os.path.join(os.path.dirname(os.path.realpath(__file__)), "init.py")
    python = os.path.realpath(sys.executable)
    text = f"#!/bin/sh\nexec {python} -IS {place}/init.py {place}\n"
    Path(init).write_text(text)
    shutil.copy(script, f"{place}/init.py")
    os.chmod(init, 0o755)
    lines = [f"con{number}=null,fd:{end}" for number, end in enumerate(ends)]
    disks = [f"ubd{n}={os.path.abspath(path)}" for n, path in enumerate(options.disk)]
    own = [f"mem={options.mem}", f"init={init}", f"uml_dir={place}", "umid=guest"]
    env = {name: text for name, text in os.environ.items() if name not in LOST}
    return subprocess.Popen(
        [program, *KERNEL, *options.kernel, *own, *lines, *disks],
        stdin=subprocess.DEVNULL,
        stdout=ends[0],
        stderr=ends[0],
        pass_fds=ends,
        env={**env, "TMPDIR": place},  # the guest's memory is a sparse file there
        start_new_session=True,
        preexec_fn=lambda: PRCTL(PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509 - no threads
    )


def follow(
    guest: subprocess.Popen[bytes],
    ends: list[int],
    seconds: float,
    out: dict[int, Callable[[bytes], object]],
) -> int:
    """Carry the guest's output until it says how it ended; return the status."""
    kinds = dict(zip(ends, range(4), strict=True))
    log, said, status, until = b"", b"", None, time.monotonic() + seconds
    while kinds and (left := until - time.monotonic()) > 0:
        ready = select.select(list(kinds), [], [], min(left, 0.5))[0]
        if not ready and guest.poll() is not None:
            break
        for fd in ready:
            data, kind = os.read(fd, 65536), kinds[fd]
            if not data:
                del kinds[fd]
            elif kind in out:
                out[kind](data)
            log += data if kind == 0 else b""
            said += data if kind == 3 else b""
        if status is None and b"exit " in said and said.endswith(b"\n"):
            status = int(said.rpartition(b"exit ")[2])
            until = min(until, time.monotonic() + 5)
    if status is not None:
        return status
    if kinds and time.monotonic() >= until:
        print(f"machine: the time is up: {seconds:g} s", file=sys.stderr)
        return 124
    tail = log[-3000:].decode(errors="replace")
    raise Died(f"the guest ended without a result {said!r}\n{tail}")


def run(options: argparse.Namespace, out: dict[int, Callable[[bytes], object]]) -> int:
    """Boot, run, clean up; return the command's exit status."""
    program, modules = find_kernel()
    temporary = tempfile.gettempdir()
    if temporary.startswith("/dev/"):  # the guest mounts its own before it has an init
        temporary = "/var/tmp"
    place = tempfile.mkdtemp(prefix="minidocker-uml-", dir=temporary)
    PRCTL(SUBREAPER, 1, 0, 0, 0)
    watcher, told = guard(place)
    guest = None
    pipes = [os.pipe() for _ in range(4)]
    try:
        with open(f"{place}/conf", "w") as file:
            json.dump(configuration(options, modules), file)
        guest = start(program, place, options, [end for _, end in pipes])
        os.write(told, b"%d" % guest.pid)
        for _, end in pipes:
            os.close(end)
        return follow(guest, [end for end, _ in pipes], options.timeout, out)
    finally:
        for end, _ in pipes:
            os.close(end)
        if guest:
            end_group(guest.pid)
            guest.wait()
        shutil.rmtree(place, ignore_errors=True)
        os.write(told, b"done")
        os.close(told)
        os.waitpid(watcher, 0)
        reap_orphans()


def reap_orphans() -> None:
    """Reap what the guest's kernel left to us, for two seconds at most."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
        except ChildProcessError:
            return


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="machine", description=__doc__)
    found.add_argument("--timeout", type=float, default=300, help="seconds for all")
    found.add_argument("--mem", default="512M", help="memory of the guest")
    found.add_argument("--tmpfs", default="90%%", help="size of what it writes")
    found.add_argument("--see", action="append", default=[], metavar="DIR")
    found.add_argument("--writable", action="append", default=[], metavar="DIR")
    found.add_argument("--disk", action="append", default=[], metavar="FILE")
    found.add_argument("--module", action="append", default=[])
    found.add_argument("--env", action="append", default=[], metavar="NAME=TEXT")
    found.add_argument("--kernel", action="append", default=[], metavar="ARG")
    found.add_argument("--cwd")
    found.add_argument("--cgroup", choices=["v2", "v1", "none"], default="v2")
    found.add_argument("command", nargs="+")
    return found


def main() -> int:
    options = parser().parse_args()
    options.tmpfs = options.tmpfs.replace("%%", "%")

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)
    out = {n: lambda data, n=n: os.write(n, data) for n in (1, 2)}
    try:
        return run(options, out)
    except Died as why:
        print(f"machine: {why}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
