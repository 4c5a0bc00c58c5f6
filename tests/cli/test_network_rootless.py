"""A user without root: pasta or slirp4netns stands between container and host."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.somebody import User, somebody
from cli.stage import OUTSIDE, Stage, fetch, stage, wait_until


pytestmark = pytest.mark.root

SERVER = """
import socket
s = socket.create_server(("", 80)); print("ready", flush=True)
while True:
    one, _ = s.accept(); one.sendall(b"from outside\\n"); one.close()
"""


@pytest.fixture
def host() -> Iterator[Stage]:
    with stage() as found:
        yield found


@pytest.fixture
def user(host: Stage, small_tree: Path) -> Iterator[User]:
    with somebody(small_tree) as found:
        yield found


@pytest.fixture(params=["pasta", "slirp4netns"])
def through(request: pytest.FixtureRequest, user: User, tmp_path: Path) -> User:
    """Only one of the two programs is on the path."""
    only = user.root.parent / request.param
    only.mkdir()
    target = shutil.which(request.param)
    assert target, "install pasta and slirp4netns"
    (only / request.param).symlink_to(target)
    user.path = str(only)
    return user


def test_a_user_s_container_reaches_out_and_is_reached(
    through: User, host: Stage
) -> None:
    words = ["nsenter", f"--net=/proc/self/fd/{host.fd}", sys.executable, "-c", SERVER]
    with subprocess.Popen(words, pass_fds=[host.fd], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            server.stdout.readline()
            # an old pasta may keep the end of a connection to itself
            ask = f"busybox timeout 5 busybox nc {OUTSIDE} 80; true"
            done = through("run", "--rm", "small:v1", "sh", "-c", ask)
            assert done.stdout == "from outside\n", done.stderr
        finally:
            server.kill()
    script = "exec busybox nc -ll -p 80 -e echo served"
    flags = ("-p", "127.0.0.1:8080:80", "--name", "web")
    through.says("run", "-d", *flags, "small:v1", "sh", "-c", script)
    wait_until(lambda: fetch("127.0.0.1", 8080) == "served\n")
    assert through.says("port", "web") == "80/tcp -> 127.0.0.1:8080\n"
    through.says("rm", "-f", "web")
    assert fetch("127.0.0.1", 8080) == ""
    assert not uplinks(through)


def uplinks(store: User) -> list[str]:
    """The programs that still run for a store."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = place.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(store.root) in text and "minidocker" not in text:
            found.append(text)
    return found


def test_without_either_the_user_is_told_once(user: User) -> None:
    user.path = str(user.root)
    links = ("run", "--rm", "small:v1", "cat", "/proc/net/dev")
    first, second = user(*links), user(*links)
    assert "neither pasta nor slirp4netns is installed" in first.stderr
    assert second.stderr == ""
    for done in (first, second):
        assert [
            line.split(":")[0].strip() for line in done.stdout.splitlines()[2:]
        ] == ["lo"]


def test_networks_of_bridges_are_refused_with_the_reason(user: User) -> None:
    user.says("network", "create", "shop")
    done = user("run", "--rm", "--network", "shop", "small:v1", "true")
    assert done.returncode == 125
    assert "needs root" in done.stderr
