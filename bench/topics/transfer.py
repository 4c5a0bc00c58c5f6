"""Images in and out: pack, unpack, compress, load; and the memory that it takes."""

import gc
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from bench.measure import Bench, medians, peak_memory, wall
from bench.peers import docker


FILES, MIB, ROUNDS = 10_000, 1 << 20, 5


def timed(task: Callable[[], object]) -> float:
    """Call a task; return the milliseconds it took."""
    started = time.perf_counter()
    task()
    return (time.perf_counter() - started) * 1e3


def many_files(tree: Path) -> Path:
    """Make ten thousand files of up to 4 KiB, half of it compressible."""
    chance = random.Random(1)
    for number in range(FILES):
        path = tree / f"d{number % 100}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        half = chance.randbytes(chance.randrange(2048))
        path.write_bytes(half + b"the same words " * (len(half) // 15))
    return tree


def one_file(tree: Path, mebibytes: int) -> Path:
    """Make one large file, half of it compressible."""
    tree.mkdir()
    with (tree / "big").open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(MIB // 2) + b"same" * (MIB // 8))
    return tree


def real_files(tree: Path, mebibytes: int) -> Path:
    """Copy programs and texts of this machine, of a page and more, into one tree."""
    tree.mkdir()
    left = mebibytes * MIB
    for here, _, names in os.walk("/usr"):
        for name in sorted(names):
            path = Path(here, name)
            size = 0 if path.is_symlink() else path.stat().st_size
            if 4096 <= size <= left:
                left -= size
                shutil.copy(path, tree / f"{left:012d}")
    return tree


def bare_digest(tree: Path) -> None:
    """Read and digest what is in the files, and nothing else."""
    total = sha256()
    for here, _, names in os.walk(tree):
        for name in names:
            with open(os.path.join(here, name), "rb", buffering=0) as file:
                while data := file.read(MIB):
                    total.update(data)


def packed(tree: Path) -> None:
    """Write a tree as a tar, into a digest only."""
    from minidocker.archive import Tally, pack

    pack(str(tree), Tally())


def unpacked(tar: Path, where: Path) -> None:
    """Unpack a layer as `load` does, digests and split included."""
    from minidocker.drivers import Overlay2
    from minidocker.durable import Batch
    from minidocker.layers import LayerStore

    batch = Batch(str(where), str(where / "tmp"))
    with tar.open("rb", buffering=0) as file:
        LayerStore(str(where), Overlay2(str(where)), batch).add(file.read)


def emptied(where: Path) -> Path:
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    return where


def measure_packing(bench: Bench, what: str, tree: Path, bound: float) -> None:
    """Pack with digest beside the bare digest of the contents."""
    tasks = {
        "ours": lambda: timed(lambda: packed(tree)),
        "bare": lambda: timed(lambda: bare_digest(tree)),
    }
    took = medians(tasks, ROUNDS)
    bench.row(f"pack, {what}", took["ours"], {"sha256": (took["bare"], bound)})


def measure_unpacking(bench: Bench, what: str, tar: Path) -> None:
    """Unpack with both digests and the split beside `tar -x`; neither is synced."""
    place = bench.where / "unpacked"

    def ours() -> float:
        where = emptied(place)
        return timed(lambda: unpacked(tar, where))

    def theirs() -> float:
        where = emptied(place)
        return wall(["tar", "-C", str(where), "-xf", str(tar)])

    took = medians({"ours": ours, "tar": theirs}, ROUNDS)
    shutil.rmtree(place)
    bench.row(f"unpack, {what}", took["ours"], {"tar -x": (took["tar"], 2)})


def measure_pushing(bench: Bench, tree: Path) -> None:
    """Tar, digest, gzip, digest in one pass beside `umoci repack`."""
    from minidocker.compression import compress_layer
    from minidocker.drivers import Overlay2
    from minidocker.durable import Batch
    from minidocker.layers import LayerStore

    gc.set_threshold(50_000)  # as the program does
    where = bench.where / "push"
    where.mkdir()
    batch = Batch(str(where), str(where / "tmp"))
    layers = LayerStore(str(where), Overlay2(str(where)), batch)
    layers.create_rw("box", None)
    with layers.rw_mounted("box") as root:
        shutil.copytree(tree, root, dirs_exist_ok=True)
    layer = layers.commit_rw("box")
    assert layer is not None
    layout, bundle = bench.where / "layout", bench.where / "bundle"
    for words in (
        ["init", "--layout", str(layout)],
        ["new", "--image", f"{layout}:empty"],
        ["unpack", "--image", f"{layout}:empty", str(bundle)],
    ):
        wall(["umoci", *words])
    shutil.copytree(tree, bundle / "rootfs", dirs_exist_ok=True)
    repack = ["umoci", "repack", "--image", f"{layout}:full", str(bundle)]
    with open(os.devnull, "wb", buffering=0) as sink:

        def push() -> None:
            compress_layer(layers, layer.chain_id, sink.write)

        tasks = {"ours": lambda: timed(push), "umoci": lambda: wall(repack)}
        took = medians(tasks, 7)
    what = "push's pass: tar, digest, gzip, digest"
    bench.row(what, took["ours"], {"umoci repack": (took["umoci"], 0.2)})


def measure_loading(bench: Bench, tar: Path) -> None:
    """`load` of ten thousand files beside Docker's, both stores synced."""
    wall([*bench.ours, "import", str(tar), "many:v1"])
    archive, store = bench.where / "many.tar", bench.where / "other"
    wall([*bench.ours, "save", "-o", str(archive), "many:v1"])
    ours = [*bench.ours[:-1], str(store), "load", "-i", str(archive)]
    daemon = bench.where / "dockerd"
    daemon.mkdir()

    def load() -> float:
        emptied(store)
        os.sync()
        return wall(ours)

    with docker(daemon) as client:

        def theirs() -> float:
            subprocess.run(
                [*client, "rmi", "many:v1"], check=False, capture_output=True
            )
            os.sync()
            return wall([*client, "load", "-i", str(archive)])

        took = medians({"ours": load, "docker": theirs}, 3)
    bench.row("`load`, 10,000 files", took["ours"], {"docker": (took["docker"], 0.4)})


def measure_memory(bench: Bench, tree: Path) -> None:
    """The peak memory of saving and loading a layer of 1 GiB."""
    tar = bench.where / "gigabyte.tar"
    wall(["tar", "-C", str(tree), "-cf", str(tar), "."])
    archive, store = bench.where / "big.tar", bench.where / "memory"
    for words in (
        [*bench.ours, "import", str(tar), "big"],
        [*bench.ours, "save", "-o", str(archive), "--compression", "gzip", "big"],
        [*bench.ours[:-1], str(store), "load", "-i", str(archive)],
    ):
        peak = peak_memory(words)
        name = words[words.index("--root") + 2]
        print(f"| peak memory, `{name}` of 1 GiB | {peak:.0f} MiB | | | 150 MiB |")
    for path in (tar, archive):
        path.unlink()


def measure(bench: Bench) -> None:
    """Print the rows of this topic."""
    bench.require("umoci", "dockerd", "docker")
    many, big = many_files(bench.where / "many"), one_file(bench.where / "big", 512)
    tars = {}
    for name, tree in (("10,000 files", many), ("512 MiB", big)):
        tars[name] = bench.where / f"{tree.name}.tar"
        wall(["tar", "-C", str(tree), "-cf", str(tars[name]), "."])
        measure_packing(bench, name, tree, 3 if tree == many else 1.4)
        measure_unpacking(bench, name, tars[name])
    shutil.rmtree(big)
    measure_pushing(bench, real_files(bench.where / "real", 256))
    measure_loading(bench, tars["10,000 files"])
    measure_memory(bench, one_file(bench.where / "gigabyte", 1024))
