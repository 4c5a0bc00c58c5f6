"""One bundle, two runtimes: the container is the same, and so is what the caller hears."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from oci.conftest import Bundle, Runtime


pytestmark = pytest.mark.root

# 32-bit x86, all of it: exit(-getpid())
SMALL = bytes.fromhex(
    "7f454c46010101000000000000000000" "0200030001000000" "54800408" "34000000"
    "00000000" "00000000" "3400" "2000" "0100" "0000" "0000" "0000"
    "01000000" "00000000" "00800408" "00800408" "64000000" "64000000" "05000000"
    "00100000" "b814000000cd80" "89c3f7db31c040cd80"
)  # fmt: skip
LOOK = """
cat /proc/self/status | grep -E '^(Cap|NoNew|Seccomp:|Uid|Gid|Groups)'
id; pwd; umask; hostname; echo $$; env | sort
ls -l /dev | sed 's/  */ /g' | cut -d' ' -f1,3-6,9-
cat /proc/self/limits; cat /proc/self/oom_score_adj
cat /proc/self/mountinfo | cut -d' ' -f4-5,6-9 | sort
ls /proc/self/fd | wc -l
readlink /proc/self/cwd; cat /proc/sys/kernel/domainname
"""
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "another user": {
        "process.user": {"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 0o77},
        "process.cwd": "/srv/deep",
        "process.noNewPrivileges": True,
    },
    "few rights": {
        "process.capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_CHOWN"],
            "permitted": ["CAP_CHOWN", "CAP_KILL"],
        }
    },
    "rights of a user": {
        "process.user": {"uid": 7, "gid": 8},
        "process.capabilities": {
            key: ["CAP_NET_BIND_SERVICE"]
            for key in ("bounding", "effective", "permitted", "inheritable", "ambient")
        },
    },
    "limits": {
        "process.rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128}],
        "process.oomScoreAdj": 500,
        "process.env": ["PATH=/bin", "A=1", "B=two words"],
    },
    "readonly": {"root.readonly": True, "hostname": "other"},
    "few namespaces": {
        "linux.namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}],
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    },
    "filter": {
        "linux.seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
        }
    },
    "sysctl": {"linux.sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000"}},
    "devices": {
        "linux.devices": [
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640,
             "uid": 7, "gid": 8},
            {"path": "/dev/pipe", "type": "p", "fileMode": 0o600},
        ]
    },
}  # fmt: skip


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config with values at ways such as ``process.cwd``."""
    found: dict[str, Any] = json.loads(json.dumps(config))
    for way, value in changes.items():
        *steps, last = way.split(".")
        place = found
        for step in steps:
            place = place[step]
        place[last] = value
    return found


def alike(text: str) -> str:
    """What is not the container's: runc's read-only tree of groups, sizes, labels."""
    return "\n".join(
        line
        for line in text.splitlines()
        if "/sys/fs/cgroup" not in line and " /proc/" not in line
        and "/sys/firmware" not in line
    )  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_the_container_is_the_same(
    name: str, bundle: Bundle, ours: Runtime, runc: Runtime
) -> None:
    bundle.config = changed(bundle.config, CHANGES[name])
    seen = ours.run(bundle, "sh", "-c", LOOK)
    expected = runc.run(bundle, "sh", "-c", LOOK)
    assert alike(seen) == alike(expected)
    assert len(seen.splitlines()) > 40


MOUNTS: dict[str, list[str]] = {
    "a bind": ["bind"],
    "read-only": ["bind", "ro"],
    "all below read-only": ["rbind", "rro"],
    "with attributes": ["rbind", "nosuid", "nodev", "noexec", "noatime"],
    "slave": ["rbind", "rslave"],
    "shared": ["rbind", "rshared"],
    "unbindable": ["bind", "unbindable"],
}


