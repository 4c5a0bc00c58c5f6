"""Time commands fairly: interleaved, in one run, and as ratios."""

import os
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path


Command = Sequence[str]
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
MINIDOCKER = [sys.executable, "-m", "minidocker"]


def wall(command: Command, environment: dict[str, str] | None = None) -> float:
    """Run a command to its end and return the milliseconds it took; it must succeed."""
    started = time.perf_counter()
    found = os.environ if environment is None else environment
    kept = {k: v for k, v in found.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command,
        env=kept,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    took = (time.perf_counter() - started) * 1e3
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}: status {done.returncode}: {done.stderr.decode()}"
        )
    return took


def busy() -> float:
    """Return how busy the processors are: 0 to 1, over a twentieth of a second."""
    before = ticks()
    time.sleep(0.05)
    work, rest = (now - then for now, then in zip(ticks(), before, strict=True))
    return work / max(1, work + rest)


def ticks() -> tuple[int, int]:
    """Return the ticks that the processors have worked and rested."""
    with open("/proc/stat", encoding="ascii") as file:
        found = [int(field) for field in file.readline().split()[1:9]]
    return sum(found) - found[3] - found[4], found[3] + found[4]


def calm(patience: float = 3.0) -> None:
    """Wait until the machine has a quiet moment; each is measured in such a one."""
    end = time.monotonic() + patience
    while busy() > 0.3 and time.monotonic() < end:
        pass


def medians(tasks: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Run every task once to warm up, then all in turn ``rounds`` times."""
    for task in tasks.values():
        task()
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            calm()
            taken[name].append(task())
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_memory(command: Command) -> float:
    """Run a command; return the largest resident set of its processes in MiB."""
    pid = os.posix_spawnp(command[0], list(command), os.environ, file_actions=quiet())
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(
            f"{' '.join(command)}: status {os.waitstatus_to_exitcode(status)}"
        )
    return usage.ru_maxrss / 1024


def quiet() -> list[tuple[int, int, str, int, int]]:
    return [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]


class Bench:
    """A temporary store with one small image called ``bench``, and the table's rows.

    ``ours`` begins a command line of minidocker; ``tar`` is the image's root tree.
    """

    def __init__(self, where: Path) -> None:
        from minidocker.base import make_base

        self.where = where
        self.ours = [*MINIDOCKER, "--root", str(where / "store")]
        self.tree = where / "tree"
        make_base(str(self.tree))
        self.tar = where / "tree.tar"
        with tarfile.open(self.tar, "w") as tar:
            tar.add(self.tree, ".")
        wall([*self.ours, "import", str(self.tar), "bench"])

    def row(
        self, what: str, ours: float, peers: dict[str, tuple[float, float | str]]
    ) -> None:
        """Print our figure (ms), and for each peer its figure, the ratio, the bound."""
        for name, (theirs, bound) in peers.items():
            ratio = f"{ours / theirs:.2f} | {bound}"
            print(f"| {what} | {ours:.0f} ms | {name} {theirs:.0f} ms | {ratio} |")

    def require(self, *programs: str) -> None:
        """Stop where a peer is not installed."""
        from bench.peers import missing

        if absent := missing(*programs):
            raise SystemExit(f"bench needs Debian's {' '.join(absent)}")
