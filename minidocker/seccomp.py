# From book/412-seccomp.md. Edit there and tangle, or here and tangle --back.

# %% Seccomp: a vocabulary that is given once
"""Seccomp: profiles of system calls, compiled to BPF by a small assembler.

A profile says what happens to each system call. Numbers that this module does not
know get ENOSYS, so that a program tries the older call; calls of a machine that the
filter is not for kill the process.
"""

from __future__ import annotations

import errno
import os
from _ctypes import addressof
from _struct import iter_unpack, pack
from functools import lru_cache

from minidocker.calls import SysError, room
from minidocker.errors import UnsupportedError
from minidocker.linux import Prctl, prctl
from minidocker.records import Enum, Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% What may happen to a call
KILL_PROCESS, KILL_THREAD, TRAP = 0x8000_0000, 0, 0x3_0000
ERRNO, TRACE, LOG, ALLOW = 0x5_0000, 0x7FF0_0000, 0x7FFC_0000, 0x7FFF_0000
REFUSE = ERRNO | errno.EPERM
UNKNOWN = ERRNO | errno.ENOSYS
ACTIONS = {
    "KILL": KILL_THREAD, "KILL_THREAD": KILL_THREAD, "KILL_PROCESS": KILL_PROCESS,
    "TRAP": TRAP, "ERRNO": ERRNO, "TRACE": TRACE, "LOG": LOG, "ALLOW": ALLOW,
}  # fmt: skip


# %% What may happen to a call
class Op(Enum):
    """How an argument is compared, by libseccomp's names without SCMP_CMP_."""

    NE = "NE"
    LT = "LT"
    LE = "LE"
    EQ = "EQ"
    GE = "GE"
    GT = "GT"
    MASKED_EQ = "MASKED_EQ"


class Compare(Record):
    """A test of argument ``index`` (0 to 5), which is unsigned.

    For MASKED_EQ ``value`` is the mask, and what is left must be ``wanted``.
    """

    index: int
    op: Op
    value: int
    wanted: int = 0


class Rule(Record):
    """What happens to the calls ``names`` when every one of ``args`` holds."""

    names: tuple[str, ...]
    action: int
    args: tuple[Compare, ...] = ()


class Profile(Record):
    """What happens to every call: by the first rule that holds, else the default."""

    default: int
    rules: tuple[Rule, ...]


