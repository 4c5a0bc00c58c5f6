# From book/410-device-rules.md. Edit there and tangle, or here and tangle --back.

# %% Device rules: which doors a group may open
"""Which devices the processes of a group may open or make: v1 by files, v2 by BPF."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Mapping

from minidocker.calls import syscall
from minidocker.cgroups import Group
from minidocker.errors import RuntimeFault
from minidocker.namespaces import put
from minidocker.records import Record


# %% The nouns
class DeviceRule(Record):
    """Allow or deny ``access`` (of "rwm") to devices; ANY is every number.

    ``kind`` is "c", "b", or "a" for all devices there are.
    """

    allow: bool
    kind: str = "a"
    major: int = -1
    minor: int = -1
    access: str = "rwm"


ANY = -1
DeviceKey = tuple[str, int, int]


class DeviceList(Record):
    """What a list of rules comes to: what holds for all devices, but for a few.

    ``others`` maps a device to the accesses that are the other way round.
    """

    allow: bool
    others: Mapping[DeviceKey, frozenset[str]]


# %% The nouns
def settled(rules: Iterable[DeviceRule]) -> DeviceList:
    """Return what rules come to, in the order in which they are given.

    >>> found = settled([DeviceRule(False), DeviceRule(True, "c", 1, 3, "rw")])
    >>> found.allow, {key: sorted(found.others[key]) for key in found.others}
    (False, {('c', 1, 3): ['r', 'w']})
    """
    allow = False
    others: dict[DeviceKey, frozenset[str]] = {}
    for rule in rules:
        if rule.kind == "a":
            allow, others = rule.allow, {}
            continue
        key = (rule.kind, rule.major, rule.minor)
        before = others.get(key, frozenset())
        access = frozenset(rule.access)
        others[key] = before | access if rule.allow != allow else before - access
    return DeviceList(allow, {key: access for key, access in others.items() if access})


# %% The nouns
def docker_rules() -> tuple[DeviceRule, ...]:
    """Return what Docker lets every container do: make any node, open the usual ones.

    Source: runc, libcontainer/specconv/spec_linux.go, AllowedDevices.
    """
    usual = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, ANY))
    return (
        DeviceRule(False),
        DeviceRule(True, "c", access="m"),
        DeviceRule(True, "b", access="m"),
        *(DeviceRule(True, "c", major, minor) for major, minor in usual),
    )


# %% Version 1: two files
def file_lines(devices: DeviceList) -> list[tuple[str, str]]:
    """Return (file, line) for each write that makes a group of version 1 so.

    >>> file_lines(settled([DeviceRule(False), DeviceRule(True, "c", 1, -1, "r")]))
    [('devices.deny', 'a'), ('devices.allow', 'c 1:* r')]
    """
    default, other = ("devices.deny", "devices.allow")[:: 1 - 2 * devices.allow]
    found = [(default, "a")]
    for (kind, major, minor), access in devices.others.items():
        numbers = ":".join("*" if n == ANY else str(n) for n in (major, minor))
        found.append((other, f"{kind} {numbers} {''.join(sorted(access))}"))
    return found


# %% Version 2: a program
LOAD_WORD, COPY, KEEP_BITS, SHIFT_RIGHT, PUT = 0x61, 0xBC, 0x54, 0x74, 0xB7
JUMP_NOT, JUMP_IS, JUMP_NOT_REGISTER, EXIT = 0x55, 0x15, 0x5D, 0x95
KINDS, ACCESS = {"b": 1, "c": 2}, {"m": 1, "r": 2, "w": 4}


def ebpf(code: int, to: int = 0, source: int = 0, skip: int = 0, k: int = 0) -> bytes:
    """Return an instruction: what, two registers, how many to skip or where, a number.

    >>> ebpf(EXIT).hex()
    '9500000000000000'
    """
    return struct.pack("=BBhi", code, to | source << 4, skip, k)


# %% Version 2: a program
def exception_code(key: DeviceKey, access: frozenset[str], *, allow: bool) -> bytes:
    """Return the code for one exception; it falls through where it does not apply."""
    kind, *numbers = key
    bits = sum(ACCESS[letter] for letter in access)
    answer = ebpf(PUT, 0, k=int(not allow)) + ebpf(EXIT)
    body = ebpf(COPY, 1, 3) + ebpf(KEEP_BITS, 1, k=bits)
    # denied by default: all that is asked must be in it; allowed: any of it
    body += ebpf(JUMP_IS, 1, skip=2) if allow else ebpf(JUMP_NOT_REGISTER, 1, 3, skip=2)
    body += answer
    tests = [(4, numbers[0]), (5, numbers[1])]
    for register, number in [t for t in reversed(tests) if t[1] != ANY]:
        body = ebpf(JUMP_NOT, register, skip=len(body) // 8, k=number) + body
    return ebpf(JUMP_NOT, 2, skip=len(body) // 8, k=KINDS[kind]) + body


def device_program(devices: DeviceList) -> bytes:
    """Return the program that says what a list says."""
    code = ebpf(LOAD_WORD, 2, 1, 0) + ebpf(COPY, 3, 2)
    code += ebpf(KEEP_BITS, 2, k=0xFFFF) + ebpf(SHIFT_RIGHT, 3, k=16)
    code += ebpf(LOAD_WORD, 4, 1, 4) + ebpf(LOAD_WORD, 5, 1, 8)
    for key, access in devices.others.items():
        code += exception_code(key, access, allow=devices.allow)
    return code + ebpf(PUT, 0, k=int(devices.allow)) + ebpf(EXIT)


# %% Version 2: a program
PROG_LOAD, PROG_ATTACH = 5, 8
TYPE_CGROUP_DEVICE, CGROUP_DEVICE, ALLOW_MULTI = 15, 6, 2


def load_device_program(code: bytes) -> int:
    """Return a descriptor of a program that the kernel has checked; needs CAP_BPF.

    Raises SysError: EINVAL or EACCES for a program that is refused. Source: bpf(2).
    """
    text, licence = ctypes.create_string_buffer(code, len(code)), b"Apache-2.0\0"
    words = ctypes.create_string_buffer(licence)
    where = (ctypes.addressof(text), ctypes.addressof(words))
    head = struct.pack("=IIQQ", TYPE_CGROUP_DEVICE, len(code) // 8, *where)
    attributes = ctypes.create_string_buffer(head, 128)
    return syscall("bpf", PROG_LOAD, ctypes.byref(attributes), 128, show=("PROG_LOAD",))


def attach_device_program(place: str, code: bytes) -> None:
    """Bind a group of version 2 to a program, beside what the groups above have."""
    program = load_device_program(code)
    group = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        head = struct.pack("=IIII", group, program, CGROUP_DEVICE, ALLOW_MULTI)
        attributes = ctypes.create_string_buffer(head, 128)
        show = ("PROG_ATTACH", place)
        syscall("bpf", PROG_ATTACH, ctypes.byref(attributes), 128, show=show)
    finally:
        os.close(group)
        os.close(program)


# %% Both
def restrict_devices(group: Group, rules: Iterable[DeviceRule]) -> None:
    """Bind a container's groups to rules. Raises RuntimeFault where that fails."""
    devices = settled(rules)
    try:
        if group.version == 2:
            attach_device_program(group.place(""), device_program(devices))
            return
        place = group.place("devices")
        for name, line in file_lines(devices) if place else ():
            put(f"{place}/{name}", line)
    except OSError as why:
        raise RuntimeFault(f"cannot restrict devices: {why}") from why


def rules_for(devices: Iterable[str]) -> tuple[DeviceRule, ...]:
    """Return the rules for texts ``HOST:CONTAINER:rwm`` of ``--device``."""
    rules = []
    for text in devices:
        host, _, access = text.split(":")
        found = os.stat(host)
        kind = "b" if found.st_mode & 0o170000 == 0o060000 else "c"
        numbers = os.major(found.st_rdev), os.minor(found.st_rdev)
        rules.append(DeviceRule(True, kind, *numbers, access))
    return (*docker_rules(), *rules)