@pytest.mark.parametrize("name", MOUNTS)
@pytest.mark.parametrize("root", ["", "shared", "rslave", "private"])
def test_a_bind_has_the_same_attributes(
    name: str, root: str, bundle: Bundle, ours: Runtime, runc: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    where = {"destination": "/data", "source": str(tmp_path / "source")}
    mounts = [*bundle.config["mounts"], {**where, "options": MOUNTS[name]}]
    linux = {**bundle.config["linux"], "rootfsPropagation": root}
    script = "grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6- | sed 's/:[0-9]*//g'"
    seen = ours.run(bundle, "sh", "-c", script, mounts=mounts, linux=linux)
    expected = runc.run(bundle, "sh", "-c", script, mounts=mounts, linux=linux)
    assert seen == expected
    assert seen


def test_a_tmpfs_has_the_mode_of_what_it_covers_or_its_content(
    bundle: Bundle, ours: Runtime, runc: Runtime
) -> None:
    (bundle.path / "rootfs/full").mkdir(mode=0o711)
    (bundle.path / "rootfs/full/file").write_text("text")
    for options in ([], ["mode=1700"], ["tmpcopyup"], ["tmpcopyup", "ro"]):
        one = {
            "destination": "/full",
            "type": "tmpfs",
            "source": "x",
            "options": options,
        }
        mounts = [*bundle.config["mounts"], one]
        script = "stat -c %a /full; ls /full; grep ' /full ' /proc/self/mountinfo | cut -d' ' -f6-9"
        seen = ours.run(bundle, "sh", "-c", script, mounts=mounts)
        expected = runc.run(bundle, "sh", "-c", script, mounts=mounts)
        # runc 1.1 overrides a mode that is asked for; since 1.2 it does not
        assert seen == expected.replace(
            "711", "1700" if options[:1] == ["mode=1700"] else "711"
        )


SCRIPT = """
create --bundle BUNDLE box|state box|create --bundle BUNDLE box|delete nothere
start box|start box|state box|list -q|delete box|kill box FOO|exec box sh -c 'exit 7'
exec box nothere|exec box /etc/passwd|exec box /bin|exec --user 7:8 --cwd /tmp box id
exec -e A=1 box env|kill box 0|pause box|pause box|state box|exec box true|resume box|resume box
kill box KILL|WAIT|state box|kill box 0|kill box|start box|exec box true|pause box|delete box
delete box|delete --force box|kill nothere|state nothere|start nothere|create
create --bundle /nowhere box|create --bundle BUNDLE ../box
"""


def heard(runtime: Runtime, bundle: Bundle) -> list[tuple[str, int, str]]:
    """What a caller hears of each call: status, output and message."""
    import shlex

    found = []
    for line in re.split(r"[|\n]", SCRIPT.strip()):
        if line == "WAIT":
            end = time.monotonic() + 10
            while (
                runtime.state("box")["status"] != "stopped" and time.monotonic() < end
            ):
                time.sleep(0.01)
            continue
        done = runtime(*shlex.split(line.replace("BUNDLE", str(bundle.path))))
        text = (done.stdout if "exec" in line or "list" in line else "") + done.stderr
        message = re.sub(r"time=\S+|(minidocker|runc) |\(hint.*\)", "", text)
        if '"status"' in done.stdout:
            message += json.loads(done.stdout)["status"]
        found.append((line, done.returncode, message.strip()))
    return found


# Go's words for errno, runc's longer help, and what it has to say of a missing argument
OURS_OWN = {
    "create", "create --bundle /nowhere box", "exec box /bin", "exec box /etc/passwd",
    "exec box true", "kill box FOO", "pause box", "resume box", "create --bundle BUNDLE ../box",
}  # fmt: skip


def test_a_caller_hears_the_same(bundle: Bundle, ours: Runtime, runc: Runtime) -> None:
    bundle.write("sleep", "60")
    seen, expected = heard(ours, bundle), heard(runc, bundle)
    assert [one[:2] for one in seen] == [one[:2] for one in expected]
    for one, two in zip(seen, expected, strict=True):
        if one[0] not in OURS_OWN:
            assert one == two
        else:
            assert bool(one[2]) == bool(two[2]), (one, two)


def test_the_log_file_has_the_last_error(
    bundle: Bundle, ours: Runtime, runc: Runtime, tmp_path: Path
) -> None:
    bundle.write("nothere")
    for runtime in (ours, runc):
        log = tmp_path / f"{runtime.name}.json"
        words = ["--log", str(log), "--log-format", "json", "create"]
        done = runtime(*words, "--bundle", str(bundle.path), "box")
        assert done.returncode == 1
        entry = json.loads(log.read_text().splitlines()[-1])
        assert set(entry) == {"level", "msg", "time"}
        assert entry["level"] == "error"
        end = 'unable to start container process: exec: "nothere": executable file not found in $PATH'
        assert entry["msg"].endswith(end)
        assert done.stderr.strip().endswith(entry["msg"])
        assert not runtime.root.exists() or not os.listdir(runtime.root)


def test_control_groups_of_a_systemd_that_does_not_run(
    ours: Runtime, runc: Runtime, bundle: Bundle
) -> None:
    bundle.config["linux"]["cgroupsPath"] = "system.slice:test:box"
    bundle.write("true")
    said = []
    for runtime in (ours, runc):
        runtime.argv = [*runtime.argv, "--systemd-cgroup"]
        done = runtime("run", "--bundle", str(bundle.path), "box")
        assert done.returncode == 1
        said.append(re.findall("systemd not running.*? managers?", done.stderr))
    assert said[0] == said[1]
    assert said[0]


def test_machines_of_a_filter(ours: Runtime, runc: Runtime, bundle: Bundle) -> None:
    """A 32-bit program is killed unless the filter is for it as well."""
    small = bundle.path / "rootfs/small"
    small.write_bytes(SMALL)
    small.chmod(0o755)
    native = f"SCMP_ARCH_{'X86_64' if os.uname().machine == 'x86_64' else 'AARCH64'}"
    found = []
    for runtime in (ours, runc):
        for words in ([native, "SCMP_ARCH_X86"], [native]):
            mine = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": words}
            mine["syscalls"] = [
                {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 33}
            ]
            bundle.config["linux"]["seccomp"] = mine
            bundle.write("/small")
            done = runtime("run", "--bundle", str(bundle.path), f"box{len(words)}")
            found.append(done.returncode)
    assert found[:2] == found[2:] == [33, 128 + 31]
