"""The compiler from profiles to BPF: every number, every kind of comparison.

A machine of ten lines runs the programs, as the kernel would.
"""

import doctest
import errno
import itertools
import struct

import pytest

from minidocker import seccomp
from minidocker.seccomp import (
    ALLOW,
    ERRNO,
    INTS,
    KILL_PROCESS,
    MACHINES,
    UNKNOWN,
    Compare,
    Op,
    Profile,
    Rule,
    compile_profile,
    instructions,
)


X86 = MACHINES["x86_64"]
NUMBERS = X86.numbers()
HUGE = (1 << 64) - 1


def answer(
    program: bytes, number: int, args: tuple[int, ...] = (), audit: int = X86.audit
) -> int:
    """Run a program on one call; what it returns. Falls over what the kernel would refuse."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *(*args, *[0] * 6)[:6])
    code, place, a = list(struct.iter_unpack("=HBBI", program)), 0, 0
    while True:
        what, then, otherwise, k = code[place]
        place += 1
        if what == 0x20:
            assert k % 4 == 0
            a = struct.unpack_from("=I", data, k)[0]
        elif what == 0x54:
            a &= k
        elif what == 0x05:
            place += k
        elif what == 0x06:
            return k
        else:
            tests = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: a & k != 0}
            holds = tests[what]  # the last one only libseccomp writes
            place += then if holds else otherwise


def test_doctests_hold():
    assert doctest.testmod(seccomp).failed == 0


def test_the_tables_have_the_kernel_s_numbers():
    arm = MACHINES["aarch64"].numbers()
    known = {
        "read": (0, 63),
        "mount": (165, 40),
        "clone": (56, 220),
        "execve": (59, 221),
    }
    known |= {
        "seccomp": (317, 277),
        "rseq": (334, 293),
        "statx": (332, 291),
        "openat": (257, 56),
    }
    known |= {"clone3": (435, 435), "openat2": (437, 437), "listns": (470, 470)}
    for name, numbers in known.items():
        assert (NUMBERS[name], arm[name]) == numbers
    assert len(set(NUMBERS.values())) == len(NUMBERS)
    assert "open" not in arm


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("op", list(Op))
def test_an_argument_is_compared_as_its_kind(op: Op, whole: bool):
    name = "write" if whole else "socket"
    assert (0 in INTS.get(name, ())) is not whole
    low, high = (0, 1, 39, 40, 41, 0xFFFFFFFF), (0, 1, 2, 0xFFFFFFFF)
    words = [h << 32 | w for h in high for w in low]
    mask = HUGE if whole else 0xFFFFFFFF
    for value, wanted in itertools.product((40, 1 << 32 | 40, HUGE), (0, 40, 1 << 32)):
        test = Compare(0, op, value, wanted)
        rule = Rule((name,), ALLOW, (test,))
        program = compile_profile(Profile(KILL_PROCESS, (rule,)), X86)
        for given in words:
            a, b, c = given & mask, value & mask, wanted & mask
            holds = {
                Op.NE: a != b, Op.LT: a < b, Op.LE: a <= b, Op.EQ: a == b,
                Op.GE: a >= b, Op.GT: a > b, Op.MASKED_EQ: a & b == c,
            }[op]  # fmt: skip
            found = answer(program, NUMBERS[name], (given,))
            assert found == (ALLOW if holds else KILL_PROCESS), (value, wanted, given)


def test_every_argument_can_be_looked_at():
    for index in range(6):
        test = Compare(index, Op.EQ, 7 << 32 | 9)
        program = compile_profile(
            Profile(ALLOW, (Rule(("mmap",), ERRNO, (test,)),)), X86
        )
        args = [0] * 6
        assert answer(program, NUMBERS["mmap"], tuple(args)) == ALLOW
        args[index] = 7 << 32 | 9
        assert answer(program, NUMBERS["mmap"], tuple(args)) == ERRNO


def test_the_tests_of_a_rule_are_joined_by_and_the_rules_by_or():
    first = Rule(("mmap",), ALLOW, (Compare(0, Op.EQ, 1), Compare(1, Op.EQ, 2)))
    second = Rule(("mmap",), ERRNO | 5, (Compare(2, Op.GT, 3),))
    program = compile_profile(Profile(ERRNO | 1, (first, second)), X86)
    cases = {(1, 2): ALLOW, (1, 3): ERRNO | 1, (1, 2, 9): ALLOW, (0, 2, 4): ERRNO | 5}
    for args, action in cases.items():
        assert answer(program, NUMBERS["mmap"], args) == action


@pytest.mark.parametrize("turned", [False, True])
def test_a_rule_without_arguments_wins(turned: bool):
    rules = (Rule(("mmap",), ERRNO, (Compare(0, Op.EQ, 0),)), Rule(("mmap",), ALLOW))
    program = compile_profile(
        Profile(KILL_PROCESS, rules[::-1] if turned else rules), X86
    )
    assert answer(program, NUMBERS["mmap"]) == ALLOW


def test_numbers_that_nobody_has_are_not_there():
    program = compile_profile(Profile(ERRNO | 1, (Rule(("read",), ALLOW),)), X86)
    known = set(NUMBERS.values())
    for number in [*range(600), 0x4000_0000, 0x4000_0001, 0xFFFF_FFFF]:
        expected = ERRNO | 1 if number in known else UNKNOWN
        assert answer(program, number) == (ALLOW if number == 0 else expected)


def test_a_profile_that_allows_all_allows_tomorrow_s_calls():
    program = compile_profile(Profile(ALLOW, (Rule(("uname",), ERRNO),)), X86)
    assert answer(program, 9999) == ALLOW
    assert answer(program, NUMBERS["uname"]) == ERRNO


def test_a_foreign_machine_is_killed():
    program = compile_profile(Profile(ALLOW, ()), X86)
    for audit in (0x4000_0003, 0xC000_00B7, 0):
        assert answer(program, 0, audit=audit) == KILL_PROCESS


def test_long_programs_jump_far():
    """Many rules on one call: distances that no byte holds."""
    tests = [Compare(n % 6, Op.EQ, n << 32 | n) for n in range(1, 200)]
    rules = [Rule(("mmap",), ERRNO | n, (test,)) for n, test in enumerate(tests, 1)]
    rules.append(Rule(("munmap",), ERRNO | 7))
    program = compile_profile(Profile(ALLOW, tuple(rules)), X86)
    assert len(program) // 8 < 4096
    for n in (1, 2, 77, 198, 199):
        args = [0] * 6
        args[n % 6] = n << 32 | n
        assert answer(program, NUMBERS["mmap"], tuple(args)) == ERRNO | n
    assert answer(program, NUMBERS["mmap"]) == ALLOW
    assert answer(program, NUMBERS["munmap"]) == ERRNO | 7
    assert answer(program, NUMBERS["read"]) == ALLOW


def test_a_program_is_read_back():
    program = compile_profile(
        Profile(ERRNO | errno.EPERM, (Rule(("read",), ALLOW),)), X86
    )
    found = instructions(program)
    assert len(found) * 8 == len(program)
    assert (found[0].what, found[0].k) == (0x20, 4)
    assert (found[1].what, found[1].k) == (0x15, X86.audit)
