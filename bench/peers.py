"""The peers, started by hand on loopback sockets of our own, and stopped by id."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def missing(*programs: str) -> list[str]:
    """The programs of these that are not installed."""
    return [p for p in programs if shutil.which(p, path=PATH) is None]


PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def runc_bundle(where: Path, tree: Path) -> list[str]:
    """Make a bundle that runs `true` in ``tree``; the command that runs it."""
    shutil.copytree(tree, where / "rootfs", symlinks=True)
    subprocess.run(["runc", "spec"], cwd=where, check=True)
    config = json.loads((where / "config.json").read_text())
    config["process"]["terminal"] = False
    config["process"]["args"] = ["true"]
    (where / "config.json").write_text(json.dumps(config))
    return ["/usr/sbin/runc", "run", "--bundle", str(where), f"bench-{os.getpid()}"]


@contextmanager
def docker(where: Path, *, bridge: bool = False) -> Iterator[list[str]]:
    """Run a dockerd of our own below ``where``; yield the client's command.

    With ``bridge`` it has one, in the network namespace that we are in.
    """
    socket = f"unix://{where}/docker.sock"
    command = ["unshare", "--mount", "--propagation", "private", "/usr/sbin/dockerd"]
    command += ["-H", socket, "--data-root", f"{where}/data"]
    command += ["--exec-root", f"{where}/exec", "--pidfile", f"{where}/pid"]
    if not bridge:
        command += ["--bridge", "none", "--iptables=false", "--ip6tables=false"]
    with (where / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    client = ["/usr/bin/docker", "-H", socket]
    try:
        for _ in range(300):
            if (
                subprocess.run(
                    [*client, "info"], capture_output=True, check=False
                ).returncode
                == 0
            ):
                break
            time.sleep(0.1)
        else:
            raise SystemExit((where / "log").read_text()[-2000:])
        yield client
    finally:
        daemon.terminate()
        daemon.wait(30)


@contextmanager
def buildah(where: Path, tar: Path) -> Iterator[list[str]]:
    """Keep a store of buildah's below ``where``, with the image; yield what builds.

    It has a mount namespace of its own: buildah leaves its store mounted.
    """
    alone = ["unshare", "--mount", "--propagation", "private"]
    place = ["--root", f"{where}/root", "--runroot", f"{where}/run"]
    program = ["/usr/bin/buildah", *place, "--storage-driver", "overlay"]
    for words in (
        ["from", "--name", "box", "scratch"],
        ["add", "--quiet", "box", str(tar), "/"],
        ["commit", "--quiet", "box", "bench"],
        ["rm", "box"],
    ):
        subprocess.run([*alone, *program, *words], check=True, capture_output=True)
    build = ["bud", "-q", "--pull-never", "--layers", "--network", "none"]
    yield [*alone, *program, *build, "--runtime", "/usr/sbin/runc"]
