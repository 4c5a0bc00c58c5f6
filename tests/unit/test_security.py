"""Docker's profile means what Docker's profile means; flags that are wrong are refused."""

import doctest
import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_seccomp import NUMBERS, X86, answer

from minidocker import profiles, security
from minidocker.errors import RuntimeFault, UsageError
from minidocker.linux import Capability
from minidocker.profiles import machines_of, read_profile
from minidocker.seccomp import (
    ALLOW,
    ERRNO,
    KILL_PROCESS,
    KILL_THREAD,
    LOG,
    MACHINES,
    TRACE,
    TRAP,
    compile_profile,
)
from minidocker.security import (
    DOCKER_CAPABILITIES,
    NEVER_386,
    PRIVILEGED,
    Security,
    capability_mask,
    docker_profile,
    filter_program,
    make_security,
)


EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
FORBIDDEN = [
    "_sysctl",
    "acct",
    "add_key",
    "afs_syscall",
    "bpf",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "file_getattr",
    "file_setattr",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "getpmsg",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "listns",
    "lookup_dcookie",
    "lsm_get_self_attr",
    "lsm_list_modules",
    "lsm_set_self_attr",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "putpmsg",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "security",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "tuxcall",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vserver",
]


def program(mask: int = DOCKER_CAPABILITIES) -> bytes:
    return compile_profile(docker_profile(mask, X86), X86)


@pytest.mark.parametrize("module", [security, profiles], ids=lambda m: m.__name__)
def test_doctests_hold(module: Any):
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted


def test_docker_s_mask_is_docker_s():
    assert f"{DOCKER_CAPABILITIES:016x}" == "00000000a80425fb"


@pytest.mark.parametrize("args", [(), (1 << 63, 1, 2, 3, 4, 5), (0, 40, 38)])
def test_every_number_gets_docker_s_answer(args: tuple[int, ...]):
    code = program()
    names = {number: name for name, number in NUMBERS.items()}
    for number in range(600):
        name = names.get(number)
        expected = EPERM if name in FORBIDDEN else ALLOW
        if name is None or name == "clone3":
            expected = ENOSYS
        assert answer(code, number, args) == expected, name


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda m: m.name)
def test_every_machine_refuses_the_same_names(machine: Any):
    code = compile_profile(docker_profile(DOCKER_CAPABILITIES, machine), machine)
    for name, number in machine.numbers().items():
        found = answer(code, number, audit=machine.audit)
        expected = EPERM if name in FORBIDDEN else ENOSYS if name == "clone3" else ALLOW
        assert found == expected, name


def test_namespaces_cannot_be_cloned():
    code = program()
    for bit in range(32):
        new = bit in (17, 25, 26, 27, 28, 29, 30)
        for flags in (1 << bit, 1 << bit | 17, 1 << bit | 1 << 33):
            expected = EPERM if new else ALLOW
            assert answer(code, NUMBERS["clone"], (flags,)) == expected, bit


def test_an_int_is_compared_as_one():
    code = program()
    for family in (40, 40 | 1 << 32, 40 | 0xFFFF_FFFF << 32, 38, 38 | 1 << 40):
        assert answer(code, NUMBERS["socket"], (family, 1)) == EPERM
    for family in (1, 2, 10, 16, 17, 39, 41, 1 << 32 | 2):
        assert answer(code, NUMBERS["socket"], (family, 1)) == ALLOW
    for which in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 0xFFFFFFFF_FFFFFFFF):
        assert answer(code, NUMBERS["personality"], (which,)) == ALLOW
    for which in (1, 0x40000, 0x20001):
        assert answer(code, NUMBERS["personality"], (which,)) == EPERM


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("SYS_ADMIN", "mount setns unshare bpf clone3 syslog perf_event_open"),
        ("SYS_BOOT", "reboot"),
        ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
        ("SYS_MODULE", "init_module finit_module delete_module"),
        ("SYSLOG", "syslog"),
        ("BPF", "bpf"),
        ("SYS_TIME", "settimeofday clock_settime"),
        ("SYS_NICE", "mbind set_mempolicy get_mempolicy set_mempolicy_home_node"),
    ],
)
def test_a_capability_brings_its_calls_back(name: str, calls: str):
    code = program(DOCKER_CAPABILITIES | 1 << Capability[name])
    for call in FORBIDDEN:
        back = call in calls.split() or name == "SYS_ADMIN"
        found = answer(code, NUMBERS[call]) if call in NUMBERS else None
        if call in calls.split():
            assert found == ALLOW, call
        elif not back:
            assert found == EPERM, call
    clone = answer(code, NUMBERS["clone"], (1 << 28,))
    assert clone == (ALLOW if name == "SYS_ADMIN" else EPERM)


