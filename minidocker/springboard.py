# From book/118-springboard.md. Edit there and tangle, or here and tangle --back.

# %% Springboard: the last program before the program
"""Write a small ELF program; one that executes another; seal it in memory."""

from __future__ import annotations

import os
from _struct import pack


# %% Two headers
BASE, HEADERS = 0x400000, 64 + 56  # bytes of the file header and one program header
MACHINES = {"x86_64": 62, "aarch64": 183}


def elf_file(machine: str, code: bytes) -> bytes:
    """Return a static program: the machine code, mapped whole, entered at its start."""
    size = HEADERS + len(code)
    magic = b"\x7fELF" + bytes([2, 1, 1])  # 64 bits, little-endian, version 1
    number = MACHINES[machine]
    shape = (BASE + HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)  # entry, where and how many
    header = pack("=16sHHIQQQIHHHHHH", magic, 2, number, 1, *shape)
    whole = (1, 5, 0, BASE, BASE, size, size, 0x1000)  # PT_LOAD, read and execute
    return header + pack("=IIQQQQQQ", *whole) + code


# %% Two headers
def machine_code(text: str, *, words: bool) -> bytes:
    """Return the bytes of a listing; ``words`` are numbers, lowest byte first.

    >>> machine_code("; two\n0f05", words=False), machine_code("d4000001", words=True)
    (b'\x0f\x05', b'\x01\x00\x00\xd4')
    """
    lines = (line for line in text.splitlines() if not line.startswith(";"))
    pieces = [bytes.fromhex(word) for line in lines for word in line.split()]
    return b"".join(piece[::-1] if words else piece for piece in pieces)


# %% The code
COMPLAINT = b"exec: it, or the interpreter that it names, cannot be executed\n"

SPRINGBOARD_X86_64 = f"""
; execve(argv[0], argv + 1, envp)
488b7c2408 488d742410 488b0424 488d54c410 6a3b 58 0f05
; back here: keep the error
50
; write(2, the complaint, its length)
6a01 58 6a02 5f 488d3517000000 6a{len(COMPLAINT):02x} 5a 0f05
; edi = 127 for ENOENT, else 126
58 83f8fe 6a7f 5f 7402 ffcf
; exit_group(edi)
b8e7000000 0f05
"""
SPRINGBOARD_AARCH64 = f"""
; execve(argv[0], argv + 1, envp)
f94007e0 910043e1 f94003e3 8b030c22 d2801ba8 d4000001
; back here: keep the error
aa0003f3
; write(2, the complaint, its length)
d2800040 10000141 {0xD2800002 | len(COMPLAINT) << 5:08x} d2800808 d4000001
; x0 = 127 for ENOENT, else 126
b1000a7f d2800fe0 54000040 d2800fc0
; exit_group(x0)
d2800bc8 d4000001
"""


# %% The code
def springboard(machine: str) -> bytes:
    """Return the program that executes another, for ``x86_64`` or ``aarch64``."""
    arm = machine == "aarch64"
    listing = SPRINGBOARD_AARCH64 if arm else SPRINGBOARD_X86_64
    return elf_file(machine, machine_code(listing, words=arm) + COMPLAINT)


def sealed(name: str, program: bytes) -> int:
    """Return a descriptor of a program in memory that nobody can write, ever again.

    It has no name in any file system. The caller closes it; it closes on exec.
    """
    import fcntl

    handle = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(handle, program)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals | fcntl.F_SEAL_SEAL)
    return handle
