"""`run` of a small image that is there already, without a network."""

from bench.measure import ROUNDS, Bench, medians, wall
from bench.peers import docker, runc_bundle


def measure(bench: Bench) -> None:
    """Time `run --rm --network none IMAGE true` against runc and Docker."""
    bench.require("runc", "dockerd", "docker")
    words = ["run", "--rm", "--network", "none", "bench", "true"]
    bundle, daemon = bench.where / "bundle", bench.where / "dockerd"
    bundle.mkdir()
    daemon.mkdir()
    runc = runc_bundle(bundle, bench.tree)
    with docker(daemon) as client:
        wall([*client, "import", str(bench.tar), "bench"])
        took = medians(
            {
                "minidocker": lambda: wall([*bench.ours, *words]),
                "runc": lambda: wall(runc),
                "docker": lambda: wall([*client, *words]),
            },
            ROUNDS,
        )
    peers = {"runc": (took["runc"], 1.0), "docker": (took["docker"], 0.2)}
    bench.row("`run --rm --network none IMAGE true`", took["minidocker"], peers)
