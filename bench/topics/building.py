"""Builds of four kinds, anew and cached, beside Docker's two builders; ours synced."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.measure import ROUNDS, Bench, medians, peak_memory, wall
from bench.peers import docker


NEW = {"metadata": 0.05, "run": 0.05, "files": 0.12, "large": 0.15}
TITLES = {
    "metadata": "20 metadata instructions",
    "run": "20 RUN steps",
    "files": "COPY of 10,000 small files",
    "large": "COPY of one 512 MiB file",
}


def contexts(where: Path) -> dict[str, Path]:
    """Write the four contexts."""
    lines = {
        "metadata": [f"ENV V{n}={n}" for n in range(20)],
        "run": [f"RUN echo {n} > /f{n}" for n in range(20)],
        "files": ["COPY d /d"],
        "large": ["COPY large /large"],
    }
    for name, steps in lines.items():
        (where / name).mkdir()
        text = "\n".join(["FROM bench", *steps, ""])
        (where / name / "Dockerfile").write_text(text)
    for number in range(10_000):
        path = where / "files/d" / str(number // 100) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(3400))
    with (where / "large/large").open("wb") as large:
        for _ in range(512):
            large.write(os.urandom(1 << 20))
    return {name: where / name for name in lines}


def tasks_of(
    theirs: list[str], ours: list[str], kits: dict[str, dict[str, str]], more: list[str]
) -> dict[str, Callable[[], float]]:
    """The same build by each builder."""
    tasks = {kit: partial(wall, [*theirs, *more], env) for kit, env in kits.items()}
    return tasks | {"ours": partial(wall, [*ours, *more])}


def measure(bench: Bench) -> None:
    """Time each kind of build anew, then found in the cache."""
    bench.require("dockerd", "docker")
    (bench.where / "dockerd").mkdir()
    kits = {
        name: {**os.environ, "DOCKER_BUILDKIT": flag}
        for name, flag in (("docker classic", "0"), ("BuildKit", "1"))
    }
    rounds = max(3, ROUNDS // 5)
    with docker(bench.where / "dockerd") as client:
        wall([*client, "import", str(bench.tar), "bench"])
        for name, context in contexts(bench.where).items():
            command = [*client, "build", "-q", "--network", "none", str(context)]
            ours = [*bench.ours, "build", "-q", str(context)]
            took = medians(tasks_of(command, ours, kits, ["--no-cache"]), rounds)
            peers = {
                "docker classic": (took["docker classic"], NEW[name]),
                "BuildKit": (took["BuildKit"], ""),
            }
            bench.row(TITLES[name], took["ours"], peers)
            took = medians(tasks_of(command, ours, kits, []), rounds)
            bench.row(
                f"{TITLES[name]}, cached",
                took["ours"],
                {"BuildKit": (took["BuildKit"], 1.0)},
            )
            peak = peak_memory([*ours, "--no-cache"])
            print(f"| {TITLES[name]}, peak memory | {peak:.0f} MiB | | | 150 MiB |")
