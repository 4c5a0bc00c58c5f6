"""What `run --explain` tells is what strace sees of a run: no call more, and none less."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from cli.store import Store

from oci.conftest import make_tree


pytestmark = pytest.mark.root

PROCESS = "clone clone3 fork unshare setns execve execveat setsid fchdir chdir"
MOUNTS = "mount umount2 fsopen fsconfig fsmount move_mount open_tree mount_setattr pivot_root chroot"
RIGHTS = "prlimit64 setgroups setresgid setresuid prctl seccomp capset"
OTHERS = "sethostname setdomainname symlinkat mknodat ioctl"
TOLD = " ".join((PROCESS, MOUNTS, RIGHTS, OTHERS)).split()
IOCTLS = ("SIOCSIFFLAGS", "TIOCSPTLCK", "TIOCGPTPEER", "TIOCSCTTY")
FLAGS = {
    "plain": "--network none",
    "a bind": "--network none -v /usr:/data/deep:ro -v /etc/hostname:/etc/motd",
    "a user": "--network none --user web --security-opt no-new-privileges",
    "a user's rights": "--network none -u 7:8 --group-add 9 --cap-add NET_ADMIN",
    "no rights": "--network none --cap-drop ALL",
    "read only": "--network none --read-only --tmpfs /tmp:size=1m -w /srv/deep",
    "limits": "--network none -m 64m --cpus 0.5 --pids-limit 50 --oom-score-adj 300 "
    "--ulimit nofile=64:128 --sysctl kernel.msgmax=9000 --device /dev/kmsg",
    "unconfined": "--network none --security-opt seccomp=unconfined --security-opt systempaths=unconfined",
    "privileged": "--network none --privileged",
    "a bridge": "",
    "a port": "-p 127.0.0.1::80",
    "names": "--network backend",
    "the host's": "--network host --pid host --ipc host --uts host",
    "another's": "--network container:other --pid container:other --ipc container:other",
    "a terminal": "--network none -t",
    "an init": "--network none --init",
}


@pytest.fixture(scope="module")
def joined(store: Store) -> Iterator[Store]:
    """The store with what the flags name: a network, and another container."""
    store.says("network", "create", "backend")
    store.says("run", "-d", "--name", "other", "small", "sleep", "600")
    yield store
    store.says("rm", "-f", "other")
    store.says("network", "rm", "backend")


class Traced:
    """The system calls of a run, by process, in the order of their beginnings."""

    def __init__(self, text: str) -> None:
        self.calls: dict[str, list[str]] = {}
        for pid, call in re.findall(r"^(\d+) +(\w+\(.*)$", text, re.MULTILINE):
            self.calls.setdefault(pid, []).append(call)
        self.text, self.parent = text, text.partition(" ")[0]

    def child_of(self, name: str, pid: str) -> str:
        """The process that the first such call of a process has made."""
        begun = rf"^{pid} +(?:<\.\.\. )?{name}(?:\(| resumed).*= (?:\{{.*= )?(\d+)$"
        found = re.search(begun, self.text, re.MULTILINE)
        assert found, (name, pid)
        return found[1]

    def start(self) -> list[str]:
        """The calls of a container's start, each process's from its birth."""
        mine, found = self.calls[self.parent][1:], []
        for index, call in enumerate(mine):
            found.append(call)
            if call.startswith("clone("):
                attendant = self.calls[self.child_of("clone", self.parent)]
                found += [c for c in attendant if c.startswith(("prctl", "setsid"))]
            if call.startswith("clone3("):
                found += [c for c in mine[index + 1 :][:1] if c.startswith("setns(")]
                return found + self.first(self.child_of("clone3", self.parent))
        raise AssertionError("no container was made")

    def first(self, pid: str) -> list[str]:
        """The calls of the first process, and of an init's child, to the program."""
        mine, found = iter(self.calls[pid]), []
        for call in mine:
            found.append(call)
            if call.startswith("fork("):
                return found + self.first(list(self.calls)[-1])  # 2 in there
            if call.startswith("execve("):
                return found
        raise AssertionError("no program was executed")


def is_told(call: str) -> bool:
    name = call.partition("(")[0]
    mine = not call.startswith("prlimit64") or "NULL, {" not in call  # malloc only asks
    asked = name != "ioctl" or any(word in call for word in IOCTLS)
    return name in TOLD and mine and asked


