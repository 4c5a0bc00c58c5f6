"""Inside a guest: look whether a store has survived, then make things until the kernel dies.

    python crashing.py DISK PLACE ROUND

The store is on an ext4 in the disk. What was reported as made, be it an image, a network,
a volume or a container, is written to the file ``committed`` there, and synced; it must be
whole after the next boot. Prints ``verified`` when all that was committed is whole, and
``built`` after each build.
"""

import io
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path


MINIDOCKER = [sys.executable, "-m", "minidocker"]
SMALL = ("dm.basesize=64M", "dm.loopdatasize=64M", "dm.loopmetadatasize=4M")
KEPT = 3
LISTS = {
    "image": ("images", "--format", "image {{.Repository}}"),
    "network": ("network", "ls", "--format", "network {{.Name}} {{.Labels}}"),
    "volume": ("volume", "ls", "--format", "volume {{.Name}} {{.Labels}}"),
    "box": ("ps", "-a", "--format", "box {{.Names}}"),  # sweeps, if nobody has
}
REMOVE = {
    "box": ("rm",),
    "image": ("rmi",),
    "network": ("network", "rm"),
    "volume": ("volume", "rm"),
}
DOCKERFILE = """\
FROM base
COPY f /f
RUN echo one > /one && echo {n} > /n && rm /etc/motd
RUN busybox seq 20000 > /numbers
"""


def number_of(line: str) -> int:
    """Return the number in the name of a thing that was made."""
    return int(re.sub(r"\D", "", line.split()[1]))


def fail(why: str) -> None:
    print("broken:", why, flush=True)
    sys.exit(1)


class Store:
    """The store, by its command line."""

    def __init__(self, place: Path) -> None:
        self.place, self.committed = place, place / "committed"
        self.words = [*MINIDOCKER, "--root", str(place / "store")]
        self.words += ["--storage-driver", "devicemapper"]
        for option in SMALL:
            self.words += ["--storage-opt", option]

    def do(self, *words: str) -> str:
        """Do a command; it must succeed."""
        done = subprocess.run(
            [*self.words, *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            fail(f"{words}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def begin(self) -> None:
        """Make the images that builds start from."""
        path = self.place / "base.tar"
        with tarfile.open(path, "w") as tar:
            for name in ("bin", "etc"):
                member = tarfile.TarInfo(name)
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(member)
            member = tarfile.TarInfo("etc/motd")
            member.size = 6
            tar.addfile(member, io.BytesIO(b"hello\n"))
            tar.add("/bin/busybox", "bin/busybox")
            for name in ("sh", "rm", "cat"):
                member = tarfile.TarInfo(f"bin/{name}")
                member.type, member.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(member)
        self.do("import", str(path), "base")
        self.note(["image base"])

    def note(self, names: list[str]) -> None:
        """Write down, for sure, what was reported as made."""
        new = self.place / "committed.new"
        with open(new, "w") as file:
            file.write("\n".join(names))
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.committed)
        fd = os.open(self.place, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def verify(self) -> None:
        """Look at the pool's metadata, at the store, at the images."""
        metadata = self.place / "store/devicemapper/devicemapper/metadata"
        if metadata.exists():
            done = subprocess.run(
                ["thin_check", str(metadata)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                fail(f"thin_check: {done.stdout}{done.stderr}")
        there = {line for kind in LISTS for line in self.do(*LISTS[kind]).splitlines()}
        self.do("system", "check")
        lines = self.committed.read_text().splitlines()
        if missing := set(lines) - there:
            fail(f"lost: {missing}")
        for line in lines[1:]:
            kind, name = line.split()[:2]
            if kind == "image":
                self.look_at(name)
            if kind == "box":
                self.do("start", "-a", name)
        if untold := [one[4:] for one in there - set(lines) if one.startswith("box ")]:
            self.do("rm", *untold)
        self.forget(lines)

    def look_at(self, name: str) -> None:
        """Run an image, and see that its files are whole."""
        words = ("run", "--rm", "--network", "none", name, "cat", "/one", "/n", "/f")
        said = self.do(*words)
        if said.split() != ["one", name.removeprefix("built"), "file"]:
            fail(f"{name}: {said}")

    def forget(self, lines: list[str]) -> None:
        """Remove all but the newest things, so that the disk does not fill."""
        numbers = sorted({number_of(line) for line in lines[1:]})[-KEPT:]
        kept = [one for one in lines if one in lines[:1] or number_of(one) in numbers]
        old = {kind: list[str]() for kind in LISTS}
        for line in lines:
            if line not in kept:
                kind, name = line.split()[:2]
                old[kind].append(name)
        self.note(kept)
        for kind, verb in REMOVE.items():
            if old[kind]:
                self.do(*verb, *old[kind])
        self.do("system", "check")

    def build(self, number: int) -> None:
        """Build an image anew."""
        context = self.place / "context"
        context.mkdir(exist_ok=True)
        (context / "f").write_text("file\n")
        (context / "Dockerfile").write_text(DOCKERFILE.format(n=number))
        self.do("build", "-q", "--no-cache", "-t", f"built{number}", str(context))
        self.add(f"image built{number}")

    def make(self, number: int) -> None:
        """Make one of everything else, and write each down as soon as it was said."""
        n = str(number)
        self.do("network", "create", f"net{n}", "--label", f"n={n}")
        self.add(f"network net{n} n={n}")
        self.do("volume", "create", f"vol{n}", "--label", f"n={n}")
        self.add(f"volume vol{n} n={n}")
        command = ("base", "cat", "/etc/motd")
        self.do(
            "create",
            "--name",
            f"first{n}",
            "-v",
            f"vol{n}:/v",
            "--network",
            "none",
            *command,
        )
        self.do("rename", f"first{n}", f"box{n}")
        self.add(f"box box{n}")
        self.do("update", "--cpu-shares", str(number + 2), f"box{n}")
        shares = self.do("inspect", "-f", "{{.HostConfig.CpuShares}}", f"box{n}")
        if shares != str(number + 2):
            fail(f"box{n}: {shares}")
        self.do("run", "--rm", "--network", "none", "-v", "/anonymous", *command)

    def add(self, line: str) -> None:
        """Write down one more thing that was made."""
        self.note([*self.committed.read_text().splitlines(), line])


def main(disk: str, place: Path, turn: int) -> None:
    if turn == 0:
        subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", disk, str(place)], check=True)
    store = Store(place)
    if turn == 0:
        store.begin()
    store.verify()
    print("verified", flush=True)
    for number in range(turn * 1000, turn * 1000 + 1000):
        for work in (store.make, store.build)[:: 1 if turn % 2 else -1]:
            work(number)
        print("built", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
