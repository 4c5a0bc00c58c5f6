"""What a process inside may do: asked from inside, number by number."""

# ruff: noqa: F811

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_namespaces import Failed, forked
from test_running import Box, box, busybox, view  # noqa: F401

from minidocker.elf import init_file
from minidocker.errors import CommandNotFoundError
from minidocker.joining import exec_in
from minidocker.linux import capget
from minidocker.mounts import is_first_user_namespace
from minidocker.namespaces import Bind, Sysctl
from minidocker.program import ProcessSpec
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


def asked(box: Box, numbers: list[int], **more: Any) -> dict[int, int]:
    """The errno of each system call inside; 0 when it was answered."""
    status, text = box.run(PYTHON, "-c", ASK, json.dumps(numbers), mounts=HOST, **more)
    assert status == 0, text
    return {int(number): code for number, code in json.loads(text).items()}


def numbers_of(*names: str) -> list[int]:
    table = MACHINES[os.uname().machine].numbers()
    return [table[name] for name in names if name in table]


def test_a_filter_is_there_and_no_promise(box: Box):
    lines = box.sh("grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status").split()
    assert lines == ["NoNewPrivs:", "0", "Seccomp:", "2"]


def test_the_promise_is_made_when_asked_for(box: Box):
    security = make_security(options=["no-new-privileges"])
    script = "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status"
    assert box.sh(script, security=security).split() == [
        "NoNewPrivs:",
        "1",
        "Seccomp:",
        "2",
    ]
    assert box.sh(script, security=security, user="web").split()[1] == "1"


def test_what_docker_refuses_is_refused(box: Box):
    refused = asked(box, numbers_of(*REFUSED))
    assert set(refused.values()) == {1}
    answered = asked(box, numbers_of("getpid", "getuid", "umask"))
    assert set(answered.values()) == {0}


def test_unknown_numbers_are_not_there(box: Box):
    found = asked(box, [*numbers_of("clone3"), 340, 420, 471, 512, 1000, 5000])
    assert set(found.values()) == {38}


def test_without_a_filter_the_kernel_itself_answers(box: Box):
    security = make_security(options=["seccomp=unconfined"])
    assert "Seccomp:\t0" in box.sh("grep Seccomp: /proc/self/status", security=security)
    found = asked(box, numbers_of("fsopen", "unshare"), security=security)
    assert 38 not in found.values()
    assert found[numbers_of("unshare")[0]] != 1  # EINVAL: the flags were looked at


def test_a_profile_of_one_s_own(box: Box):
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


def small_program(*calls: bytes) -> bytes:
    """A 32-bit ELF, all of it: it makes calls, and exits with what the last returned.

    Each call ends with its number in EAX; EAX is 0 or an errno, negated, afterwards.
    """
    code = b"".join(call + b"\xcd\x80" for call in calls)
    code += bytes.fromhex("89c3f7db31c040cd80")  # ebx = -eax; exit
    size = (0x54 + len(code)).to_bytes(4, "little")
    header = bytes.fromhex(
        "7f454c46010101000000000000000000" "0200030001000000" "54800408" "34000000"
        "00000000" "00000000" "3400" "2000" "0100" "0000" "0000" "0000"
        "01000000" "00000000" "00800408" "00800408"
    )  # fmt: skip
    found = header + size + size + bytes.fromhex("0500000000100000") + code
    assert len(header) == 0x44
    return found


def call_386(number: int, *args: int) -> bytes:
    """The instructions that put a call's arguments and its number in place."""
    registers = (0xBB, 0xB9, 0xBA)  # ebx, ecx, edx
    words = [*zip(registers, args, strict=False), (0xB8, number)]
    return b"".join(
        bytes([code]) + value.to_bytes(4, "little") for code, value in words
    )


NEWNS = 0x20000
SMALL = {
    "brk and umask": (
        (call_386(45, 0), call_386(60, 0), call_386(199), call_386(3, 0, 0, 0)),
        0,
    ),
    "mount": ((call_386(21, 0, 0, 0),), 1),
    "unshare": ((call_386(310, NEWNS),), 1),
    "clone with a namespace": ((call_386(120, NEWNS),), 1),
    "clone3": ((call_386(435, 0, 0),), 38),
    "a number of nobody": ((call_386(222),), 38),
    "vm86": ((call_386(166, 0),), 1),
}


@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="no 32-bit calls of x86 here"
)
@pytest.mark.parametrize("what", SMALL)
def test_a_32_bit_program_runs_by_its_own_table(box: Box, what: str):
    calls, status = SMALL[what]
    program = Path(box.rootfs).parent / "upper/small"
    program.write_bytes(small_program(*calls))
    program.chmod(0o755)
    assert box.run("/small")[0] == status


@pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="no 32-bit calls of x86 here"
)
def test_a_machine_that_a_profile_does_not_name_is_killed(box: Box):
    program = Path(box.rootfs).parent / "upper/small"
    program.write_bytes(small_program(call_386(20), call_386(3, 0, 0, 0)))
    program.chmod(0o755)
    both = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    for more, status in (({}, 128 + 31), ({"architectures": both}, 0)):
        text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", **more})
        assert box.run("/small", security=Security(seccomp=text))[0] == status
    unconfined = make_security(options=["seccomp=unconfined"])
    assert box.run("/small", security=unconfined)[0] == 0


