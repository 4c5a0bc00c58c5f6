"""`run` with a network: a bridge, an address, a port of the host."""

import os

from bench.measure import ROUNDS, Bench, medians, wall
from bench.peers import docker
from minidocker.rtnetlink import inside, new_netns
from minidocker.wiring import open_up


def measure(bench: Bench) -> None:
    """Time `run --rm IMAGE true` and with `-p` against Docker, each with its bridge.

    Both are in a network namespace of the measurement's own. For ours the bridge is
    made and removed by each container that is alone; Docker's is there.
    """
    bench.require("dockerd", "docker")
    daemon = bench.where / "dockerd"
    daemon.mkdir()
    plain = ["run", "--rm", "bench", "true"]
    published = ["run", "--rm", "-p", "8080:80", "bench", "true"]
    netns = new_netns()
    open_up(netns)
    with inside(netns), docker(daemon, bridge=True) as client:
        wall([*client, "import", str(bench.tar), "bench"])
        took = medians(
            {
                "minidocker": lambda: wall([*bench.ours, *plain]),
                "docker": lambda: wall([*client, *plain]),
                "minidocker -p": lambda: wall([*bench.ours, *published]),
                "docker -p": lambda: wall([*client, *published]),
            },
            ROUNDS,
        )
    os.close(netns)
    peers = {"docker": (took["docker"], 0.25)}
    bench.row("`run --rm IMAGE true`, with a bridge", took["minidocker"], peers)
    peers = {"docker": (took["docker -p"], 0.25)}
    bench.row("`run --rm -p 8080:80 IMAGE true`", took["minidocker -p"], peers)
