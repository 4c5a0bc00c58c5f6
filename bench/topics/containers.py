"""`exec`, fifty containers at once, and a thousand one after another."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench.measure import ROUNDS, Bench, Command, medians, wall
from bench.peers import docker, runc_bundle


FIFTY = 50
THOUSAND = int(os.environ.get("BENCH_THOUSAND", "1000"))
ONE = ["run", "--rm", "--network", "none", "bench", "true"]


def at_once(commands: list[Command]) -> float:
    """Start commands all at once; all must succeed. Returns those done in a second."""
    started = time.perf_counter()
    running = [
        subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for one in commands
    ]
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{process.args!r}: {errors.decode()}")
    return len(commands) / (time.perf_counter() - started)


def runc_bundles(bench: Bench) -> list[Command]:
    """Commands that run as many bundles of the same tree, each with its own name."""
    bundle = bench.where / "fifty"
    bundle.mkdir()
    command = runc_bundle(bundle, bench.tree)
    return [[*command[:-1], f"{command[-1]}-{number}"] for number in range(FIFTY)]


def measure_fifty(bench: Bench, client: list[str]) -> None:
    """Containers a second, fifty started at once; more is better."""
    tasks: dict[str, Callable[[], float]] = {
        "ours": lambda: at_once([[*bench.ours, *ONE]] * FIFTY),
        "docker": lambda: at_once([[*client, *ONE]] * FIFTY),
    }
    bundles = runc_bundles(bench)
    tasks["runc"] = lambda: at_once(bundles)
    found = medians(tasks, 3)
    for name, bound in (("docker", 10), ("runc", 1)):
        ours, theirs = found["ours"], found[name]
        print(
            f"| {FIFTY} containers at once | {ours:.0f} a second "
            f"| {name} {theirs:.0f} a second | {ours / theirs:.1f} | at least {bound} |"
        )


def measure_exec(bench: Bench, client: list[str]) -> None:
    """Run `true` in a container that runs already."""
    sleeper = ["run", "-d", "--name", "sleeper", "--network", "none", "bench"]
    sleeper += ["sleep", "10000"]
    words = ["exec", "sleeper", "true"]
    for command in (bench.ours, client):
        wall([*command, *sleeper])
    try:
        tasks = {
            "ours": lambda: wall([*bench.ours, *words]),
            "docker": lambda: wall([*client, *words]),
        }
        took = medians(tasks, ROUNDS)
    finally:
        for command in (bench.ours, client):
            wall([*command, "rm", "-f", "sleeper"])
    bench.row("`exec CONTAINER true`", took["ours"], {"docker": (took["docker"], 0.2)})


def traces(store: Path) -> dict[str, int]:
    """Count what containers of a store could leave behind."""
    ours = [
        place for place, _, _ in os.walk("/sys/fs/cgroup") if "/minidocker/" in place
    ]
    words = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    return {
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": len(socket.if_nameindex()),
        "control groups": len(ours),
        "loop devices": len(list(Path("/sys/block").glob("loop*/loop"))),
        "directories": sum(1 for _ in os.walk(store)),
        "processes": sum(os.fsencode(store) in one for one in words),
    }


def measure_thousand(bench: Bench) -> None:
    """Run a thousand, one after another, and say what is there more than before."""
    command = [*bench.ours, *ONE]
    wall(command)
    before, started = traces(bench.where / "store"), time.perf_counter()
    for _ in range(THOUSAND):
        wall(command)
    took = (time.perf_counter() - started) / THOUSAND * 1e3
    time.sleep(1)  # the last one's supervisor may be about to end
    after = traces(bench.where / "store")
    more = {name: after[name] - count for name, count in before.items()}
    left = ", ".join(f"{name} {n:+}" for name, n in more.items() if n > 0) or "nothing"
    print(f"| {THOUSAND} runs | {took:.0f} ms each | left: {left} | | nothing |")


def measure(bench: Bench) -> None:
    """Print the rows of this topic."""
    bench.require("runc", "dockerd", "docker")
    daemon = bench.where / "dockerd"
    daemon.mkdir()
    with docker(daemon) as client:
        wall([*client, "import", str(bench.tar), "bench"])
        measure_exec(bench, client)
        measure_fifty(bench, client)
    shutil.rmtree(bench.where / "fifty")
    measure_thousand(bench)
