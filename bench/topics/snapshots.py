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
    """Make a chain of a hundred layers, each written to; time snapshots of some.

    In turns, so that whatever else the machine does is shared by all depths.
    """
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
        turns = [[times(driver, depth) for depth in DEPTHS] for _ in range(ROUNDS)]
    for depth, found in zip(DEPTHS, zip(*turns[1:], strict=True), strict=True):
        print(depth, *(f"{median(one):.6f}" for one in zip(*found, strict=True)))


def times(driver: Devicemapper, depth: int) -> tuple[float, float]:
    """Return the seconds that a snapshot takes the kernel, and a layer takes us."""
    origin = driver.records.layer(f"layer{depth}").device_id
    with open_session(driver.disks) as session:
        began = time.perf_counter()
        create_snap(session.dm, session.pool, SPARE, origin)
        kernel = time.perf_counter() - began
        delete(session.dm, session.pool, SPARE)
    began = time.perf_counter()
    driver.create("spare", f"layer{depth}")
    whole = time.perf_counter() - began
    driver.remove("spare")
    return kernel, whole


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
