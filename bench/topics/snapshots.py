"""A thin snapshot costs the same however deep: depth 1, 10, 100, on a guest's kernel.

As a program it is the part inside the guest, and prints ``DEPTH SECONDS SECONDS``.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.measure import Bench
from minidocker.devicemapper import Devicemapper
from minidocker.devices import create_snap, delete
from minidocker.poolrecords import PoolOptions
from minidocker.thinpool import open_session


DEPTHS, ROUNDS = (1, 10, 100), 25
ROOT = Path(__file__).parents[2]
SPARE = 9_000  # ids that no layer has


def inside() -> None:
    """Make a chain of a hundred layers, each written to; time a snapshot at some."""
    sizes = {"data_size": 256 << 20, "metadata_size": 8 << 20}
    options = PoolOptions(base_size=64 << 20, **sizes)
    driver = Devicemapper(tempfile.mkdtemp(), options=options)
    parent: str | None = None
    with driver.held():
        for depth in range(1, max(DEPTHS) + 1):
            layer = f"layer{depth}"
            driver.create(layer, parent)
            with driver.mounted(layer, writable=True) as tree:
                Path(tree, f"file{depth}").write_bytes(os.urandom(65_536))
            parent = layer
            if depth == 1:
                times(driver, layer)  # the first ones pay for what all others find
            if depth in DEPTHS:
                print(
                    depth, *(f"{one:.6f}" for one in times(driver, layer)), flush=True
                )


def times(driver: Devicemapper, layer: str) -> tuple[float, float]:
    """Return the seconds that a snapshot takes the kernel, and a layer takes us."""
    kernel, whole = [], []
    origin = driver.records.layer(layer).device_id
    for number in range(ROUNDS):
        with open_session(driver.disks) as session:
            began = time.perf_counter()
            create_snap(session.dm, session.pool, SPARE, origin)
            kernel.append(time.perf_counter() - began)
            delete(session.dm, session.pool, SPARE)
        began = time.perf_counter()
        driver.create(f"spare{number}", layer)
        whole.append(time.perf_counter() - began)
        driver.remove(f"spare{number}")
    return median(kernel), median(whole)


def measure(bench: Bench) -> None:
    """Boot a guest, and print a row for each depth, beside the one for depth 1."""
    machine = [sys.executable, str(ROOT / "tests/uml/machine.py"), "--see", str(ROOT)]
    words = [*machine, "--", sys.executable, "-m", "bench.topics.snapshots"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    first = [float(one) for one in found[0][1:]]
    for depth, *seconds in found:
        for what, one, base in zip(("snapshot", "layer"), seconds, first, strict=True):
            ratio, mine = float(one) / base, float(one) * 1000
            row = f"| thin {what} at depth {depth} | {mine:.2f} ms "
            print(f"{row}| depth 1 {base * 1000:.2f} ms | {ratio:.2f} | about 1 |")


if __name__ == "__main__":
    inside()