def test_chroot_goes_with_its_capability():
    assert answer(program(), NUMBERS["chroot"]) == ALLOW
    without = DOCKER_CAPABILITIES & ~(1 << Capability.SYS_CHROOT)
    assert answer(program(without), NUMBERS["chroot"]) == EPERM


@pytest.mark.parametrize(
    ("add", "drop", "mask"),
    [
        ([], [], 0xA80425FB),
        (["net_admin"], [], 0xA80425FB | 1 << 12),
        (["CAP_NET_ADMIN"], ["Kill"], (0xA80425FB | 1 << 12) & ~(1 << 5)),
        ([], ["ALL"], 0),
        (["CHOWN"], ["all"], 1),
        (["ALL"], [], (1 << 41) - 1),
        (["ALL"], ["SYS_ADMIN"], (1 << 41) - 1 & ~(1 << 21)),
        (["KILL"], ["KILL"], 0xA80425FB),
    ],
)
def test_capabilities_are_added_and_dropped(add: list[str], drop: list[str], mask: int):
    assert capability_mask(add, drop) == mask


@pytest.mark.parametrize(
    "flags", [{"add": ["NOPE"]}, {"drop": ["CAP_"]}, {"add": [""]}]
)
def test_an_unknown_capability_is_refused_also_with_privileged(flags: dict[str, Any]):
    for privileged in (False, True):
        with pytest.raises(
            UsageError, match=r"invalid Cap(Add|Drop): unknown capability"
        ):
            make_security(**flags, privileged=privileged)


def test_security_options_are_read_as_docker_reads_them():
    assert make_security() == Security()
    assert make_security(privileged=True) == PRIVILEGED
    assert make_security(options=["no-new-privileges"]).no_new_privileges
    assert make_security(options=["no-new-privileges:true"]).no_new_privileges
    assert not make_security(options=["no-new-privileges=false"]).no_new_privileges
    assert make_security(options=["seccomp:unconfined"]).seccomp == "unconfined"
    assert make_security(options=['seccomp={"a": "b=c"}']).seccomp == '{"a": "b=c"}'
    assert not make_security(options=["systempaths=unconfined"]).masked


@pytest.mark.parametrize(
    "option",
    [
        "",
        "x",
        "seccomp",
        "seccomp=",
        "no-new-privileges=maybe",
        "apparmor=",
    ],
)
def test_other_security_options_are_refused(option: str):
    with pytest.raises(UsageError, match="invalid --security-opt"):
        make_security(options=[option])


def profile_of(found: object, mask: int = DOCKER_CAPABILITIES) -> bytes:
    text = found if isinstance(found, str) else json.dumps(found)
    return compile_profile(read_profile(text, mask, X86), X86)


