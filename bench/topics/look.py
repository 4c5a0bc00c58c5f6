"""`images` with a thousand images, the same in both stores."""

import hashlib
import io
import json
import tarfile
import time
from pathlib import Path

from bench.measure import ROUNDS, Bench, medians, wall
from bench.peers import docker
from minidocker.engine import Engine
from minidocker.oci import ContainerConfig, HistoryEntry, ImageConfig


COUNT, LAYERS = 1000, 11
ENV = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)


def tar_of(name: str, data: bytes) -> bytes:
    """A tar of one file."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def config_of(number: int, diff_ids: tuple[str, ...]) -> ImageConfig:
    """The JSON of one of the images."""
    day, hour, minute = 1 + number % 28, number % 24, number % 60
    created = f"2024-01-{day:02}T{hour:02}:{minute:02}:00Z"
    return ImageConfig(
        created=created,
        config=ContainerConfig(labels={"number": str(number)}, env=ENV, cmd=("sh",)),
        history=tuple(HistoryEntry(created, f"step {n}") for n in range(len(diff_ids))),
        diff_ids=diff_ids,
    )


def tag_of(number: int) -> str:
    return f"repository{number // 10}:v{number % 10}"


def fill_ours(engine: Engine, layers: list[bytes]) -> None:
    """Make the images in our store, as `load` would."""
    with engine.changing():
        made = [engine.layers.add(io.BytesIO(data).read) for data in layers]
        diff_ids = [layer.diff_id for layer in made if layer]
        names: dict[str, dict[str, str]] = {}
        for number in range(COUNT):
            own = (diff_ids[number % LAYERS],)
            tag = tag_of(number)
            id = engine.images.add(config_of(number, own), None)
            names.setdefault(tag.partition(":")[0], {})[tag] = id
    with engine.images.names.changed() as found:
        found.update(names)


def docker_archive(path: Path, layers: list[bytes]) -> None:
    """Write the images as what `docker load` reads."""
    digests = [hashlib.sha256(data).hexdigest() for data in layers]
    texts = {
        f"{digest}.tar": data for digest, data in zip(digests, layers, strict=True)
    }
    manifest = []
    for number in range(COUNT):
        own = digests[number % LAYERS]
        text = config_of(number, (f"sha256:{own}",)).to_json()
        name = hashlib.sha256(text).hexdigest() + ".json"
        texts[name] = text
        tags = [tag_of(number)]
        manifest.append({"Config": name, "RepoTags": tags, "Layers": [f"{own}.tar"]})
    texts["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def measure(bench: Bench) -> None:
    """Time `images` against Docker's, with the catalog's page and without it."""
    bench.require("dockerd", "docker")
    layers = [tar_of(f"file-{n}", bytes(1000 * n)) for n in range(1, LAYERS + 1)]
    root, daemon = bench.where / "thousand", bench.where / "dockerd"
    engine = Engine(str(root))
    fill_ours(engine, layers)
    archive = bench.where / "thousand.tar"
    docker_archive(archive, layers)
    daemon.mkdir()
    page = Path(engine.images.home) / "catalog"
    ours = [*bench.ours[:-1], str(root), "images"]

    def without_page() -> float:
        page.unlink(missing_ok=True)
        return wall(ours)

    with docker(daemon) as client:
        wall([*client, "load", "-i", str(archive)])
        theirs = [*client, "images"]
        time.sleep(0.2)
        tasks = {
            "without": without_page,
            "minidocker": lambda: wall(ours),
            "docker": lambda: wall(theirs),
        }
        took = medians(tasks, ROUNDS)
    bench.row(
        "`images`, 1,000 of them", took["minidocker"], {"docker": (took["docker"], 0.3)}
    )
    bench.row(
        "the same, the catalog lost",
        took["without"],
        {"docker": (took["docker"], "none")},
    )
