"""What a process inside may do: asked from inside, number by number."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from test_namespaces import Failed, forked
from test_running import Box, box, busybox, view  # noqa: F401

from minidocker.linux import capget
from minidocker.namespaces import Bind
from minidocker.program import ProcessSpec
from minidocker.runtime import exec_in
from minidocker.seccomp import MACHINES
from minidocker.security import PRIVILEGED, Security, make_security


PYTHON = os.path.realpath(sys.executable)
HOST = tuple(
    Bind(path, path, readonly=True)
    for path in ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")
    if os.path.exists(path)
)
# -1 everywhere: a call that is let through fails for another reason
ASK = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for number in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    found[number] = ctypes.get_errno() if result == -1 else 0
print(json.dumps(found))
"""
REFUSED = [
    "mount",
    "umount2",
    "unshare",
    "setns",
    "pivot_root",
    "bpf",
    "perf_event_open",
    "keyctl",
    "add_key",
    "request_key",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "userfaultfd",
    "kexec_load",
    "open_by_handle_at",
    "move_pages",
    "migrate_pages",
    "fsopen",
    "fsconfig",
    "fsmount",
    "open_tree",
    "move_mount",
    "mount_setattr",
    "swapon",
    "swapoff",
    "acct",
    "init_module",
    "finit_module",
    "delete_module",
    "quotactl",
    "sethostname",
    "setdomainname",
    "syslog",
    "lookup_dcookie",
    "kcmp",
    "fanotify_init",
]


def asked(box: Box, numbers: list[int], **more: Any) -> dict[int, int]:  # noqa: F811
    """The errno of each system call inside; 0 when it was answered."""
    status, text = box.run(PYTHON, "-c", ASK, json.dumps(numbers), mounts=HOST, **more)
    assert status == 0, text
    return {int(number): code for number, code in json.loads(text).items()}


def numbers_of(*names: str) -> list[int]:
    table = MACHINES[os.uname().machine].numbers()
    return [table[name] for name in names if name in table]


def test_a_filter_is_there_and_no_promise(box: Box):  # noqa: F811
    lines = box.sh("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status").split()
    assert lines == ["NoNewPrivs:", "0", "Seccomp:", "2"]


def test_the_promise_is_made_when_asked_for(box: Box):  # noqa: F811
    security = make_security(options=["no-new-privileges"])
    script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status"
    assert box.sh(script, security=security).split() == [
        "NoNewPrivs:",
        "1",
        "Seccomp:",
        "2",
    ]
    assert box.sh(script, security=security, user="web").split()[1] == "1"


def test_what_docker_refuses_is_refused(box: Box):  # noqa: F811
    refused = asked(box, numbers_of(*REFUSED))
    assert set(refused.values()) == {1}
    answered = asked(box, numbers_of("getpid", "getuid", "umask"))
    assert set(answered.values()) == {0}


def test_unknown_numbers_are_not_there(box: Box):  # noqa: F811
    found = asked(box, [*numbers_of("clone3"), 340, 420, 471, 512, 1000, 5000])
    assert set(found.values()) == {38}


def test_without_a_filter_the_kernel_itself_answers(box: Box):  # noqa: F811
    security = make_security(options=["seccomp=unconfined"])
    assert "Seccomp:\t0" in box.sh("grep Seccomp: /proc/self/status", security=security)
    found = asked(box, numbers_of("fsopen", "unshare"), security=security)
    assert 38 not in found.values()
    assert found[numbers_of("unshare")[0]] != 1  # EINVAL: the flags were looked at


def test_a_profile_of_one_s_own(box: Box):  # noqa: F811
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
        ],
    }
    security = Security(seccomp=json.dumps(profile))
    assert "No space left" in box.sh("mkdir /tmp/x", security=security)
    with pytest.raises(Failed, match="decoding seccomp profile failed") as why:
        box.run("true", security=Security(seccomp="{"))
    assert why.value.status == 125