def caps(box: Box, **more: Any) -> dict[str, int]:
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
def test_the_masks_are_what_was_asked_for(box: Box, flags: dict[str, Any], mask: int):
    found = caps(box, security=make_security(**flags))
    assert (found["CapBnd"], found["CapEff"], found["CapPrm"]) == (mask,) * 3
    assert (found["CapInh"], found["CapAmb"]) == (0, 0)


def test_privileged_is_everything_that_we_have(box: Box):
    held = forked(capget)[1]
    found = caps(box, security=PRIVILEGED)
    assert (found["CapBnd"], found["CapEff"], found["CapPrm"]) == (held,) * 3
    assert "Seccomp:\t0" in box.sh(
        "grep Seccomp: /proc/self/status", security=PRIVILEGED
    )
    assert box.run("mount", "-t", "tmpfs", "t", "/tmp", security=PRIVILEGED)[0] == 0


def test_a_dropped_capability_is_missed(box: Box):
    assert box.run("chroot", "/", "true")[0] == 0
    without = make_security(drop=["SYS_CHROOT"])
    assert "not permitted" in box.run("chroot", "/", "true", security=without)[1]


def test_exec_is_confined_like_the_container(box: Box):
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


def test_a_device_node_can_be_made_and_not_opened(box: Box):
    """Root has CAP_MKNOD; a host's disk must be out of its reach all the same."""
    script = """
    for place in /tmp /dev /dev/shm /; do
      mknod $place/mem c 1 1 2>/dev/null && head -c 1 $place/mem && echo read
      mknod $place/null2 c 1 3 2>/dev/null && (: >$place/null2) && echo opened
    done
    (: </dev/zero) && (: >/dev/null) && echo fine
    """
    text = box.sh(script)
    assert text.splitlines()[-1] == "fine"
    assert "read" not in text.split()
    assert "opened" not in text.split()
    if os.geteuid() == 0 and is_first_user_namespace():
        assert text.count("ermission denied") >= 6


def test_a_volume_s_device_nodes_cannot_be_opened(box: Box, tmp_path: Path):
    (tmp_path / "data").mkdir()
    mounts = (Bind(str(tmp_path / "data"), "/data"), Bind("/dev", "/hostdev"))
    text = box.sh(
        "(: >/hostdev/null) && echo opened; mknod /data/z c 1 5; (: </data/z) && echo opened",
        mounts=mounts,
    )
    assert "ermission denied" in text
    assert "opened" not in text


def test_a_device_that_is_given_works(box: Box):
    step = Bind("/dev/zero", "/dev/nothing", devices=True)
    text = box.sh("head -c 2 /dev/nothing | od -An -tx1", mounts=(step,))
    assert text.split() == ["00", "00"]


def test_the_host_s_root_is_not_behind_any_link_of_proc(box: Box):
    script = "for l in root cwd exe fd/0; do cd /proc/1/$l 2>/dev/null && ls; done; ls /proc/1/root"
    text = box.sh(script)
    assert not {"boot", "lib64", "work"} & set(text.split())


def test_an_init_reaps_forwards_and_passes_the_status_on(box: Box):
    def body() -> list[Any]:
        init = init_file()
        found: list[Any] = []
        for script in ("exit 42", "kill -9 $$", "readlink /proc/1/exe; echo $$"):
            process, ours = box.start("sh", "-c", script, init=init)
            with open(ours) as file:
                text = file.read()
            found.append((process.wait(), text))
        process, ours = box.start(
            "sh", "-c", "trap 'exit 7' TERM; (sleep 0.1 &); sleep 0.3; ps; echo ready; sleep 9 & wait",
            init=init,
        )  # fmt: skip
        text = b""
        while b"ready" not in text:
            text += os.read(ours, 4096)
        os.kill(process.pid, signal.SIGTERM)
        return [*found, (process.wait(), text.decode())]

    plain, killed, where, told = forked(body)
    assert (plain[0], killed[0]) == (42, 137)
    assert where[1].split() == ["/memfd:init", "(deleted)", "2"]
    assert told[0] == 7
    assert " Z " not in told[1]
    assert "[sleep]" not in told[1]


def test_an_init_cannot_be_written_to_from_inside(box: Box):
    def body() -> tuple[int, str]:
        process, ours = box.start(
            "sh",
            "-c",
            "echo x >/proc/1/exe || echo refused; : >>/proc/1/exe",
            init=init_file(),
        )
        with open(ours) as file:
            text = file.read()
        return process.wait(), text

    assert "refused" in forked(body)[1]


@pytest.mark.parametrize(
    ("program", "status"), [("nothere", 127), ("/etc", 126), ("/bin/plain", 126)]
)
def test_what_an_init_could_not_run_is_said_before_it_starts(
    box: Box, program: str, status: int
):
    def body() -> None:
        box.start(program, init=init_file())

    with pytest.raises(Failed, match="exec:") as why:
        forked(body)
    assert why.value.status == status


