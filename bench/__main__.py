"""Measure minidocker beside its peers, in one run, and print the ratios as a table.

python -m bench            everything
python -m bench run build  only these

Needs root, and Debian's runc and docker.io for the ratios that name them.
"""

import os
import sys
import tarfile
import tempfile
from pathlib import Path

from bench.measure import medians, peak_memory, wall
from bench.peers import MINIDOCKER, docker, missing, runc_bundle


ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))


class Bench:
    """A temporary store with one small image, and the rows of the table."""

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
        self, what: str, ours: float, peers: dict[str, tuple[float, float]]
    ) -> None:
        """Print our figure, and for each peer its figure, the ratio and the bound."""
        for name, (theirs, bound) in peers.items():
            ratio = f"{ours / theirs:.2f} | {bound}"
            print(f"| {what} | {ours:.0f} ms | {name} {theirs:.0f} ms | {ratio} |")

    def run(self) -> None:
        """Time `run --rm --network none IMAGE true`."""
        command = [*self.ours, "run", "--rm", "--network", "none", "bench", "true"]
        tasks = {"minidocker": lambda: wall(command)}
        bundle = self.where / "bundle"
        bundle.mkdir()
        runc = runc_bundle(bundle, self.tree)
        tasks["runc"] = lambda: wall(runc)
        (self.where / "dockerd").mkdir()
        with docker(self.where / "dockerd") as client:
            wall([*client, "import", str(self.tar), "bench"])
            theirs = [*client, "run", "--rm", "--network", "none", "bench", "true"]
            tasks["docker"] = lambda: wall(theirs)
            took = medians(tasks, ROUNDS)
        peers = {"runc": (took["runc"], 1.5), "docker": (took["docker"], 0.25)}
        self.row("`run --rm --network none IMAGE true`", took["minidocker"], peers)

    def build(self) -> None:
        """Time the worked example's build, nothing cached, the store synced."""
        from minidocker.the_example import write_context

        context = self.where / "context"
        write_context(context)
        for name in ("kb-centos:v11",):
            wall([*self.ours, "import", str(self.tar), name])
        command = [*self.ours, "build", "--no-cache", "-t", "example", str(context)]
        classic = {**os.environ, "DOCKER_BUILDKIT": "0"}
        daemon = self.where / "dockerd-build"
        daemon.mkdir()
        with docker(daemon) as client:
            wall([*client, "import", str(self.tar), "kb-centos:v11"])
            theirs = [*client, "build", "--no-cache", "-t", "example", str(context)]
            tasks = {
                "minidocker": lambda: wall(command),
                "docker": lambda: wall(theirs, classic),
            }
            took = medians(tasks, max(3, ROUNDS // 3))
        peers = {"docker classic": (took["docker"], 0.1)}
        self.row("the example's `build --no-cache`", took["minidocker"], peers)

    def memory(self) -> None:
        """Show the peak memory of committing a layer of 1 GiB."""
        context = self.where / "gigabyte"
        context.mkdir()
        with (context / "big").open("wb") as big:
            for _ in range(1024):
                big.write(os.urandom(4096) * 256)
        (context / "Dockerfile").write_text(
            "FROM bench\nCOPY big /big\nRUN cp /big /second\n"
        )
        peak = peak_memory([*self.ours, "build", "--no-cache", str(context)])
        print(f"| peak memory, COPY and RUN of 1 GiB | {peak:.0f} MiB | | | 100 MiB |")


def main(chosen: list[str]) -> None:
    """Run the benchmarks that are named, or all."""
    if os.geteuid() != 0 or (absent := missing("runc", "dockerd", "docker")):
        raise SystemExit(f"bench needs root and Debian's runc and docker.io {absent}")
    with tempfile.TemporaryDirectory(prefix="minidocker-bench-") as name:
        bench = Bench(Path(name))
        print("| what | minidocker | peer | ratio | bound |\n|---|---|---|---|---|")
        for each in chosen or ["run", "build", "memory"]:
            getattr(bench, each)()


if __name__ == "__main__":
    main(sys.argv[1:])