# %% The names have numbers
X86_64 = """
read write open close stat fstat lstat poll lseek mmap mprotect munmap brk
rt_sigaction rt_sigprocmask rt_sigreturn ioctl pread64 pwrite64 readv writev access
pipe select sched_yield mremap msync mincore madvise shmget shmat shmctl dup dup2
pause nanosleep getitimer alarm setitimer getpid sendfile socket connect accept sendto
recvfrom sendmsg recvmsg shutdown bind listen getsockname getpeername socketpair
setsockopt getsockopt clone fork vfork execve exit wait4 kill uname semget semop
semctl shmdt msgget msgsnd msgrcv msgctl fcntl flock fsync fdatasync truncate
ftruncate getdents getcwd chdir fchdir rename mkdir rmdir creat link unlink symlink
readlink chmod fchmod chown fchown lchown umask gettimeofday getrlimit getrusage
sysinfo times ptrace getuid syslog getgid setuid setgid geteuid getegid setpgid
getppid getpgrp setsid setreuid setregid getgroups setgroups setresuid getresuid
setresgid getresgid getpgid setfsuid setfsgid getsid capget capset rt_sigpending
rt_sigtimedwait rt_sigqueueinfo rt_sigsuspend sigaltstack utime mknod uselib
personality ustat statfs fstatfs sysfs getpriority setpriority sched_setparam
sched_getparam sched_setscheduler sched_getscheduler sched_get_priority_max
sched_get_priority_min sched_rr_get_interval mlock munlock mlockall munlockall vhangup
modify_ldt pivot_root _sysctl prctl arch_prctl adjtimex setrlimit chroot sync acct
settimeofday mount umount2 swapon swapoff reboot sethostname setdomainname iopl ioperm
create_module init_module delete_module get_kernel_syms query_module quotactl
nfsservctl getpmsg putpmsg afs_syscall tuxcall security gettid readahead setxattr
lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
removexattr lremovexattr fremovexattr tkill time futex sched_setaffinity
sched_getaffinity set_thread_area io_setup io_destroy io_getevents io_submit io_cancel
get_thread_area lookup_dcookie epoll_create epoll_ctl_old epoll_wait_old
remap_file_pages getdents64 set_tid_address restart_syscall semtimedop fadvise64
timer_create timer_settime timer_gettime timer_getoverrun timer_delete clock_settime
clock_gettime clock_getres clock_nanosleep exit_group epoll_wait epoll_ctl tgkill
utimes vserver mbind set_mempolicy get_mempolicy mq_open mq_unlink mq_timedsend
mq_timedreceive mq_notify mq_getsetattr kexec_load waitid add_key request_key keyctl
ioprio_set ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages
openat mkdirat mknodat fchownat futimesat newfstatat unlinkat renameat linkat
symlinkat readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list
get_robust_list splice tee sync_file_range vmsplice move_pages utimensat epoll_pwait
signalfd timerfd_create eventfd fallocate timerfd_settime timerfd_gettime accept4
signalfd4 eventfd2 epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev
rt_tgsigqueueinfo perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64
name_to_handle_at open_by_handle_at clock_adjtime syncfs sendmmsg setns getcpu
process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr
renameat2 seccomp getrandom memfd_create kexec_file_load bpf execveat userfaultfd
membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free
statx io_pgetevents rseq
"""


# %% The names have numbers
AARCH64 = """
io_setup io_destroy io_submit io_cancel io_getevents setxattr lsetxattr fsetxattr
getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr removexattr lremovexattr
fremovexattr getcwd lookup_dcookie eventfd2 epoll_create1 epoll_ctl epoll_pwait dup
dup3 fcntl inotify_init1 inotify_add_watch inotify_rm_watch ioctl ioprio_set
ioprio_get flock mknodat mkdirat unlinkat symlinkat linkat renameat umount2 mount
pivot_root nfsservctl statfs fstatfs truncate ftruncate fallocate faccessat chdir
fchdir chroot fchmod fchmodat fchownat fchown openat close vhangup pipe2 quotactl
getdents64 lseek read write readv writev pread64 pwrite64 preadv pwritev sendfile
pselect6 ppoll signalfd4 vmsplice splice tee readlinkat newfstatat fstat sync fsync
fdatasync sync_file_range timerfd_create timerfd_settime timerfd_gettime utimensat
acct capget capset personality exit exit_group waitid set_tid_address unshare futex
set_robust_list get_robust_list nanosleep getitimer setitimer kexec_load init_module
delete_module timer_create timer_gettime timer_getoverrun timer_settime timer_delete
clock_settime clock_gettime clock_getres clock_nanosleep syslog ptrace sched_setparam
sched_setscheduler sched_getscheduler sched_getparam sched_setaffinity
sched_getaffinity sched_yield sched_get_priority_max sched_get_priority_min
sched_rr_get_interval restart_syscall kill tkill tgkill sigaltstack rt_sigsuspend
rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_sigreturn
setpriority getpriority reboot setregid setgid setreuid setuid setresuid getresuid
setresgid getresgid setfsuid setfsgid times setpgid getpgid getsid setsid getgroups
setgroups uname sethostname setdomainname getrlimit setrlimit getrusage umask prctl
getcpu gettimeofday settimeofday adjtimex getpid getppid getuid geteuid getgid getegid
gettid sysinfo mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
msgget msgctl msgrcv msgsnd semget semctl semtimedop semop shmget shmctl shmat shmdt
socket socketpair bind listen accept connect getsockname getpeername sendto recvfrom
setsockopt getsockopt shutdown sendmsg recvmsg readahead brk munmap mremap add_key
request_key keyctl clone execve mmap fadvise64 swapon swapoff mprotect msync mlock
munlock mlockall munlockall mincore madvise remap_file_pages mbind get_mempolicy
set_mempolicy migrate_pages move_pages rt_tgsigqueueinfo perf_event_open accept4
recvmmsg - - - - - - - - - - - - - - - - wait4 prlimit64 fanotify_init fanotify_mark
name_to_handle_at open_by_handle_at clock_adjtime syncfs setns sendmmsg
process_vm_readv process_vm_writev kcmp finit_module sched_setattr sched_getattr
renameat2 seccomp getrandom memfd_create bpf execveat userfaultfd membarrier mlock2
copy_file_range preadv2 pwritev2 pkey_mprotect pkey_alloc pkey_free statx
io_pgetevents rseq kexec_file_load
"""
SINCE_424 = """
pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree move_mount
fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2 pidfd_getfd
faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd
landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret
process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2
map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount
lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat
listxattrat removexattrat open_tree_attr file_getattr file_setattr listns
"""


