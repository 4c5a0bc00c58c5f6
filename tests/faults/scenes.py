"""Commands to break, the store they start from, and what must be true afterwards."""

import http.client
import importlib
import io
import json
import os
import pkgutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from registry.fake import Handler, fake_registry

import minidocker
from faults.tracer import speak_plainly
from minidocker.cli import main
from minidocker.devices import DeviceMapper, devices
from minidocker.integrity import left_mounted
from minidocker.linux import Prctl, prctl
from minidocker.trees import copy_tree, remove_path


BUSYBOX = "/bin/busybox"
DOCKERFILE = """\
FROM base
COPY f /f
RUN echo one > /one && rm /etc/motd
LABEL a=b
"""


@dataclass(frozen=True)
class Scene:
    """A command, what it leaves if it succeeds, and what may go by it.

    ``shows`` is a command line and what it says once the scene has succeeded.

    ``again`` are statuses that the same command may end with when it is given again:
    what it removes may be gone, the name it gives may be taken.
    """

    words: tuple[str, ...]
    makes: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    again: tuple[int, ...] = (0,)
    shows: tuple[tuple[str, ...], str] | None = None

    def keeps(self) -> set[str]:
        """Return the names that must be there whatever happens."""
        kept = {"base:latest", "other:latest", "top:latest", "box"}
        kept |= {"network:net", "volume:vol"}
        return set() if "prune" in self.words else kept - set(self.takes)


SCENES = {
    "import": Scene(("import", "{tar}", "new"), makes=("new:latest",)),
    "build": Scene(("build", "-t", "new", "{context}"), makes=("new:latest",)),
    "commit": Scene(("commit", "box", "new"), makes=("new:latest",)),
    "run": Scene(("run", "--name", "rr", "base", "sh", "-c", "echo x > /x"), again=(0, 125)),
    "run --rm": Scene(("run", "--rm", "base", "sh", "-c", "echo x > /x")),
    "run -d": Scene(("run", "-d", "--name", "rr", "base", "true"), again=(0, 125)),
    "create": Scene(
        ("create", "--name", "rr", "--network", "net", "-v", "/made", "base", "true"),
        makes=("rr",),
        again=(0, 1, 125),
    ),
    "rename": Scene(("rename", "box", "bix"), makes=("bix",), takes=("box",), again=(0, 1)),
    "update": Scene(
        ("update", "--cpu-shares", "77", "box"),
        shows=(("inspect", "-f", "{{{{.HostConfig.CpuShares}}}}", "box"), "77\n"),
    ),
    "network create": Scene(("network", "create", "new"), makes=("network:new",), again=(0, 1)),
    "network connect": Scene(
        ("network", "connect", "net", "box"),
        shows=(("inspect", "-f", "{{{{range $k, $v := .NetworkSettings.Networks}}}}{{{{$k}}}} {{{{end}}}}", "box"), "bridge net \n"),
        again=(0, 1),
    ),
    "network rm": Scene(("network", "rm", "net"), takes=("network:net",), again=(0, 1)),
    "volume create": Scene(("volume", "create", "new"), makes=("volume:new",)),
    "volume rm": Scene(("volume", "rm", "vol"), takes=("volume:vol",), again=(0, 1)),
    "cp": Scene(("cp", "{context}/f", "box:/copied")),
    "cp out": Scene(("cp", "box:/y", "{out}")),
    "pull": Scene(("pull", "{registry}/team/pulled"), makes=("{registry}/team/pulled:latest",)),
    "push": Scene(("push", "{registry}/team/pushed")),
    "rm": Scene(("rm", "box"), takes=("box",), again=(0, 1)),
    "rmi": Scene(("rmi", "top"), takes=("top:latest",), again=(0, 1)),
    "tag": Scene(("tag", "base", "new"), makes=("new:latest",)),
    "load": Scene(("load", "-i", "{saved}"), makes=("saved:latest",)),
    "prune": Scene(("system", "prune", "-af"), takes=("box", "top:latest")),
}  # fmt: skip


LATE = ("gzip", "isal.igzip", "pyroute2", "urllib3", "zstandard", "concurrent.futures.thread", "zipfile")  # fmt: skip


def import_all() -> None:
    """Load every chapter, for the children that commands are done in load none."""
    for one in pkgutil.iter_modules(minidocker.__path__):
        if one.name not in ("__main__", "the_example"):
            importlib.import_module(f"minidocker.{one.name}")
    for name in LATE:
        importlib.import_module(name)