def essence(call: str) -> str:
    """A call without descriptors and places, which are only known when it is made."""
    name, _, rest = call.partition("(")
    rest = re.sub(r" <unfinished \.\.\.>$|\)\s+= .*$|\)$", "", rest)
    if name == "mount":  # source, type, flags, data
        return name + re.sub(r'^(NULL|".*?"), ".*?"', r"\1", rest)
    if name in (
        "unshare",
        "pivot_root",
        "umount2",
        "chdir",
        "setresuid",
        "setresgid",
        "setsid",
    ):
        return name + rest
    if name in ("sethostname", "setgroups"):
        first = re.search(r'".*?"|\[.*\]', rest)
        return name + re.sub("[0-9a-f]{12}", "ID", first[0] if first else "")
    if name in (
        "prctl",
        "clone3",
        "ioctl",
        "setns",
        "fsconfig",
        "mount_setattr",
        "execve",
    ):
        words = re.findall(
            r"PR_\w+|CAP_\w+|CLONE_\w+|SIG\w+|\w*IOC\w+|FSCONFIG_\w+|MOUNT_ATTR_\w+",
            rest,
        )
        words = [
            word
            for word in words
            if word not in ("PR_SET_SECCOMP", "SECCOMP_MODE_FILTER", "SIGCHLD")
        ]
        argv = re.findall(r"\[.*?\]", rest) if name == "execve" else []
        return " ".join([name, *words, *argv])
    return name


@pytest.mark.parametrize("name", FLAGS)
def test_what_is_explained_is_what_happens(
    joined: Store, name: str, tmp_path: Path
) -> None:
    words = ["run", "--rm", *FLAGS[name].split()]
    words += [] if "host" in name or "other" in name else ["-h", "box"]
    argv = ["small", "/bin/true", "one"]
    text = joined.says(*words, "--explain", *argv)
    trace = tmp_path / "trace"
    subprocess.run([*strace(trace), *joined.argv(*words, *argv)], check=True)
    explained, real = lines_of(text), Traced(trace.read_text()).start()
    assert essences(explained) == essences(real)
    assert text.count("    chapter ") == len(explained)
    chapters = set(re.findall(r"    chapter (\w+)", text))
    book = {path.stem[4:] for path in Path(__file__).parents[2].glob("book/*.md")}
    assert {name.replace("_", "-") for name in chapters} <= book


def strace(trace: Path) -> list[str]:
    told = f"trace={','.join(TOLD)}"
    return ["strace", "-f", "-s", "500", "-o", str(trace), "-e", told]


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line[0] != " "]


def essences(calls: list[str]) -> list[str]:
    return [essence(one) for one in calls if is_told(one)]


SCRIPT = """
mount --bind {checkout} /mnt && cd /mnt
exec setpriv --reuid 4243 --regid 4243 --clear-groups env HOME={home} "$@"
"""


@pytest.mark.parametrize("user", ["root", "web"])
def test_it_is_so_without_root_too(user: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        home, checkout = Path(place), Path(__file__).parents[2]
        os.chown(home, 4243, 4243)
        script = SCRIPT.format(checkout=checkout, home=home)
        there = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"]
        ours = [".venv/bin/python", "-m", "minidocker", "--root", f"{home}/store"]

        def says(*words: str, **more: Any) -> str:
            argv = [*there, *words]
            return subprocess.run(
                argv, check=True, stdout=PIPE, text=True, **more
            ).stdout

        make_tree(home / "tree")
        with open(home / "tar", "wb") as tar:
            subprocess.run(["tar", "-cC", home / "tree", "."], stdout=tar, check=True)
        with open(home / "tar", "rb") as tar:
            says(*ours, "import", "-", "small", stdin=tar)
        words = ["run", "--rm", "--network", "none", "-h", "box", "-u", user]
        argv = ["small", "/bin/true", "one"]
        explained = lines_of(says(*ours, *words, "--explain", *argv))
        says(*strace(home / "trace"), *ours, *words, *argv)
        real = essences(Traced((home / "trace").read_text()).start())
        born = next(i for i, call in enumerate(real) if call.startswith("clone3"))
        told = essences(explained)
        assert told[:-1] == real[born:-1]
        assert (told[-1][:6], real[-1][:6]) == (
            "execve",
            "execve",
        )  # words out of sight