# %% The names have numbers
I386 = """
restart_syscall exit fork read write open close waitpid creat link unlink execve chdir
time mknod chmod lchown break oldstat lseek getpid mount umount setuid getuid stime
ptrace alarm oldfstat pause utime stty gtty access nice ftime sync kill rename mkdir
rmdir dup pipe times prof brk setgid getgid signal geteuid getegid acct umount2 lock
ioctl fcntl mpx setpgid ulimit oldolduname umask chroot ustat dup2 getppid getpgrp
setsid sigaction sgetmask ssetmask setreuid setregid sigsuspend sigpending sethostname
setrlimit getrlimit getrusage gettimeofday settimeofday getgroups setgroups select
symlink oldlstat readlink uselib swapon reboot readdir mmap munmap truncate ftruncate
fchmod fchown getpriority setpriority profil statfs fstatfs ioperm socketcall syslog
setitimer getitimer stat lstat fstat olduname iopl vhangup idle vm86old wait4 swapoff
sysinfo ipc fsync sigreturn clone setdomainname uname modify_ldt adjtimex mprotect
sigprocmask create_module init_module delete_module get_kernel_syms quotactl getpgid
fchdir bdflush sysfs personality afs_syscall setfsuid setfsgid _llseek getdents
_newselect flock msync readv writev getsid fdatasync _sysctl mlock munlock mlockall
munlockall sched_setparam sched_getparam sched_setscheduler sched_getscheduler
sched_yield sched_get_priority_max sched_get_priority_min sched_rr_get_interval
nanosleep mremap setresuid getresuid vm86 query_module poll nfsservctl setresgid
getresgid prctl rt_sigreturn rt_sigaction rt_sigprocmask rt_sigpending rt_sigtimedwait
rt_sigqueueinfo rt_sigsuspend pread64 pwrite64 chown getcwd capget capset sigaltstack
sendfile getpmsg putpmsg vfork ugetrlimit mmap2 truncate64 ftruncate64 stat64 lstat64
fstat64 lchown32 getuid32 getgid32 geteuid32 getegid32 setreuid32 setregid32
getgroups32 setgroups32 fchown32 setresuid32 getresuid32 setresgid32 getresgid32
chown32 setuid32 setgid32 setfsuid32 setfsgid32 pivot_root mincore madvise getdents64
fcntl64 - - gettid readahead setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr
listxattr llistxattr flistxattr removexattr lremovexattr fremovexattr tkill sendfile64
futex sched_setaffinity sched_getaffinity set_thread_area get_thread_area io_setup
io_destroy io_getevents io_submit io_cancel fadvise64 - exit_group lookup_dcookie
epoll_create epoll_ctl epoll_wait remap_file_pages set_tid_address timer_create
timer_settime timer_gettime timer_getoverrun timer_delete clock_settime clock_gettime
clock_getres clock_nanosleep statfs64 fstatfs64 tgkill utimes fadvise64_64 vserver
mbind get_mempolicy set_mempolicy mq_open mq_unlink mq_timedsend mq_timedreceive
mq_notify mq_getsetattr kexec_load waitid - add_key request_key keyctl ioprio_set
ioprio_get inotify_init inotify_add_watch inotify_rm_watch migrate_pages openat
mkdirat mknodat fchownat futimesat fstatat64 unlinkat renameat linkat symlinkat
readlinkat fchmodat faccessat pselect6 ppoll unshare set_robust_list get_robust_list
splice sync_file_range tee vmsplice move_pages getcpu epoll_pwait utimensat signalfd
timerfd_create eventfd fallocate timerfd_settime timerfd_gettime signalfd4 eventfd2
epoll_create1 dup3 pipe2 inotify_init1 preadv pwritev rt_tgsigqueueinfo
perf_event_open recvmmsg fanotify_init fanotify_mark prlimit64 name_to_handle_at
open_by_handle_at clock_adjtime syncfs sendmmsg setns process_vm_readv
process_vm_writev kcmp finit_module sched_setattr sched_getattr renameat2 seccomp
getrandom memfd_create bpf execveat socket socketpair bind connect listen accept4
getsockopt setsockopt getsockname getpeername sendto sendmsg recvfrom recvmsg shutdown
userfaultfd membarrier mlock2 copy_file_range preadv2 pwritev2 pkey_mprotect
pkey_alloc pkey_free statx arch_prctl io_pgetevents rseq - - - - - - semget semctl
shmget shmctl shmat shmdt msgget msgsnd msgrcv msgctl clock_gettime64 clock_settime64
clock_adjtime64 clock_getres_time64 clock_nanosleep_time64 timer_gettime64
timer_settime64 timerfd_gettime64 timerfd_settime64 utimensat_time64 pselect6_time64
ppoll_time64 - io_pgetevents_time64 recvmmsg_time64 mq_timedsend_time64
mq_timedreceive_time64 semtimedop_time64 rt_sigtimedwait_time64 futex_time64
sched_rr_get_interval_time64
"""


