"""What `run` refuses before anything is made, and how it reads the rest."""

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

from minidocker import blueprint, flag_words, run_verb
from minidocker.blueprint import tmpfs_step
from minidocker.cgroups import Limits
from minidocker.errors import MinidockerError, UsageError
from minidocker.flag_words import check_sysctl, device_text, security_text
from minidocker.flags import Given, parse_flags, size, ulimit_text
from minidocker.mounts import MountFlags
from minidocker.program import HostConfig, Network, host_config, ulimits_of
from minidocker.run_flags import RUN_FLAGS
from minidocker.run_verb import (
    billionths,
    limits_of,
    run,
    words_of,
)


def given(*words: str) -> Given:
    return parse_flags(RUN_FLAGS, [*words, "image"], "run", greedy=True)


def test_doctests_hold():
    assert (
        sum(doctest.testmod(m).failed for m in (run_verb, blueprint, flag_words)) == 0
    )


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("1", 1), ("1b", 1), ("2k", 2048), ("2kb", 2048), ("2KiB", 2048), ("3m", 3 << 20),
        ("1.5g", 3 << 29), ("1T", 1 << 40), ("-1", -1), ("", 0), ("10 m", 10 << 20),
    ],
)  # fmt: skip
def test_sizes_have_units(text: str, bytes_: int):
    assert size(Given({"memory": text}), "memory") == bytes_


@pytest.mark.parametrize(
    "text", ["x", "m", "1x", "1mm", "-5", "1.2.3", "1e3", "0x10", "∞"]
)
def test_other_sizes_are_refused(text: str):
    with pytest.raises(UsageError, match='for "--memory" flag: invalid size'):
        size(Given({"memory": text}), "memory")


def test_processors_are_counted_in_billionths():
    found = [billionths(text) for text in ("", "2", "0.5", ".25", "1.000000001")]
    assert found == [0, 2 * 10**9, 5 * 10**8, 25 * 10**7, 10**9 + 1]
    for text in ("x", "-1", "1,5", "1.0000000001", "1.5.2"):
        with pytest.raises(UsageError, match=r"rational number|too precise"):
            billionths(text)


def test_limits_are_those_given_over_those_before():
    before = Limits(memory=64 << 20, memory_swap=128 << 20, pids=9)
    found = limits_of(given("-m", "32m", "--cpu-shares", "512", "-c", "256"), before)
    assert found == Limits(32 << 20, 128 << 20, 0, 0, 256, pids=9)
    assert limits_of(given("-m", "32m")).memory_swap == 64 << 20
    assert limits_of(given("--memory=32m", "--memory-swap=-1")).memory_swap == -1
    assert limits_of(given("--pids-limit", "-1")).pids == -1


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("/dev/null", "/dev/null:/dev/null:rwm"),
        ("/dev/null:/dev/zilch", "/dev/null:/dev/zilch:rwm"),
        ("/dev/null:rw", "/dev/null:/dev/null:rw"),
        ("/dev/null:/dev/x:rwm", "/dev/null:/dev/x:rwm"),
    ],
)
def test_devices_are_completed(text: str, whole: str):
    assert device_text(text) == whole


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/etc/passwd",
        "/dev",
        "/not/there",
        "/dev/null:x:y:z",
        "/dev/null:/x:q",
    ],
)
def test_other_devices_are_refused(text: str):
    with pytest.raises(UsageError):
        device_text(text)


def test_ulimits_have_two_values():
    assert ulimit_text("nofile=1024") == "nofile=1024:1024"
    assert ulimit_text("core=0:-1") == "core=0:-1"
    assert ulimits_of(["nofile=5:6", "core=-1:-1", "rttime=1:1"]) == (
        (7, 5, 6),
        (4, -1, -1),
        (15, 1, 1),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nofile", "invalid ulimit argument"),
        ("files=1", "invalid ulimit type: files"),
        ("as=1", "invalid ulimit type: as"),
        ("nofile=x", "invalid ulimit value"),
        ("nofile=1:", "invalid ulimit value"),
        ("nofile=-2", "invalid ulimit value"),
        ("nofile=5:3", "must be less than or equal to hard limit: 5 > 3"),
        ("nofile=-1:3", "must be less than or equal to hard limit"),
    ],
)
def test_other_ulimits_are_refused(text: str, why: str):
    with pytest.raises(UsageError, match=why):
        ulimit_text(text)


