"""The flags of `run` that confine and give, said as a user says them."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from cli.store import Store


STATUS = (
    "sh",
    "-c",
    "while read a b; do case $a in CapEff:|Seccomp:|NoNewPrivs:) echo $a$b;; esac; done </proc/self/status",
)


@pytest.fixture
def one(imported) -> Store:
    """One driver is enough here."""
    return Store(imported("overlay2"), "overlay2")


def status(store: Store, *flags: str) -> dict[str, str]:
    text = store.says("run", "--rm", *flags, "small:v1", *STATUS)
    return dict(line.split(":") for line in text.splitlines())


def test_rights_are_as_the_flags_say(one: Store, tmp_path: Path) -> None:
    plain = status(one)
    assert plain == {"CapEff": "00000000a80425fb", "NoNewPrivs": "0", "Seccomp": "2"}
    assert (
        status(one, "--cap-drop", "all", "--cap-add", "kill")["CapEff"]
        == f"{1 << 5:016x}"
    )
    assert status(one, "--security-opt", "no-new-privileges")["NoNewPrivs"] == "1"
    assert status(one, "--security-opt", "seccomp=unconfined")["Seccomp"] == "0"
    full = status(one, "--privileged")
    assert full["Seccomp"] == "0"
    assert int(full["CapEff"], 16) & 1 << 21
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    refuse = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile | {"syscalls": [refuse]}))
    words = ("--security-opt", f"seccomp={path}", "small:v1", "mkdir", "/x")
    assert "No space left" in one("run", "--rm", *words).stderr


def test_an_init_stands_before_the_program(one: Store) -> None:
    script = "trap 'exit 9' TERM; echo ready; while true; do sleep 0.1; done"
    process = subprocess.Popen(
        one.argv("run", "--rm", "--init", "small:v1", "sh", "-c", f"echo $$; {script}"),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert [process.stdout.readline(), process.stdout.readline()] == ["2\n", "ready\n"]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 9
    sleeper = subprocess.Popen(
        one.argv("run", "--rm", "--init", "small:v1", "sh", "-c", "echo up; sleep 600"),
        stdout=subprocess.PIPE,
    )
    assert sleeper.stdout is not None
    assert sleeper.stdout.readline() == b"up\n"
    sleeper.send_signal(signal.SIGTERM)
    assert sleeper.wait() == 143
    assert one("run", "--rm", "--init", "small:v1", "nothere").returncode == 127
    assert one("run", "--rm", "--init", "small:v1", "/bin/plain").returncode == 126


def test_places_that_are_given(one: Store) -> None:
    flags = (
        "--tmpfs",
        "/run/new:size=64k,mode=700",
        "--shm-size",
        "1m",
        "--read-only",
        "--device",
        "/dev/null:/dev/void",
    )
    script = "mount; echo x >/run/new/f && echo x >/dev/shm/f && echo x >/dev/void && echo fine; echo x >/f"
    done = one("run", "--rm", *flags, "small:v1", "sh", "-c", script)
    assert done.stdout.endswith("fine\n")
    assert "Read-only" in done.stderr
    lines = {
        line.split()[2]: line for line in done.stdout.splitlines() if " on " in line
    }
    assert "size=64k,mode=700" in lines["/run/new"]
    assert "noexec" in lines["/run/new"]
    assert "size=1024k" in lines["/dev/shm"]
    assert "nodev" in lines["/"]


NONSENSE = [
    ["--memory", "1"], ["--memory", "much"], ["--memory-swap", "1g"], ["--cpus", "0.001"],
    ["--cpus", "many"], ["--cpu-shares", "1"], ["--cpuset-cpus", "77"], ["--cpuset-mems", "x"],
    ["--blkio-weight", "5"], ["--cap-add", "FLY"], ["--cap-drop", "FLY"],
    ["--security-opt", "seccomp=/not/there"], ["--security-opt", "odd"],
    ["--device", "/not/there"], ["--device", "/etc/passwd"], ["--ulimit", "nofile=3:2"],
    ["--ulimit", "odd=1"], ["--sysctl", "kernel.hostname=x"], ["--sysctl", "vm.swappiness=1"],
    ["--sysctl", "net.core.somaxconn=1", "--network", "host"], ["--tmpfs", "here"],
    ["--shm-size", "x"], ["--oom-score-adj", "2000"], ["--pid", "moon"], ["--ipc", "moon"],
    ["--uts", "container:x"], ["--userns", "mine"], ["--network", "container:"],
    ["--network", "container:nobody"], ["--network", "moon"], ["--pid", "container:nobody"],
    ["--uts", "host", "--hostname", "x"], ["--pids-limit", "x"],
]  # fmt: skip


@pytest.mark.parametrize("flags", NONSENSE, ids=" ".join)
def test_nonsense_is_refused_before_anything_is_made(
    one: Store, flags: list[str]
) -> None:
    done = one("run", "--name", "never", *flags, "small:v1", "true")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("minidocker: ")
    assert len(done.stderr.splitlines()) <= 2
    assert one.says("ps", "-aq") == ""
    assert not os.listdir(one.root / "names") if (one.root / "names").exists() else True


@pytest.mark.root
def test_a_namespace_of_another_container(one: Store) -> None:
    one.says("run", "-d", "--name", "first", "small:v1", "sleep", "600")
    try:
        seen = one.says("run", "--rm", "--pid", "container:first", "small:v1", "ps")
        assert "sleep 600" in seen
        script = (
            "sh",
            "-c",
            "cd /proc/self/ns; ls -l net ipc uts | while read a b c d e f g h i j k; do echo $k; done",
        )
        theirs = one.says("exec", "first", *script).split()
        flags = ("--network", "container:first", "--ipc", "container:first")
        ours = one.says("run", "--rm", *flags, "small:v1", *script).split()
        assert set(theirs) & set(ours) == {
            n for n in theirs if n.startswith(("net", "ipc"))
        }
        shown = one.says("inspect", "-f", "{{.HostConfig.NetworkMode}}", "first")
        assert shown == "default\n"
        one.says("stop", "-t", "0", "first")
        done = one("run", "--rm", "--pid", "container:first", "small:v1", "ps")
        assert done.returncode != 0
        assert "does not run" in done.stderr
    finally:
        one.says("rm", "-f", "first")


def test_exec_with_privileges(one: Store) -> None:
    one.says("run", "-d", "--name", "first", "small:v1", "sleep", "600")
    try:
        read = ("exec", "first", *STATUS)
        assert "CapEff:00000000a80425fb" in one.says(*read)
        text = one.says("exec", "--privileged", "first", *STATUS)
        assert "a80425fb" not in text
        assert "Seccomp:2" in text
    finally:
        one.says("rm", "-f", "first")


def test_pause_needs_a_group(one: Store) -> None:
    one.says("run", "-d", "--name", "first", "small:v1", "sleep", "600")
    try:
        done = one("pause", "first")
        if os.geteuid():
            assert done.returncode in (0, 1)
            assert done.returncode == 0 or "control group" in done.stderr
        else:
            assert done.returncode == 0
    finally:
        one.says("rm", "-f", "first")