# %% The names have numbers
class Machine(Record):
    """A kind of processor: Go's name, what the kernel calls it, its old calls.

    ``word`` is libseccomp's name; ``others`` are machines that it can also be.
    """

    name: str
    audit: int
    old: str
    word: str
    others: tuple[Machine, ...] = ()

    @lru_cache(4)  # noqa: B019  there are three machines
    def numbers(self) -> dict[str, int]:
        """Return the number of every system call that is known, by name; to be read."""
        found = {name: n for n, name in enumerate(self.old.split())}
        found.pop("-", None)
        found.update((name, n) for n, name in enumerate(SINCE_424.split(), 424))
        return found


X86 = Machine("386", 0x4000_0003, I386, "SCMP_ARCH_X86")
MACHINES = {
    "x86_64": Machine("amd64", 0xC000_003E, X86_64, "SCMP_ARCH_X86_64", (X86,)),
    "aarch64": Machine("arm64", 0xC000_00B7, AARCH64, "SCMP_ARCH_AARCH64"),
}


def this_machine() -> Machine:
    """Return what we run on. Raises UnsupportedError where no table is known."""
    found = MACHINES.get(os.uname().machine)
    if found is None:
        hint = "--security-opt seccomp=unconfined runs without a filter"
        what = f"no table of system calls for {os.uname().machine}"
        raise UnsupportedError(what, hint=hint)
    return found


# %% A machine with one register
LOAD, AND, RETURN, JUMP = 0x20, 0x54, 0x06, 0x05  # A = data[k]; A &= k; return k
IF_EQUAL, IF_GREATER, IF_AT_LEAST = 0x15, 0x25, 0x35  # A == k, A > k, A >= k
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
FAR = 250  # a distance is one byte


