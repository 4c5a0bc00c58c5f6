"""The worked example's build, nothing cached, the store synced."""

import os

from bench.measure import ROUNDS, Bench, medians, wall
from bench.peers import docker
from minidocker.the_example import write_context


def measure(bench: Bench) -> None:
    """Time `build --no-cache` of the example against Docker's classic builder."""
    bench.require("dockerd", "docker")
    context, daemon = bench.where / "context", bench.where / "dockerd"
    write_context(context)
    daemon.mkdir()
    wall([*bench.ours, "import", str(bench.tar), "kb-centos:v11"])
    words = ["build", "--no-cache", "--network", "none", "-t", "example", str(context)]
    classic = {**os.environ, "DOCKER_BUILDKIT": "0"}
    with docker(daemon) as client:
        wall([*client, "import", str(bench.tar), "kb-centos:v11"])
        took = medians(
            {
                "minidocker": lambda: wall([*bench.ours, *words]),
                "docker": lambda: wall([*client, *words], classic),
            },
            max(3, ROUNDS // 3),
        )
    peers = {"docker classic": (took["docker"], 0.1)}
    bench.row("the example's `build --no-cache`", took["minidocker"], peers)
