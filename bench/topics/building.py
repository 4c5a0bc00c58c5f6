"""Builds of four kinds, anew and cached, beside Docker's two builders and buildah."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.measure import ROUNDS, Bench, medians, peak_memory, wall
from bench.peers import buildah, docker


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


Builder = Callable[[list[str]], float]


def builders(bench: Bench, client: list[str], bud: list[str]) -> dict[str, Builder]:
    """What each builder does with further words; the last one is the context."""
    kits = {"docker classic": "0", "BuildKit": "1"}
    found: dict[str, Builder] = {}
    for name, flag in kits.items():
        command = [*client, "build", "-q", "--network", "none"]
        env = {**os.environ, "DOCKER_BUILDKIT": flag}
        found[name] = partial(build_with, command, env)
    found["buildah"] = partial(build_with, bud, None)
    found["ours"] = partial(
        build_with, [*bench.ours, "build", "-q", "--network", "none"], None
    )
    return found


def build_with(
    command: list[str], env: dict[str, str] | None, words: list[str]
) -> float:
    return wall([*command, *words], env)


def measure(bench: Bench) -> None:
    """Time each kind of build anew, then found in the cache."""
    bench.require("dockerd", "docker", "buildah", "runc")
    for name in ("dockerd", "buildah"):
        (bench.where / name).mkdir()
    with (
        docker(bench.where / "dockerd") as client,
        buildah(bench.where / "buildah", bench.tar) as bud,
    ):
        wall([*client, "import", str(bench.tar), "bench"])
        known = builders(bench, client, bud)
        for name, context in contexts(bench.where).items():
            measure_kind(bench, known, name, context)


def measure_kind(
    bench: Bench, known: dict[str, Builder], name: str, context: Path
) -> None:
    """Print the rows of one kind of build."""
    rounds = max(3, ROUNDS // 5)
    anew = ["--no-cache", str(context)]
    took = medians({who: partial(build, anew) for who, build in known.items()}, rounds)
    peers: dict[str, tuple[float, float | str]] = {
        "docker classic": (took["docker classic"], NEW[name]),
        "buildah": (took["buildah"], ""),
        "BuildKit": (took["BuildKit"], ""),
    }
    bench.row(TITLES[name], took["ours"], peers)
    again = [str(context)]
    took = medians({who: partial(build, again) for who, build in known.items()}, rounds)
    peers = {"BuildKit": (took["BuildKit"], 1.0), "buildah": (took["buildah"], "")}
    bench.row(f"{TITLES[name]}, cached", took["ours"], peers)
    peak = peak_memory([*bench.ours, "build", "-q", "--no-cache", str(context)])
    print(f"| {TITLES[name]}, peak memory | {peak:.0f} MiB | | | 150 MiB |")