class Stage:
    """A store to start from, copied for each run; everything is below ``place``."""

    def __init__(self, place: Path, driver: str) -> None:
        self.place, self.driver = place, driver
        self.first, self.store = place / "first", place / "store"
        self.said = str(place / "said")
        self.files = {
            "tar": str(place / "new.tar"),
            "other": str(place / "other.tar"),
            "context": str(place / "context"),
            "saved": str(place / "saved.tar"),
            "out": str(place / "out.file"),
        }
        self.server, self.files["registry"] = start_registry()
        (place / "context").mkdir()
        (place / "context/Dockerfile").write_text(DOCKERFILE)
        (place / "context/f").write_text("file\n")
        make_tar(place / "base.tar", busybox=True)
        for name in ("new", "other"):
            make_tar(place / f"{name}.tar", busybox=False)
        os.mkdir(self.store)
        self.prepare()
        until(self.is_idle)
        os.rename(self.store, self.first)

    def prepare(self) -> None:
        """Make the images and the container that commands work on."""
        base = str(self.place / "base.tar")
        for words in (
            ("import", base, "base"),
            ("build", "-t", "saved", self.files["context"]),
            ("save", "-o", self.files["saved"], "saved"),
            ("import", self.files["other"], "other"),
            ("build", "-t", "top", "-f", self.top(), self.files["context"]),
            ("run", "--name", "box", "base", "sh", "-c", "echo y > /y"),
            ("tag", "saved", "{registry}/team/pulled"),
            ("push", "{registry}/team/pulled"),
            ("rmi", "saved", "{registry}/team/pulled"),
            ("network", "create", "net"),
            ("volume", "create", "vol"),
            ("tag", "other", "{registry}/team/pushed"),
            ("images", "-a"),
            ("system", "check"),
        ):
            [(status, said)] = self.do(words)
            if status:
                raise RuntimeError(f"{words}: {status}\n{said}")
        (self.store / "volumes/vol/_data/file").write_text("precious\n")

    def top(self) -> str:
        """Write a Dockerfile that needs no container, and return its path."""
        path = self.place / "top"
        path.write_text("FROM other\nCOPY f /\nLABEL c=d\n")
        return str(path)

    def begin(self) -> None:
        """Put the store back to where it started."""
        if not self.is_idle() and self.store.exists():
            self.do(("info",))  # clears away what a killed command keeps up
        until(self.is_idle)
        if self.store.exists():
            remove_path(str(self.store))
        os.mkdir(self.store)
        copy_tree(str(self.first), str(self.store))
        forget_pushed(self.files["registry"])

    def end(self) -> None:
        """Stop the registry, and remove all."""
        os.kill(self.server, signal.SIGKILL)
        os.waitpid(self.server, 0)
        until(self.is_idle)
        remove_path(str(self.place))

    def is_idle(self) -> bool:
        """Whether the kernel has taken everything down that the store had up."""
        return self.driver != "devicemapper" or not pool_devices()

    def command(self, words: tuple[str, ...]) -> Callable[[], int]:
        """Return what does a command line on the store."""
        whole = [word.format(**self.files) for word in words]
        head = ["--root", str(self.store), "--storage-driver", self.driver]
        options = SMALL if self.driver == "devicemapper" else ()
        head += [word for one in options for word in ("--storage-opt", one)]
        return lambda: main([*head, *whole])

    def do(self, *lines: tuple[str, ...]) -> list[tuple[int, str]]:
        """Do command lines undisturbed in a child; return each status and its words."""
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                speak_plainly()
                found = [self.said_by(words) for words in lines]
                Path(self.said).write_text(json.dumps(found))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        found = json.loads(Path(self.said).read_text())
        os.unlink(self.said)
        return [(int(status), str(said)) for status, said in found]

    def said_by(self, words: tuple[str, ...]) -> tuple[int, str]:
        """Do one command line here; return its status and what it printed."""
        with tempfile.TemporaryFile(dir=self.place) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                status = self.command(words)()
            except BaseException:  # noqa: BLE001
                status = 99
                os.write(2, traceback.format_exc().encode())
            sys.stdout.flush()
            sys.stderr.flush()
            file.seek(0)
            return status, file.read().decode(errors="replace")

    # what must be true

    def broken(self, scene: Scene, status: int, said: str) -> list[str]:
        """Return what is wrong after a disturbed run of a scene."""
        wrong = [f"a traceback:\n{said}"] if "Traceback" in said else []
        [(_, damage)] = self.do(CHECK)
        wrong += [f"damaged: {line}" for line in damage.splitlines() if is_damage(line)]
        shown = self.do(scene.shows[0]) if scene.shows and status == 0 else []
        wrong += [
            f"not {scene.shows}: {one}" for one in shown if one[1] != scene.shows[1]
        ]
        count = len(LOOKS)
        found = self.do(*LOOKS, scene.words, *LOOKS, CHECK, ("ps", "-aq"))
        there, again = names_in(found[:count]), found[count]
        later, (check, boxes) = names_in(found[count + 1 : -2]), found[-2:]
        makes = [one.format(**self.files) for one in scene.makes]
        if status == 0:
            wrong += lacking(scene, makes, there)
        wrong += [f"{name} is lost: {there}" for name in scene.keeps() - there]
        if again[0] not in scene.again or "Traceback" in again[1]:
            wrong.append(f"again: {again}")
        if again[0] == 0:
            wrong += [f"again, {one}" for one in lacking(scene, makes, later)]
        wrong += [f"{name} is lost later" for name in scene.keeps() - later]
        if check != (0, ""):
            wrong.append(f"check: {check}")
        if (
            "volume:vol" in later
            and not (self.store / "volumes/vol/_data/file").exists()
        ):
            wrong.append("the file in the volume is lost")
        return wrong + self.not_given_back(boxes[1].split())

    def not_given_back(self, boxes: list[str]) -> list[str]:
        """Return what is left in the store when all has been removed."""
        removing = [("rm", "-f", *boxes)] if boxes else []
        done = self.do(*removing, ("system", "prune", "-af", "--volumes"), CHECK)
        wrong = [f"removing: {one}" for one in done if one[0]]
        wrong += [f"left mounted: {one}" for one in left_mounted(str(self.store))]
        return wrong + [f"left: {one}" for one in self.leavings()]

    def leavings(self) -> list[str]:
        """Return the files in the store that should have gone."""
        kept = {"catalog", "catalog.new"}  # the next page replaces a half one
        kept |= {"repositories.json", "repositories.json.lock"}
        found = []
        for top in (
            "image",
            "overlay2",
            "vfs",
            "containers",
            "names",
            "tmp",
            "changing",
        ):
            for head, _, files in os.walk(self.store / top):
                found += [f"{head}/{name}" for name in files if name not in kept]
        homes = ["tmp", "changing", "containers", "names", "image/*/layerdb/*"]
        homes += ["image/*/imagedb/*/sha256", "overlay2", "vfs/dir", "vfs/parent"]
        homes += ["volumes", "networks/each"]
        for home in homes:
            for place in self.store.glob(home):
                names = [one for one in place.iterdir() if one.name not in kept]
                found += [
                    str(one) for one in names if one.name not in ("sha256", "bridge")
                ]
        return found


