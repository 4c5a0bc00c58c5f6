"""What depth costs: mounts and look-ups of an image of 1 to 500 layers."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import ROUNDS, Bench, calm
from minidocker.drivers import Overlay2
from minidocker.linux import CloneFlags, unshare
from minidocker.mounts import MountFlags, UmountFlags, mount, umount2


DEPTHS = (1, 10, 50, 100, 250, 500)
TIMES = ("mount", "lowest", "again", "absent", "list")


def microseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - started) / 1e3


def image(driver: Overlay2, depth: int) -> str:
    """Make an image of ``depth`` layers, each with a file, and a container of it."""
    parent = None
    for number in range(depth):
        layer = f"{depth}-{number:03}"
        driver.create(layer, parent)
        Path(driver.tree(layer), f"only-in-{number}").write_text("x")
        parent = layer
    driver.create(f"{depth}-container", parent)
    return f"{depth}-container"


@contextmanager
def own_mounts(where: Path) -> Iterator[Path]:
    """A store in memory, in a mount namespace of this process's own."""
    unshare(CloneFlags.NEWNS)
    mount(None, "/", None, MountFlags.PRIVATE | MountFlags.REC)
    mount("tmpfs", str(where), "tmpfs")
    try:
        yield where
    finally:
        umount2(str(where), UmountFlags.DETACH)


def one_round(driver: Overlay2, container: str, target: str) -> dict[str, float]:
    """Mount once, look names up, unmount; return microseconds."""
    view = driver.view(container, writable=True)
    taken = {"mount": microseconds(lambda: view.mount(target))}
    lowest, absent = f"{target}/only-in-0", f"{target}/nobody"
    taken["lowest"] = microseconds(lambda: os.stat(lowest))
    taken["again"] = microseconds(lambda: os.stat(lowest))
    taken["absent"] = microseconds(lambda: os.path.lexists(absent))
    taken["list"] = microseconds(lambda: os.listdir(target))
    umount2(target, UmountFlags.DETACH)
    return taken


def medians(where: Path) -> dict[int, dict[str, float]]:
    """Return for each depth the medians, of rounds that take turns."""
    driver, target = Overlay2(str(where)), f"{where}/target"
    os.mkdir(target)
    containers = {depth: image(driver, depth) for depth in DEPTHS}
    found: dict[int, list[dict[str, float]]] = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS):
        for depth, container in containers.items():
            calm(0.5)
            found[depth].append(one_round(driver, container, target))
    return {
        depth: {name: statistics.median(r[name] for r in rounds) for name in TIMES}
        for depth, rounds in found.items()
    }


def measure(bench: Bench) -> None:
    """Print the cost of depth: microseconds, and the bound of a hundred layers."""
    where = bench.where / "depth"
    where.mkdir()
    with own_mounts(where) as store:
        found = medians(store)
    more = (found[100]["mount"] - found[1]["mount"]) / 1e3
    ours, one = (found[depth]["mount"] / 1e3 for depth in (100, 1))
    print(
        f"| mount, 100 layers | {ours:.2f} ms | one layer {one:.2f} ms "
        f"| {more:+.2f} ms | +2 ms |"
    )
    print(
        "\n| layers | mount | name in the lowest, first | again | absent name | list |"
    )
    print("|---|---|---|---|---|---|")
    for depth, times in found.items():
        cells = " | ".join(f"{times[name]:.0f} µs" for name in TIMES)
        print(f"| {depth} | {cells} |")
    print()