def test_settings_of_its_own_namespaces(box: Box):
    sysctls = (Sysctl("kernel.msgmax", "5000"), Sysctl("net.ipv4.ip_default_ttl", "33"))
    text = box.sh(
        "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl", sysctls=sysctls
    )
    assert text.split() == ["5000", "33"]
    assert Path("/proc/sys/net/ipv4/ip_default_ttl").read_text().strip() != "33"
    with pytest.raises(Failed, match=r"cannot set sysctl kernel\.msgmax to x"):
        box.run("true", sysctls=(Sysctl("kernel.msgmax", "x"),))
    with pytest.raises(Failed, match=r"cannot set sysctl net\.nothing"):
        box.run("true", sysctls=(Sysctl("net.nothing", "1"),))


def test_limits_of_a_process(box: Box):
    text = box.sh(
        "ulimit -n; ulimit -Hn; ulimit -c", ulimits=((7, 100, 200), (4, 0, 0))
    )
    assert text.split() == ["100", "200", "0"]


def test_the_size_of_shared_memory_and_the_score(box: Box):
    text = box.sh(
        "grep /dev/shm /proc/mounts; cat /proc/self/oom_score_adj",
        shm_size=1 << 20,
        oom_score_adj=500,
    )
    assert "size=1024k" in text
    assert text.split()[-1] == "500"


@pytest.mark.root
def test_namespaces_are_shared_as_asked(box: Box):
    def body() -> dict[str, list[str]]:
        links = "for n in pid ipc uts net mnt; do readlink /proc/self/ns/$n; done"
        process, _ = box.start(
            "sh", "-c", "echo here >/dev/shm/note; sleep 60", hostname="first"
        )
        deadline = time.monotonic() + 10
        note = f"/proc/{process.pid}/root/dev/shm/note"
        while not os.path.exists(note) and time.monotonic() < deadline:
            time.sleep(0.01)
        kinds = ("pid", "ipc", "uts", "net", "mnt")
        found = {"first": [os.readlink(f"/proc/{process.pid}/ns/{k}") for k in kinds]}
        for name, kinds_of, pid in (
            ("joined", kinds[:4], process.pid),
            ("host", kinds[:3], 0),
        ):
            shares = tuple((kind, pid) for kind in kinds_of)
            second, ours = box.start(
                "sh", "-c", f"{links}; cat /dev/shm/note; hostname", shares=shares
            )
            with open(ours) as file:
                found[name] = file.read().split("\n")
            second.wait()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return found

    found = forked(body)
    assert found["joined"][:4] == found["first"][:4]
    assert found["joined"][4] != found["first"][4]
    assert found["joined"][5:7] == ["here", "first"]
    ours = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "ipc", "uts")]
    assert found["host"][:3] == ours
    assert os.uname().nodename in found["host"]


SHOW = "import os; print(os.readlink('/proc/self/exe'))"
SCRIPTS = {
    "direct": {"script": "#!/proc/self/exe\n"},
    "by a link": {"script": "#!/bin/link -I\n"},
    "by a script": {"script": "#!/bin/second\n", "second": "#!/proc/self/exe\n"},
    "by another name": {"script": "#! /proc/1/exe x\n"},
    "by a thread": {"script": "#!/proc/thread-self/exe\n"},
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_gets_the_host_s_interpreter(
    box: Box, busybox: Path, tmp_path: Path, name: str
):
    """CVE-2019-5736: at the execve the process is still the host's Python."""
    upper = tmp_path / "upper/bin"
    upper.mkdir()
    (upper / "link").symlink_to("/proc/self/exe")
    for file, text in SCRIPTS[name].items():
        (upper / file).write_text(f"{text}{SHOW}\n")
        (upper / file).chmod(0o755)
    if name == "by a script":  # it goes round and round, as nobody but itself
        process_shows_itself(box)
        return
    with pytest.raises(Failed, match=r"permission denied|no such file") as why:
        box.run("/bin/script", mounts=HOST)
    assert why.value.status in (126, 127)


def process_shows_itself(box: Box) -> None:
    def body() -> str:
        process, ours = box.start("/bin/script", mounts=HOST)
        time.sleep(0.2)
        exe = os.readlink(f"/proc/{process.pid}/exe")
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)
        return exe + " python" * ("python" in maps)

    assert forked(body) == "/memfd:springboard (deleted)"


def test_exec_goes_by_the_springboard(box: Box):
    """Somebody inside could change a program between our look and the kernel's."""

    def body() -> list[str]:
        process, ours = box.start("sleep", "60")
        found = []
        out, theirs = os.pipe()
        for argv in (("sh", "-c", "echo hello $0", "x"), ("/bin/script",)):
            spec = ProcessSpec(argv, stdout=theirs, stderr=theirs)
            try:
                inner = exec_in(process.pid, spec)
                found.append(str(inner.wait()))
                os.close(inner.pidfd)
            except CommandNotFoundError as why:
                found.append(why.what)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)
        os.close(theirs)
        with open(out) as file:
            return [*found, file.read()]

    first, second, text = forked(body)
    assert (first, text) == ("0", "hello x\n")
    assert "no such file" in second