# %% A machine with one register
class Assembler:
    """A program that grows towards its beginning; ``code`` is last-first."""

    def __init__(self) -> None:
        self.code: list[bytes] = []
        self.returns: dict[int, int] = {}

    def put(self, what: int, k: int, then: int = 0, otherwise: int = 0) -> int:
        """Put an instruction before all others; return its label."""
        self.code.append(pack("=HBBI", what, then, otherwise, k))
        return len(self.code) - 1

    def answer(self, action: int) -> int:
        """Return the label of a near ``return action``."""
        label = self.returns.get(action)
        if label is None or len(self.code) - label > FAR - 50:
            label = self.returns[action] = self.put(RETURN, action)
        return label

    def near(self, label: int) -> int:
        """Return a label that a byte reaches: this one, or a jump to it."""
        distance = len(self.code) - label - 1
        return label if distance < FAR else self.put(JUMP, distance)

    def branch(self, what: int, k: int, then: int, otherwise: int) -> int:
        """Put a test: where to go on if it holds, and if it does not."""
        then, otherwise = self.near(then), self.near(otherwise)
        here = len(self.code)
        return self.put(what, k, here - then - 1, here - otherwise - 1)

    def program(self) -> bytes:
        """Return the instructions, first-first, as the kernel reads them."""
        return b"".join(reversed(self.code))


# %% Comparing an argument
INTS = {
    "arch_prctl": (0,), "bpf": (0,), "clone": (0,), "fcntl": (0, 1), "ioctl": (0, 1),
    "keyctl": (0,), "kill": (0, 1), "personality": (0,), "prctl": (0,),
    "seccomp": (0, 1), "setns": (0, 1), "socket": (0, 1, 2), "socketpair": (0, 1, 2),
    "unshare": (0,),
}  # fmt: skip
SIMPLE = {  # operation: the jump, and whether its answer is turned round
    Op.EQ: (IF_EQUAL, False), Op.NE: (IF_EQUAL, True),
    Op.GT: (IF_GREATER, False), Op.LE: (IF_GREATER, True),
    Op.GE: (IF_AT_LEAST, False), Op.LT: (IF_AT_LEAST, True),
}  # fmt: skip


def word_test(asm: Assembler, test: Compare, shift: int, yes: int, no: int) -> int:
    """Put the test of the word in A: the low one, or (``shift`` 32) the high one."""
    value, wanted = (test.value >> shift) & 0xFFFFFFFF, test.wanted >> shift
    if test.op is Op.MASKED_EQ:
        asm.branch(IF_EQUAL, wanted & 0xFFFFFFFF, yes, no)
        return asm.put(AND, value)
    jump, turned = SIMPLE[test.op]
    return asm.branch(jump, value, *((no, yes) if turned else (yes, no)))


# %% Comparing an argument
def put_test(asm: Assembler, test: Compare, *, whole: bool, yes: int, no: int) -> int:
    """Put a test of an argument: of both words if ``whole``, else of the low one."""
    offset = ARGUMENTS + 8 * test.index
    word_test(asm, test, 0, yes, no)
    low = asm.put(LOAD, offset)
    if not whole:
        return low
    if test.op is Op.MASKED_EQ:
        word_test(asm, test, 32, low, no)
    else:
        unequal = yes if test.op is Op.NE else no
        high = test.value >> 32
        same = asm.branch(IF_EQUAL, high, low, unequal)
        if test.op not in (Op.EQ, Op.NE):
            more, less = (yes, no) if test.op in (Op.GT, Op.GE) else (no, yes)
            same = asm.branch(IF_EQUAL, high, low, less)
            asm.branch(IF_GREATER, high, more, same)
    return asm.put(LOAD, offset + 4)


def put_rules(asm: Assembler, name: str, rules: list[Rule], default: int) -> int:
    """Put the rules of a call that depend on arguments; return their label."""
    label = asm.answer(default)
    for rule in reversed(rules):
        otherwise, label = label, asm.answer(rule.action)
        for test in reversed(rule.args):
            whole = test.index not in INTS.get(name, ())
            label = put_test(asm, test, whole=whole, yes=label, no=otherwise)
    return label