def test_a_profile_in_docker_s_format():
    code = profile_of(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
            "syscalls": [
                {"names": ["read", "nosuchcall"], "action": "SCMP_ACT_ALLOW"},
                {"name": "write", "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
                {"names": ["kexec_load"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["getpid"], "action": "SCMP_ACT_KILL"},
                {"names": ["gettid"], "action": "SCMP_ACT_TRAP"},
                {"names": ["getuid"], "action": "SCMP_ACT_LOG"},
                {"names": ["getgid"], "action": "SCMP_ACT_TRACE", "errnoRet": 9},
                {"names": ["fstat"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_KILL"]}},
                {"names": ["lstat"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["stat"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_KILL"]}},
                {"names": ["dup"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390"]}},
                {"names": ["dup2"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
                {"names": ["dup3"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
                {"names": ["pipe"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["pipe2"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
                {
                    "names": ["mmap"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 2, "value": 4, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
                },
            ],
        }
    )  # fmt: skip
    no = ERRNO | 13
    expected = {
        "read": ALLOW, "write": ERRNO | 5, "kexec_load": KILL_PROCESS, "getpid": KILL_THREAD,
        "gettid": TRAP, "getuid": LOG, "getgid": TRACE | 9, "fstat": ALLOW, "lstat": no,
        "stat": no, "dup": no, "dup2": no, "dup3": ALLOW, "pipe": ALLOW, "pipe2": no,
    }  # fmt: skip
    assert {n: answer(code, NUMBERS[n]) for n in expected} == expected
    assert answer(code, NUMBERS["mmap"], (0, 0, 3)) == ALLOW
    assert answer(code, NUMBERS["mmap"], (0, 0, 7)) == no


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing", "[]", "7", '{"defaultAction": "SCMP_ACT_NOTIFY"}', "{}",
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "X"}]}',
        '{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",'
        ' "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",'
        ' "args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]}]}',
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",'
        ' "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_LIKE"}]}]}',
    ],
)  # fmt: skip
def test_a_profile_that_is_none_is_refused(text: str):
    with pytest.raises(RuntimeFault, match="decoding seccomp profile failed"):
        profile_of(text)


def test_the_names_of_this_machine_are_known():
    assert os.uname().machine in MACHINES


FORBIDDEN_386 = ("clock_settime64", "stime", "umount")
X86_WORD = {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ({}, ["amd64"]),
        ({"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]}, ["amd64"]),
        ({"architectures": ["SCMP_ARCH_X86"]}, ["amd64", "386"]),
        ({"archMap": [X86_WORD]}, ["amd64", "386"]),
        ({"archMap": [X86_WORD | {"architecture": "SCMP_ARCH_AARCH64"}]}, ["amd64"]),
    ],
)
def test_a_profile_says_for_which_machines_it_is(more: Any, names: list[str]):
    text = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", **more})
    assert [one.name for one in machines_of(text, X86)] == names


@pytest.mark.parametrize(
    "found", [{"architectures": ["SCMP_ARCH_VAX"]}, {"archMap": [1]}]
)
def test_a_machine_that_nobody_knows_is_refused(found: Any):
    with pytest.raises(RuntimeFault, match="decoding seccomp profile failed"):
        machines_of(json.dumps(found), X86)


def test_one_filter_knows_the_calls_of_both_machines():
    code = filter_program("", DOCKER_CAPABILITIES)
    small = X86.others[0]
    for machine in (X86, small):
        for name, number in machine.numbers().items():
            expected = EPERM if name in {*FORBIDDEN, *FORBIDDEN_386} else ALLOW
            if name == "clone3":
                expected = ENOSYS
            if machine is small and name in NEVER_386.split():
                expected = EPERM
            assert answer(code, number, audit=machine.audit) == expected, name
    assert answer(code, 222, audit=small.audit) == ENOSYS
    assert answer(code, 0, audit=MACHINES["aarch64"].audit) == KILL_PROCESS


def test_labels_of_selinux_say_nothing_where_it_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(security, "SELINUX", str(tmp_path / "enforce"))
    for text in ("label=disable", "label=type:x", "label:level:s0:c1"):
        assert make_security(options=[text]) == Security()
    (tmp_path / "enforce").write_text("1")
    assert make_security(options=["label=disable"]) == Security()
    with pytest.raises(UsageError, match="invalid --security-opt"):
        make_security(options=["label=type:x"])