def test_a_foreign_machine_is_killed(box: Box):  # noqa: F811
    """int 0x80 with the number of getpid in the 32-bit table: an ELF of our own."""
    if os.uname().machine != "x86_64":
        return
    code = bytes.fromhex("b814000000cd8031ffb83c0000000f05")  # getpid; exit(0)
    header = bytes.fromhex(
        "7f454c46020101000000000000000000" "02003e0001000000" "7800400000000000"
        "4000000000000000" "0000000000000000" "00000000" "4000" "3800" "0100" "0000" "0000" "0000"
        "0100000005000000" "0000000000000000" "0000400000000000" "0000400000000000"
        "8100000000000000" "8100000000000000" "0010000000000000"
    )  # fmt: skip
    assert len(header) == 0x78
    program = Path(box.rootfs).parent / "upper/foreign"
    program.write_bytes(header + code + bytes(8))
    program.chmod(0o755)
    assert box.run("/foreign")[0] == 128 + 31  # SIGSYS
    unconfined = make_security(options=["seccomp=unconfined"])
    assert box.run("/foreign", security=unconfined)[0] == 0


def caps(box: Box, **more: Any) -> dict[str, int]:  # noqa: F811
    lines = box.sh("grep Cap /proc/self/status", **more).splitlines()
    return {name: int(mask, 16) for name, mask in (line.split(":\t") for line in lines)}


@pytest.mark.parametrize(
    ("flags", "mask"),
    [
        ({"add": ["NET_ADMIN"]}, 0xA80425FB | 1 << 12),
        ({"drop": ["ALL"]}, 0),
        ({"drop": ["all"], "add": ["chown"]}, 1),
        ({"drop": ["CAP_MKNOD", "NET_RAW"]}, 0xA80425FB & ~(1 << 27 | 1 << 13)),
    ],
)
def test_the_masks_are_what_was_asked_for(box: Box, flags: dict[str, Any], mask: int):  # noqa: F811
    found = caps(box, security=make_security(**flags))
    assert (found["CapBnd"], found["CapEff"], found["CapPrm"]) == (mask,) * 3
    assert (found["CapInh"], found["CapAmb"]) == (0, 0)


def test_privileged_is_everything_that_we_have(box: Box):  # noqa: F811
    held = forked(capget)[1]
    found = caps(box, security=PRIVILEGED)
    assert (found["CapBnd"], found["CapEff"], found["CapPrm"]) == (held,) * 3
    assert "Seccomp:\t0" in box.sh(
        "grep Seccomp: /proc/self/status", security=PRIVILEGED
    )
    assert box.run("mount", "-t", "tmpfs", "t", "/tmp", security=PRIVILEGED)[0] == 0


def test_a_dropped_capability_is_missed(box: Box):  # noqa: F811
    assert box.run("chroot", "/", "true")[0] == 0
    without = make_security(drop=["SYS_CHROOT"])
    assert "not permitted" in box.run("chroot", "/", "true", security=without)[1]


def test_exec_is_confined_like_the_container(box: Box):  # noqa: F811
    def body() -> tuple[str, str]:
        process, _ = box.start("sleep", "60")
        texts = []
        for security in (Security(), Security(PRIVILEGED.capabilities)):
            ours, theirs = os.pipe()
            null = os.open("/dev/null", os.O_RDONLY)
            argv = ("grep", "-E", "^(Cap[PEB]|Seccomp:)", "/proc/self/status")
            spec = ProcessSpec(argv, stdin=null, stdout=theirs, stderr=theirs)
            inner = exec_in(process.pid, spec.replace(security=security))
            os.close(theirs)
            with open(ours) as file:
                texts.append(file.read())
            inner.wait()
        os.kill(process.pid, 9)
        process.wait()
        return texts[0], texts[1]

    plain, full = forked(body)
    assert plain.count("00000000a80425fb") == 3
    assert "Seccomp:\t2" in plain
    assert "00000000a80425fb" not in full
    assert "Seccomp:\t2" in full