# %% From the table to a tree
def sorted_rules(
    profile: Profile, numbers: dict[str, int]
) -> dict[int, int | tuple[str, list[Rule]]]:
    """Return each call's answer by number: an action, or its name and its rules.

    A rule without arguments wins over those with; unknown names are left out.
    """
    plain: dict[int, int] = {}
    asked: dict[int, tuple[str, list[Rule]]] = {}
    for rule in profile.rules:
        known = {numbers[name]: name for name in rule.names if name in numbers}
        if not rule.args:
            plain = dict.fromkeys(known, rule.action) | plain  # the first one wins
            continue
        for number, name in known.items():
            asked.setdefault(number, (name, []))[1].append(rule)
    return {**asked, **plain}


def stretches(profile: Profile, numbers: dict[str, int]) -> list[tuple[int, Any]]:
    """Return (first number, answer) for each stretch of numbers that share one."""
    answers: dict[int, Any] = dict.fromkeys(numbers.values(), profile.default)
    answers.update(sorted_rules(profile, numbers))
    errno_default = profile.default & 0xFFFF0000 == ERRNO
    unknown = UNKNOWN if errno_default else profile.default
    found: list[tuple[int, Any]] = []
    last: Any = None
    for number in range(max(answers) + 2):
        answer = answers.get(number, unknown)
        if answer != last:
            found.append((number, answer))
            last = answer
    return found


# %% From the table to a tree
def put_tree(asm: Assembler, cuts: list[tuple[int, Any]], default: int) -> int:
    """Put the search among stretches, whose number is in A; return its label."""
    if len(cuts) == 1:
        answer = cuts[0][1]
        if isinstance(answer, int):
            return asm.answer(answer)
        name, rules = answer
        return put_rules(asm, name, rules, default)
    middle = len(cuts) // 2
    upper = put_tree(asm, cuts[middle:], default)
    lower = put_tree(asm, cuts[:middle], default)
    return asm.branch(IF_AT_LEAST, cuts[middle][0], upper, lower)


def compile_profiles(*pairs: tuple[Profile, Machine]) -> bytes:
    """Return one program for profiles and their machines; others are killed.

    The first machine is asked for first.
    """
    asm, starts = Assembler(), []
    for profile, machine in reversed(pairs):
        put_tree(asm, stretches(profile, machine.numbers()), profile.default)
        starts.append((machine.audit, asm.put(LOAD, NUMBER)))
    foreign = asm.answer(KILL_PROCESS)
    for audit, start in starts:
        foreign = asm.branch(IF_EQUAL, audit, start, foreign)
    asm.put(LOAD, MACHINE)
    return asm.program()


def compile_profile(profile: Profile, machine: Machine) -> bytes:
    """Return a profile as a program for one machine."""
    return compile_profiles((profile, machine))


# %% From the table to a tree
class Instruction(Record):
    """An instruction of BPF: what, the two distances, the constant."""

    what: int
    then: int
    otherwise: int
    k: int


def instructions(program: bytes) -> list[Instruction]:
    """Return the instructions of a program, in order."""
    return [Instruction(*one) for one in iter_unpack("=HBBI", program)]


# %% Loading it
FILTER_MODE = 2


def load_filter(program: bytes) -> None:
    """Bind this process and its children to a program, for ever.

    Needs CAP_SYS_ADMIN in the user namespace, or no_new_privs. Raises
    UnsupportedError where the kernel has no seccomp, SysError: EINVAL for a program
    that does not end, EACCES without the right. Source: seccomp(2).
    """
    code = room(program)
    header = room(pack("HP", len(program) // 8, addressof(code)))
    try:
        prctl(Prctl.SET_SECCOMP, FILTER_MODE, addressof(header))
    except SysError as why:
        if why.errno != errno.EINVAL or os.path.exists("/proc/sys/kernel/seccomp"):
            raise
        hint = "--security-opt seccomp=unconfined runs without a filter"
        raise UnsupportedError(f"no seccomp in this kernel: {why}", hint=hint) from why