CHECK = ("system", "check")
LOOKS = (
    ("images", "--format", "{{{{.Repository}}}}:{{{{.Tag}}}}"),
    ("ps", "-a", "--format", "{{{{.Names}}}}"),
    ("network", "ls", "--format", "network:{{{{.Name}}}}"),
    ("volume", "ls", "--format", "volume:{{{{.Name}}}}"),
)


def is_damage(line: str) -> bool:
    """Whether a fault is more than rubbish that the next command removes."""
    return "gives its space back" not in line and not line.startswith("minidocker: ")


def names_in(found: list[tuple[int, str]]) -> set[str]:
    """Return the names that were listed; what failed is a name that nobody has."""
    return {
        word
        for status, said in found
        for word in (said if status == 0 else f"{status}{said!r}").split()
    }


def lacking(scene: Scene, makes: list[str], there: set[str]) -> list[str]:
    """Return what a command that succeeded should have made or removed."""
    return [f"{name} was not made" for name in makes if name not in there] + [
        f"{name} was not removed" for name in scene.takes if name in there
    ]


def make_tar(path: Path, *, busybox: bool) -> None:
    """Write a tar that is an image: tiny, or with a shell."""
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "etc"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        member = tarfile.TarInfo("etc/motd")
        text = f"{path.name}\n".encode()
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text))
        if busybox:
            tar.add(BUSYBOX, "bin/busybox")
            for name in ("sh", "echo", "rm", "true"):
                member = tarfile.TarInfo(f"bin/{name}")
                member.type, member.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(member)


SMALL = ("dm.basesize=32M", "dm.loopdatasize=48M", "dm.loopmetadatasize=2M")


def pool_devices() -> list[str]:
    """Return the names of the devices of pools that are up, on this machine."""
    with DeviceMapper() as dm:
        return [one for one in devices(dm) if one.startswith("minidocker-")]


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is so. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"{true} after {seconds} s")
        time.sleep(0.01)


def start_registry() -> tuple[int, str]:
    """Start a registry that dies with us; return its process and its host and port."""
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
            with fake_registry() as fake:
                fake.fault = forgets
                os.write(told, fake.host.encode())
                os.close(told)
                signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    with open(heard) as file:
        return child, file.read()


def forgets(it: Handler) -> bool:
    """Drop what was pushed, when the registry is asked for it."""
    if it.path != "/forget":
        return False
    for kept in (it.fake.blobs, it.fake.manifests):
        for key in [key for key in kept if key[0] == "team/pushed"]:
            del kept[key]
    it.reply(200)
    return True


def forget_pushed(host: str) -> None:
    """Have the registry drop what was pushed, so that it must be sent again."""
    channel = http.client.HTTPConnection(host)
    channel.request("GET", "/forget")
    channel.getresponse().read()
    channel.close()


def reaped() -> None:
    """Reap what was left to us by commands that were killed."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
