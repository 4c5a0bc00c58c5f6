"""A user without root: pasta or slirp4netns stands between container and host."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cli.somebody import SET_ASIDE, User, somebody
from cli.stage import OUTSIDE, Stage, fetch, wait_until


pytestmark = pytest.mark.root

SERVER = """
import socket
s = socket.create_server(("", 80)); print("ready", flush=True)
while True:
    one, _ = s.accept(); one.sendall(b"from outside\\n"); one.close()
"""
# Its input stays open: half closed, a pasta of Debian 12 once gave the same line 77
# times, and an old one may keep the end of a connection to itself.
HEAR = f"sleep 1 | busybox timeout 5 busybox nc {OUTSIDE} 80; true"


@pytest.fixture
def user(host: Stage, small_tree: Path) -> Iterator[User]:
    with somebody(small_tree, SET_ASIDE) as found:
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
    with host.serving(SERVER):
        done = through("run", "--rm", "small:v1", "sh", "-c", HEAR)
        assert done.stdout == "from outside\n", done.stderr
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


SERVE = "echo {0} > /said; exec busybox nc -ll -p 80 -e busybox cat /said"


def ask(user: User, network: str, name: str, patience: int = 5) -> str:
    """What a new container on a network hears from another one, by its name."""
    script = f"busybox timeout {patience} busybox nc {name} 80"
    words = ("run", "--rm", "--network", network, "small:v1", "sh", "-c", script)
    return user(*words).stdout


def serving(user: User, name: str, *flags: str) -> None:
    words = ("run", "-d", "--name", name, *flags, "small:v1", "sh", "-c")
    user.says(*words, SERVE.format(name))


def keepers(user: User) -> list[int]:
    """The process that keeps the user's networks, if it lives."""
    with suppress(OSError, ValueError):
        pid = int((user.root / "commons/keeper").read_text().split()[0])
        os.kill(pid, 0)
        return [pid]
    return []


def test_containers_of_a_user_s_network_meet_by_name(user: User) -> None:
    user.says("network", "create", "shop")
    user.says("network", "create", "--subnet", "10.77.0.0/24", "mail")
    serving(user, "web", "--network", "shop", "-p", "127.0.0.1:8080:80")
    wait_until(lambda: ask(user, "shop", "web") == "web\n")
    assert ask(user, "mail", "web", 1) == ""  # another network
    wait_until(lambda: fetch("127.0.0.1", 8080) == "web\n")
    user.says("network", "connect", "--ip", "10.77.0.9", "mail", "web")
    assert ask(user, "mail", "web") == "web\n"
    assert ask(user, "mail", "10.77.0.9") == "web\n"
    told = user.says("network", "inspect", "--format", "{{json .Containers}}", "mail")
    assert "10.77.0.9/24" in told
    user.says("network", "disconnect", "mail", "web")
    assert ask(user, "mail", "10.77.0.9", 1) == ""
    refused = user("network", "rm", "shop")
    assert "has active endpoints" in refused.stderr
    user.says("rm", "-f", "web")
    wait_until(lambda: not keepers(user) and not uplinks(user))
    user.says("network", "rm", "shop", "mail")


def test_a_user_s_network_leads_out(through: User, host: Stage) -> None:
    through.says("network", "create", "shop")
    with host.serving(SERVER):
        words = ("run", "--rm", "--network", "shop", "small:v1", "sh", "-c", HEAR)
        done = through(*words)
        assert done.stdout == "from outside\n", done.stderr
    wait_until(lambda: not keepers(through) and not uplinks(through))


def test_a_user_s_networks_survive_what_dies(user: User) -> None:
    user.says("network", "create", "shop")
    serving(user, "web", "--network", "shop")
    wait_until(lambda: ask(user, "shop", "web") == "web\n")
    pid = int(user.says("inspect", "--format", "{{.State.Pid}}", "web"))
    status = Path(f"/proc/{pid}/status").read_text()
    above = next(x.split()[1] for x in status.splitlines() if x.startswith("PPid"))
    os.kill(int(above), 9)
    wait_until(lambda: not keepers(user) and not uplinks(user))
    user.says("start", "web")
    wait_until(lambda: ask(user, "shop", "web") == "web\n")
    os.kill(keepers(user)[0], 9)
    wait_until(lambda: not uplinks(user))
    user.says("restart", "-t", "0", "web")
    wait_until(lambda: ask(user, "shop", "web") == "web\n")
    user.says("rm", "-f", "web")
    wait_until(lambda: not keepers(user) and not uplinks(user))
    user.says("network", "prune", "-f")
    assert "shop" not in user.says("network", "ls")


def test_many_begin_at_once_on_a_user_s_network(user: User) -> None:
    user.says("network", "create", "shop")
    look = "busybox ip -4 addr show dev eth0; busybox tail -n 1 /etc/hosts; sleep 1"
    argv = user.argv("run", "--rm", "--network", "shop", "small:v1", "sh", "-c", look)
    all_ = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(5)]
    said = [one.communicate(timeout=60)[0].decode() for one in all_]
    found = [re.findall(r"172\.18\.0\.\d+", one) for one in said]
    assert all(one and one[0] == one[-1] for one in found), said
    assert len({one[0] for one in found}) == 5
    wait_until(lambda: not keepers(user) and not uplinks(user))


def test_a_container_with_an_uplink_is_connected_when_it_does_not_run(
    user: User,
) -> None:
    user.says("network", "create", "shop")
    serving(user, "web")
    done = user("network", "connect", "shop", "web")
    assert done.returncode == 1
    assert "has an uplink of its own while it runs" in done.stderr
    user.says("stop", "-t", "0", "web")
    user.says("network", "connect", "shop", "web")
    user.says("start", "web")
    wait_until(lambda: ask(user, "shop", "web") == "web\n")
    user.says("rm", "-f", "web")
