"""Each flag that Docker's own help names is known here: it works, or says why not.

The list is the client's, read from its help, so that a flag that we forget is found.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.store import Store
from minidocker.cli import find_command
from minidocker.flags import Takes


DOCKER = "/usr/bin/docker"
needs_docker = pytest.mark.skipif(not Path(DOCKER).exists(), reason=f"no {DOCKER}")
COMMANDS = """
run create exec ps logs stop start restart kill rm wait pause unpause rename cp diff
commit top port attach update stats inspect events export import images history build
pull push save load tag rmi info login logout version
network-create network-ls network-inspect network-rm network-prune network-connect
network-disconnect volume-create volume-ls volume-inspect volume-rm volume-prune
container-ls container-prune container-inspect image-ls image-inspect image-prune
image-rm system-df system-prune system-events system-info builder-prune
"""
LINE = re.compile(r"^ +(?:-(\w), )?--([\w-]+)(?: (\w+))?  ", re.MULTILINE)


def flags_of_docker(command: str) -> dict[str, tuple[str, str]]:
    """Each flag's short name and the word for what it takes."""
    words = [DOCKER, *command.split("-"), "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {name: (short, takes) for short, name, takes in LINE.findall(text)}
    return {name: pair for name, pair in found.items() if name != "help"}


@needs_docker
@pytest.mark.parametrize("command", COMMANDS.split())
def test_every_flag_is_known(command: str) -> None:
    ours, _ = find_command(command.split("-"))
    known = {flag.name: flag for flag in ours.every_flag}
    wrong = []
    for name, (short, takes) in flags_of_docker(command).items():
        flag = known.get(name)
        if flag is None:
            wrong.append(f"--{name} is not known")
            continue
        if short and flag.short != short:
            wrong.append(f"--{name} has no -{short}")
        if bool(takes) != (flag.takes is not Takes.NOTHING):
            wrong.append(f"--{name} takes {takes or 'nothing'}")
    assert not wrong


@needs_docker
def test_run_and_create_have_the_flags_that_docker_has() -> None:
    """The list is read at all: Docker 20.10 has about a hundred."""
    assert len(flags_of_docker("run")) > 90
    assert flags_of_docker("run")["publish"] == ("p", "list")


# A value for each flag of `docker run` with which it works, or "" for a switch. What
# is in REFUSED says why it is.
WORKS = {
    "add-host": "db:10.0.0.5", "attach": "stdout", "cap-add": "NET_ADMIN", "cap-drop": "NET_RAW", "cgroupns": "host",
    "cidfile": "HERE/cid", "cpu-period": "50000", "cpu-quota": "20000",
    "cpu-shares": "512", "cpus": "0.5", "cpuset-cpus": "0", "cpuset-mems": "0",
    "detach": "", "detach-keys": "ctrl-a", "device": "/dev/null:/dev/x",
    "disable-content-trust": "", "dns": "10.0.0.1", "dns-option": "ndots:1",
    "dns-search": "example.com", "domainname": "example.com", "entrypoint": "/bin/true",
    "env": "A=1", "env-file": "/dev/null", "expose": "80", "group-add": "5",
    "health-cmd": "true", "health-interval": "5s", "health-retries": "2",
    "health-start-period": "1s", "health-timeout": "1s", "hostname": "box",
    "init": "", "interactive": "", "ipc": "host", "isolation": "default",
    "kernel-memory": "50m", "label": "a=b", "label-file": "/dev/null",
    "log-driver": "local", "log-opt": "max-size=1m", "mac-address": "02:42:ac:11:00:09",
    "memory": "20m", "memory-reservation": "10m", "memory-swap": "-1",
    "mount": "type=tmpfs,dst=/x", "name": "box",
    "network": "none", "no-healthcheck": "", "oom-score-adj": "100", "pid": "host", "pids-limit": "50", "platform": "linux",
    "privileged": "", "publish": "0:80", "publish-all": "", "pull": "missing",
    "read-only": "", "restart": "on-failure:2", "rm": "", "runtime": "minidocker",
    "security-opt": "no-new-privileges", "shm-size": "1m", "sig-proxy": "",
    "stop-signal": "INT", "stop-timeout": "1", "sysctl": "net.ipv4.ip_forward=1",
    "tmpfs": "/x", "ulimit": "nofile=64", "user": "www", "userns": "host", "uts": "host",
    "volume": "/etc:/x:ro", "volume-driver": "local", "workdir": "/tmp",
}  # fmt: skip
REFUSED = {
    "cgroup-parent": "below minidocker/", "device-cgroup-rule": "--device",
    "gpus": "--device", "link-local-ip": "its network", "storage-opt": "dm.basesize",
}  # fmt: skip
KERNEL = {  # works where the kernel has it; if not, the kernel's own word is the reason
    "blkio-weight": "500", "blkio-weight-device": "DISK:100", "cpu-rt-period": "100000",
    "cpu-rt-runtime": "1000", "device-read-bps": "DISK:1mb",
    "device-read-iops": "DISK:100", "device-write-bps": "DISK:1mb",
    "device-write-iops": "DISK:100", "memory-swappiness": "10", "oom-kill-disable": "",
}  # fmt: skip
ELSEWHERE = {  # each has tests of its own, for it needs others beside it
    "ip": "test_network", "ip6": "test_network", "network-alias": "test_network",
    "link": "test_flags_at_work", "volumes-from": "test_volumes", "tty": "test_run",
}  # fmt: skip
VALUES = {"storage-opt": "size=10G"}
WHY = ("cannot set", "no control group", "version 2 do not have")


@needs_docker
def test_no_flag_of_run_is_forgotten() -> None:
    said = {*WORKS, *REFUSED, *KERNEL, *ELSEWHERE} - {"gpus"}  # not in the help
    assert set(flags_of_docker("run")) == said


@pytest.fixture
def store(imported: Callable[[str], Path]) -> Iterator[Store]:
    """A store; what a flag leaves in it is removed."""
    store = Store(imported("overlay2"), "overlay2")
    yield store
    if left := store.says("ps", "-aq").split():
        store.says("rm", "-f", *left)


def word_of(flag: str, value: str, here: Path) -> str:
    disks = [one for one in Path("/sys/block").iterdir() if (one / "device").exists()]
    disk = f"/dev/{disks[0].name}" if disks else "/dev/zero"
    value = value.replace("DISK", disk).replace("HERE", str(here))
    return f"--{flag}={value}" if value else f"--{flag}"


@pytest.mark.root
@pytest.mark.parametrize("flag", [*WORKS, *KERNEL])
def test_it_works(flag: str, store: Store, tmp_path: Path) -> None:
    word = word_of(flag, (WORKS | KERNEL)[flag], tmp_path)
    done = store("run", word, "small:v1", "/bin/true")
    assert "cannot be had" not in done.stderr
    refused = flag in KERNEL and any(why in done.stderr for why in WHY)
    assert refused or done.returncode == 0, done.stderr


@pytest.mark.root
@pytest.mark.parametrize("flag", REFUSED)
def test_it_is_refused_with_a_reason(flag: str, store: Store, tmp_path: Path) -> None:
    word = word_of(flag, VALUES.get(flag, "1000"), tmp_path)
    done = store("run", "--rm", word, "small:v1", "/bin/true")
    assert done.returncode == 125
    assert REFUSED[flag] in done.stderr.partition("hint: ")[2]
    assert not store.says("ps", "-aq")
