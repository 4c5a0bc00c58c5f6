"""Storage: the commit of many small files."""

import os
from pathlib import Path

from bench.measure import ROUNDS, Bench, medians, wall
from bench.peers import docker
from bench.topics.transfer import timed


FILES = 10_000
MAKE = (
    "mkdir /d; i=0; "
    f"while [ $i -lt {FILES} ]; do "
    "j=$((i % 100)); [ $i -ge 100 ] || mkdir /d/$j; "
    "echo file number $i of many, and small > /d/$j/$i; i=$((i + 1)); done"
)


def bundle_of(where: Path) -> list[str]:
    """Make a bundle that has the files too; return what packs it again."""
    layout, bundle = where / "layout", where / "bundle"
    image = f"{layout}:empty"
    wall(["umoci", "init", "--layout", str(layout)])
    wall(["umoci", "new", "--image", image])
    wall(["umoci", "unpack", "--image", image, str(bundle)])
    fill(bundle / "rootfs", "small")
    return ["umoci", "repack", "--image", f"{layout}:full", str(bundle)]


def layer_commit(where: Path) -> float:
    """Fill a layer, and return the milliseconds that its commit takes, unsynced.

    It is what each RUN and COPY of a build does, and all that umoci's repack does.
    """
    from minidocker.drivers import Overlay2
    from minidocker.durable import Batch
    from minidocker.layers import LayerStore

    layers = LayerStore(
        str(where), Overlay2(str(where)), Batch(str(where), f"{where}/tmp")
    )
    name = os.urandom(8).hex()
    layers.create_rw(name, None)
    with layers.rw_mounted(name) as root:
        fill(Path(root), name)
    return timed(lambda: layers.commit_rw(name))


def fill(root: Path, word: str) -> None:
    """Write the files that MAKE writes, with another word in each."""
    for number in range(FILES):
        path = root / f"d/{number % 100}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file number {number} of many, and {word}\n")


def committed(command: list[str]) -> float:
    """Let a new container write new files; return how long its commit takes."""
    word = os.urandom(8).hex()
    make = ["sh", "-c", MAKE.replace("small", word)]
    wall([*command, "run", "--name", word, "--network", "none", "bench", *make])
    took = wall([*command, "commit", word, "made"])
    wall([*command, "rm", word])
    return took


def measure_commit(bench: Bench) -> None:
    """Commit ten thousand small files that nobody has committed before."""
    repack, daemon = bundle_of(bench.where), bench.where / "dockerd"
    daemon.mkdir()
    with docker(daemon) as client:
        wall([*client, "import", str(bench.tar), "bench"])
        tasks = {
            "layer": lambda: layer_commit(bench.where / "layers"),
            "ours": lambda: committed(bench.ours),
            "docker": lambda: committed(client),
            "umoci": lambda: wall(repack),
        }
        took = medians(tasks, max(3, ROUNDS // 5))
    peers = {
        "docker commit": (took["docker"], 0.25),
        "umoci repack": (took["umoci"], 0.25),
    }
    bench.row("commit a layer of 10,000 files", took["layer"], peers)
    alike = {"docker commit": (took["docker"], "none")}
    bench.row("`commit` of a container with 10,000 files", took["ours"], alike)


def measure(bench: Bench) -> None:
    """Print the rows; `transfer` has that of unpacking, `depth` that of mounting."""
    bench.require("umoci", "dockerd", "docker")
    measure_commit(bench)
