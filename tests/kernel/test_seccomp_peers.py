"""Our filter beside those of others: libseccomp's of the same list, and Docker's own list."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import docker_daemon

from minidocker.flags import parse_flags
from minidocker.run_flags import RUN_FLAGS
from minidocker.run_verb import words_of
from minidocker.seccomp import (
    ALLOW,
    MACHINES,
    X86,
    Machine,
    Profile,
    compile_profile,
    this_machine,
)
from minidocker.security import DOCKER_CAPABILITIES, docker_profile


sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_seccomp import answer


pytestmark = pytest.mark.root
BUSYBOX = "/bin/busybox"
EPERM, ENOSYS = 0x50001, 0x50026
# Debian 12's libseccomp ends here; it does not know the calls after it
LAST = 450
CODES = {
    "BPF_LD|BPF_W|BPF_ABS": 0x20, "BPF_ALU|BPF_K|BPF_AND": 0x54, "BPF_RET|BPF_K": 0x06,
    "BPF_JMP|BPF_K|BPF_JA": 0x05, "BPF_JMP|BPF_K|BPF_JEQ": 0x15,
    "BPF_JMP|BPF_K|BPF_JGT": 0x25, "BPF_JMP|BPF_K|BPF_JGE": 0x35,
    "BPF_JMP|BPF_K|BPF_JSET": 0x45,
}  # fmt: skip
ACTIONS = {
    "ALLOW": 0x7FFF0000,
    "ERRNO": 0x50000,
    "KILL_PROCESS": 1 << 31,
    "KILL_THREAD": 0,
}


def constant(text: str) -> int:
    """A constant as strace prints it, flags by name included."""
    if "SECCOMP_RET_" not in text:
        return int(text, 0)
    name, _, more = text.removeprefix("SECCOMP_RET_").partition("|")
    return ACTIONS[name] | (int(more, 0) if more else 0)


def traced_program(text: str) -> bytes:
    """The longest filter that a trace shows being loaded."""
    found = []
    for listed in re.findall(r"filter=\[(.*?)\]\}", text):
        one = b""
        for kind, what, args in re.findall(
            r"BPF_(STMT|JUMP)\(([^,]+), ([^)]*)\)", listed
        ):
            k, *jumps = args.split(", ")
            then, otherwise = (int(j, 0) for j in jumps) if kind == "JUMP" else (0, 0)
            one += struct.pack("=HBBI", CODES[what], then, otherwise, constant(k))
        found.append(one)
    return max(found, key=len)


def as_oci(profile: Profile) -> dict[str, Any]:
    """A profile in the form of the OCI runtime specification."""
    assert profile.default == EPERM
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": [
            "SCMP_ARCH_X86_64"
            if os.uname().machine == "x86_64"
            else "SCMP_ARCH_AARCH64"
        ],
        "syscalls": [
            {
                "names": list(rule.names),
                "action": "SCMP_ACT_ALLOW"
                if rule.action == ALLOW
                else "SCMP_ACT_ERRNO",
                **({} if rule.action == ALLOW else {"errnoRet": rule.action & 0xFFFF}),
                "args": [
                    {
                        "index": a.index,
                        "value": a.value,
                        "valueTwo": a.wanted,
                        "op": f"SCMP_CMP_{a.op.value}",
                    }
                    for a in rule.args
                ],
            }
            for rule in profile.rules
        ],
    }


@pytest.fixture
def by_libseccomp(tmp_path: Path) -> bytes:
    """What runc and libseccomp load for our own list."""
    (tmp_path / "rootfs/bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, tmp_path / "rootfs/bin/true")
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["true"]}
    config["linux"]["seccomp"] = as_oci(
        docker_profile(DOCKER_CAPABILITIES, this_machine())
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-v", "-e", "trace=prctl,seccomp", "-o", trace, "runc", "--root",
         tmp_path / "runc", "run", f"peer-{os.getpid()}"],
        cwd=tmp_path, check=True, timeout=60,
    )  # fmt: skip
    return traced_program(trace.read_text(errors="replace"))


def test_libseccomp_means_the_same_by_our_list(by_libseccomp: bytes):
    machine = this_machine()
    ours = compile_profile(docker_profile(DOCKER_CAPABILITIES, machine), machine)
    assert len(ours) < len(by_libseccomp)
    names = {number: name for name, number in machine.numbers().items()}
    for args in (
        (),
        (40,),
        (2, 1),
        (1 << 28,),
        (1 << 17 | 17,),
        (8,),
        (0x20008,),
        (0xFFFFFFFF,),
    ):
        for number in range(LAST + 1):
            if number not in names:
                continue  # a free one: EPERM by runc, below the highest that it names
            if names[number] == "socket" and args[:1] == (40,):
                continue  # runc cannot say "neither 38 nor 40": it joins the two by or
            a, b = (
                answer(code, number, args, machine.audit)
                for code in (ours, by_libseccomp)
            )
            assert a == b, (names[number], args)


FLAGS = [
    "--memory",
    "64m",
    "--memory-reservation",
    "32m",
    "--cpus",
    "0.5",
    "--cpu-shares",
    "512",
    "--cpuset-cpus",
    "0",
    "--pids-limit",
    "77",
    "--cap-add",
    "NET_ADMIN",
    "--cap-drop",
    "KILL",
    "--security-opt",
    "no-new-privileges",
    "--device",
    "/dev/null:/dev/void",
    "--tmpfs",
    "/x:size=1m",
    "--ulimit",
    "nofile=10:20",
    "--shm-size",
    "1m",
    "--sysctl",
    "net.ipv4.ip_forward=1",
    "--oom-score-adj",
    "5",
    "--read-only",
    "--init",
]


@pytest.fixture
def docker_list(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The profile that Debian's Docker hands to runc, from a container's own bundle."""
    root = tmp_path_factory.mktemp("d")  # short: it becomes part of a socket's name
    (root / "tree/bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "tree/bin/sleep")
    tar = subprocess.run(
        ["tar", "-C", root / "tree", "-c", "."], stdout=subprocess.PIPE, check=True
    )
    with docker_daemon(root) as docker:
        docker.says("import", "-", "peer", stdin=tar.stdout)
        id = docker.says("run", "-d", "--network", "none", "peer", "sleep", "60")
        bundle = next((root / "exec").rglob("config.json"))
        config = json.loads(bundle.read_text())
        docker("rm", "-f", id.strip())
        made = docker.says("create", "--network", "none", *FLAGS, "peer", "sleep", "1")
        told = docker.says("inspect", made.strip())
        yield config | {"HostConfig": json.loads(told)[0]["HostConfig"]}


def written_host_config() -> dict[str, Any]:
    """What we would keep for the same flags."""
    words = ["--network", "none", *FLAGS, "peer"]
    given = parse_flags(RUN_FLAGS, words, "run", greedy=True)
    host = words_of(given).replace(sysctls=given.list("sysctl"))
    found: dict[str, Any] = json.loads(json.dumps(host.to_dict()))
    return found


# Docker 20.10 is of 2020: what it did not know, and what Docker has taken back since
NEWER = [
    "cachestat",
    "fchmodat2",
    "futex_requeue",
    "futex_wait",
    "futex_wake",
    "futex_waitv",
    "getxattrat",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "listmount",
    "listxattrat",
    "map_shadow_stack",
    "memfd_secret",
    "mseal",
    "name_to_handle_at",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_mrelease",
    "process_vm_readv",
    "process_vm_writev",
    "removexattrat",
    "setxattrat",
    "statmount",
]
TAKEN_BACK = {"io_uring_setup", "io_uring_enter", "io_uring_register"}


def test_docker_s_own_list_is_ours(docker_list: dict[str, Any]):
    rules = docker_list["linux"]["seccomp"]["syscalls"]
    allowed = {
        n
        for r in rules
        if r["action"] == "SCMP_ACT_ALLOW" and not r.get("args")
        for n in r["names"]
    }
    errnos = {
        n: r.get("errnoRet", 1)
        for r in rules
        if r["action"] == "SCMP_ACT_ERRNO"
        for n in r["names"]
    }
    by_argument = {n for r in rules if r.get("args") for n in r["names"]} - allowed
    assert by_argument <= {"clone", "personality", "socket"}
    different, here = set(), this_machine()
    for machine in (here, *here.others):
        ours = compile_profile(docker_profile(DOCKER_CAPABILITIES, machine), machine)
        for name, number in machine.numbers().items():
            if name in ("clone", "personality", "socket"):
                continue
            theirs = ALLOW if name in allowed else 0x50000 | errnos.get(name, 1)
            if answer(ours, number, (), machine.audit) != theirs:
                different.add(name)
    words = docker_list["linux"]["seccomp"]["architectures"]
    assert set(words) >= {one.word for one in (here, *here.others)}
    assert different <= {*NEWER, *TAKEN_BACK}, " ".join(
        sorted(different - {*NEWER, *TAKEN_BACK})
    )
    assert "keyctl" not in different
    masked = docker_list["linux"]["maskedPaths"], docker_list["linux"]["readonlyPaths"]
    from minidocker.security import MASKED, READONLY

    assert set(masked[0]) <= set(MASKED)
    assert set(masked[1]) == set(READONLY)
    ours = written_host_config()
    theirs = docker_list["HostConfig"]
    for key in ours:
        if key != "CgroupnsMode":  # Docker leaves version 1 to the host's
            assert ours[key] == theirs[key], key
    caps = docker_list["process"]["capabilities"]["bounding"]
    from minidocker.security import KEPT

    assert {c.removeprefix("CAP_") for c in caps} == {c.name for c in KEPT}


@pytest.mark.parametrize("machine", [*MACHINES.values(), X86], ids=lambda m: m.name)
def test_libseccomp_has_the_same_numbers_for_all_machines(machine: Machine):
    import ctypes

    library = ctypes.CDLL("libseccomp.so.2")
    known = 0
    for name, number in machine.numbers().items():
        found = library.seccomp_syscall_resolve_name_arch(machine.audit, name.encode())
        if found >= 0:  # else it does not know it, or has it behind socketcall or ipc
            assert found == number, name
            known += 1
    assert known > 300
    for number in range(LAST + 1):
        resolve = library.seccomp_syscall_resolve_num_arch
        resolve.restype = ctypes.c_char_p
        name = resolve(machine.audit, number)
        assert name is None or name.decode() in machine.numbers(), number
