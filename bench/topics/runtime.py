"""A bundle's life in three commands, by runc and by our runtime."""

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.measure import ROUNDS, Bench, medians
from bench.peers import runc_bundle


# as the console script `minidocker-runtime` does
OURS = [
    sys.executable,
    "-c",
    "from minidocker.runtime_verbs import script; script()",
]


def life(runtime: list[str], bundle: Path, root: Path) -> float:
    """Return the milliseconds of create, start and delete; not those in between."""
    pid_file = root.parent / "pid"
    first = ["create", "--bundle", str(bundle), "--pid-file", str(pid_file), "box"]
    took = 0.0
    environment = {
        k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"
    }
    for words in (first, ["start", "box"], ["delete", "box"]):
        argv = [*runtime, "--root", str(root), *words]
        begun = time.perf_counter()
        quiet = subprocess.DEVNULL
        subprocess.run(
            argv, env=environment, stdin=quiet, stdout=quiet, stderr=quiet, check=True
        )
        took += (time.perf_counter() - begun) * 1e3
        while words[0] == "start" and is_alive(int(pid_file.read_text())):
            time.sleep(0.001)
    return took


def is_alive(pid: int) -> bool:
    """Say whether a process has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def measure(bench: Bench) -> None:
    """Time create, start and delete of one bundle."""
    bench.require("runc")
    bundle = bench.where / "bundle"
    bundle.mkdir()
    runc_bundle(bundle, bench.tree)
    took = medians(
        {
            "minidocker": lambda: life(OURS, bundle, bench.where / "ours"),
            "runc": lambda: life(["/usr/sbin/runc"], bundle, bench.where / "theirs"),
        },
        ROUNDS,
    )
    what = "`runtime create`, `start` and `delete`"
    bench.row(what, took["minidocker"], {"runc": (took["runc"], 3)})