@pytest.mark.parametrize(
    "text", ["net.ipv4.ip_forward=1", "kernel.msgmax=1", "fs.mqueue.msg_max=5"]
)
def test_settings_of_namespaces_may_be_set(text: str):
    assert check_sysctl(text, HostConfig()) == text


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("kernel.hostname=x", {}),
        ("vm.swappiness=1", {}),
        ("kernel.core_pattern=|/x", {}),
        ("net.ipv4.ip_forward", {}),
        ("net/../kernel.msgmax=1", {}),
        ("net..kernel.x=1", {}),
        ("net.ipv4.ip_forward=1", {"network": Network.HOST}),
        ("kernel.msgmax=1", {"ipc_mode": "host"}),
    ],
)
def test_settings_of_the_host_may_not(text: str, host: dict[str, Any]):
    with pytest.raises(UsageError, match="is not allowed"):
        check_sysctl(text, HostConfig(**host))


def test_a_tmpfs_has_docker_s_flags_unless_told():
    quiet = MountFlags.NOSUID | MountFlags.NODEV | MountFlags.NOEXEC
    assert tmpfs_step("/run").flags == quiet
    step = tmpfs_step("/run/x/:exec,suid,ro,size=1m,mode=700")
    assert (step.target, step.data) == ("/run/x", "size=1m,mode=700")
    assert step.flags == MountFlags.RDONLY | MountFlags.NODEV
    for text in ("run", "/", "/x:fancy", "/x/..", "/x:huge=always"):
        with pytest.raises(UsageError, match="invalid tmpfs"):
            tmpfs_step(text)


def test_a_profile_is_read_when_it_is_named(tmp_path: Path):
    path = tmp_path / "p.json"
    path.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert (
        security_text(f"seccomp={path}")
        == 'seccomp={"defaultAction": "SCMP_ACT_ALLOW"}'
    )
    assert security_text(f"seccomp:{path}").startswith("seccomp={")
    assert security_text("seccomp=unconfined") == "seccomp=unconfined"
    assert security_text("no-new-privileges") == "no-new-privileges"
    path.write_text("{")
    for text in (f"seccomp={path}", f"seccomp={tmp_path}", "seccomp=/not/there"):
        with pytest.raises(MinidockerError, match="seccomp profile"):
            security_text(text)


@pytest.mark.parametrize(
    "words",
    [
        ["--memory", "5m"], ["--memory-swap", "1g"], ["--cpus", "1000"], ["--cpuset-cpus", "9999"],
        ["--cap-add", "NOPE"], ["--cap-drop", "CAP_NOPE"], ["--security-opt", "fancy"],
        ["--device", "/etc"], ["--ulimit", "x"], ["--tmpfs", "x"], ["--shm-size", "x"],
        ["--oom-score-adj", "1001"], ["--volume", "x"],
        ["--privileged", "--cap-add", "NOPE"], ["--shm-size", "-1"],
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_anything_is_made(words: list[str], tmp_path: Path):
    found = given(*words)
    with pytest.raises(MinidockerError) as why:
        run(found.replace(flags={**found.flags, "root": f"{tmp_path}/store"}))
    assert why.value.status == 125
    assert not list(tmp_path.iterdir())


def test_a_host_config_is_kept_and_read_back():
    words = "--memory 64m --pids-limit 9 --cap-add NET_ADMIN --cap-drop KILL --privileged --init"
    words += " --device /dev/null --tmpfs /x:size=1m --tmpfs /y --ulimit nofile=1:2 --shm-size 1m"
    words += " --oom-score-adj 5 --read-only --rm --security-opt no-new-privileges"
    host = words_of(given(*words.split())).replace(
        sysctls=("net.core.x=1 2",),
        pid_mode="host",
        network=Network.CONTAINER,
        network_of="ab",
    )
    text = json.dumps(host.to_dict())
    assert host_config(json.loads(text)) == host
    found = json.loads(text)
    assert found["Memory"] == 64 << 20
    assert found["NetworkMode"] == "container:ab"
    assert found["Tmpfs"] == {"/x": "size=1m", "/y": ""}
    assert found["Sysctls"] == {"net.core.x": "1 2"}
    assert found["Ulimits"] == [{"Name": "nofile", "Hard": 2, "Soft": 1}]
    assert found["Devices"][0] == {
        "PathOnHost": "/dev/null", "PathInContainer": "/dev/null", "CgroupPermissions": "rwm"
    }  # fmt: skip
