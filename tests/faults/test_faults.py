"""Every call that changes a file system, of every command: killed at it, failed, full.

All of them are some ten thousand runs; `make faults` does them, in two hours on two cores.
Otherwise `rm` is done whole, and of the others every STEP-th call, another one each day.
"""

import errno
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.replay import Moment, recorded, wrongs
from faults.scenes import BUSYBOX, SCENES, Stage, import_all
from faults.stress import stress
from faults.tracer import (
    CHANGING,
    OPENING,
    Decide,
    fail_at,
    full_from,
    go_on,
    kill_at,
    traced,
)
from minidocker import durable
from minidocker.engine import Engine


pytestmark = pytest.mark.root

ALL = os.environ.get("MINIDOCKER_FAULTS") == "all"
STEP, WHOLE = 37, ("rm",)
TODAY = int(time.time() // 86_400)
MODES: dict[str, Callable[[int], Decide]] = {
    "killed": kill_at,
    "EIO": lambda number: fail_at(number, errno.EIO),
    "ENOSPC": full_from,
}
MADE = (
    "import", "build", "commit", "tag", "load", "run", "run --rm", "run -d", "rm", "create",
    "rename", "update", "network create", "network rm", "volume create", "volume rm",
    "network connect", "pull",
)  # fmt: skip


@pytest.fixture(scope="module", params=["overlay2"] + ["vfs"] * ALL)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A store in memory; every chapter is loaded, for children load none."""
    import_all()
    shm = "/dev/shm"
    place = tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None)
    made = Stage(Path(place), request.param)
    yield made
    made.end()


def chosen(count: int, *, whole: bool) -> list[int]:
    """Return which of ``count`` calls are disturbed, counted from 1."""
    every = 1 if ALL or whole else STEP
    return list(range(1 + TODAY % every, count + 1, every))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCENES)
def test_a_command_that_is_disturbed_at_any_call_leaves_a_whole_store(
    stage: Stage, name: str, mode: str
) -> None:
    scene, wrong, said = SCENES[name], [], str(stage.place / "out")
    stage.begin()
    count = len(traced(stage.command(scene.words), go_on, said).calls)
    assert count > 5
    for number in chosen(count, whole=name in WHOLE):
        stage.begin()
        outcome = traced(stage.command(scene.words), MODES[mode](number), said)
        broken = stage.broken(scene, outcome.status, outcome.said)
        call = outcome.calls[number - 1] if number <= len(outcome.calls) else "the end"
        wrong += [f"{mode} at {number}, {call}: {one}" for one in broken]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", MADE)
def test_a_power_cut_at_any_call_leaves_a_whole_store(stage: Stage, name: str) -> None:
    moments = recorded(stage, SCENES[name])
    wrong = list(wrongs(stage, SCENES[name], moments, after_syncs(moments)))
    assert not wrong, "\n".join(wrong)


def after_syncs(moments: list[Moment]) -> set[int]:
    """Return the moments to cut at: each, or those about a sync or a rename."""
    if ALL:
        return set(range(len(moments)))
    near = {n for n, one in enumerate(moments) if one.synced or "rename" in one.call}
    near |= {n + 1 for n in near if n + 1 < len(moments)}
    step = 1 + len(near) // 12  # another third of many each day
    return set(sorted(near)[TODAY % step :: step]) | {len(moments) - 1}


# the harness itself can fail


def test_a_command_that_nobody_sweeps_after_is_found_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "tidy", lambda self: None)
    stage.begin()
    said = str(stage.place / "out")
    scene = SCENES["import"]
    outcome = traced(stage.command(scene.words), kill_at(30), said)
    broken = stage.broken(scene, outcome.status, outcome.said)
    assert any("check:" in one for one in broken)
    assert any("left:" in one for one in broken)


def test_a_batch_that_does_not_sync_is_found_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "sync_file_system", lambda path: None)
    scene = SCENES["import"]
    moments = recorded(stage, scene)
    found = list(wrongs(stage, scene, moments, {len(moments) - 1}))
    assert any("check:" in one for one in found), found


@pytest.mark.parametrize(
    "name", ["network create", "volume create", "rename", "update"]
)
def test_a_record_that_is_not_synced_is_found_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(durable, "sync_path", lambda path: None)
    scene = SCENES[name]
    moments = recorded(stage, scene)
    moments[-1].synced = True  # so that all must be there which was promised
    found = list(wrongs(stage, scene, moments, {len(moments) - 1}))
    assert found, name


def test_a_layer_after_its_image_is_found_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = durable.Batch.publish

    def backwards(self: durable.Batch) -> None:
        self.staged = dict(reversed(self.staged.items()))
        publish(self)

    monkeypatch.setattr(durable.Batch, "publish", backwards)
    scene, said = SCENES["import"], str(stage.place / "out")
    stage.begin()
    calls = traced(stage.command(scene.words), go_on, said).calls
    renames = [n for n, call in enumerate(calls, 1) if "rename" in call]
    stage.begin()
    outcome = traced(stage.command(scene.words), kill_at(renames[1]), said)
    broken = stage.broken(scene, outcome.status, outcome.said)
    assert any("damaged:" in one for one in broken), broken


# no call escapes

HARMLESS = """
access arch_prctl brk capget capset chdir chroot clone clone3 close close_range dup dup2 dup3
epoll_create1 epoll_ctl epoll_wait execve exit exit_group faccessat2 fadvise64 fchdir fcntl
flock fork fsconfig fsopen fstat fstatfs futex getcwd getdents64 getegid geteuid getgid
getgroups getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getsid
getsockname getsockopt gettid getuid getxattr ioctl kill keyctl lgetxattr listxattr llistxattr
flistxattr fgetxattr lseek lstat madvise mmap mprotect mremap munmap newfstatat pidfd_open
pidfd_send_signal pipe pipe2 poll ppoll prctl pread64 prlimit64 pselect6 read readlink
readlinkat readv recvfrom recvmsg rseq rt_sigaction rt_sigprocmask rt_sigreturn
sched_getaffinity seccomp select sendmsg sendto set_robust_list set_tid_address setgid
setgroups sethostname setns setpgid setresgid setresuid setrlimit setsid setsockopt setuid
shutdown sigaltstack socket socketpair stat statfs statx sysinfo tgkill time umask uname unshare
vfork wait4 waitid listen accept accept4 connect clock_nanosleep getitimer setitimer alarm times membarrier
"""


def test_every_call_that_commands_make_is_asked_about_or_harmless(
    tmp_path: Path, stage: Stage
) -> None:
    stage.begin()
    seen: set[str] = set()
    head = [sys.executable, "-m", "minidocker", "--root", str(stage.store)]
    for name in ("build", "run --rm", "commit", "rmi", "load"):
        log = tmp_path / "log"
        words = [word.format(**stage.files) for word in SCENES[name].words]
        subprocess.run(
            ["strace", "-f", "-qq", "-o", str(log), *head, *words],
            check=True,
            capture_output=True,
        )
        lines = log.read_text(errors="replace").splitlines()
        found = (re.match(r"\d+ +(?:<\.\.\. )?(\w+)", line) for line in lines)
        seen |= {one[1] for one in found if one}
    assert seen <= {*HARMLESS.split(), *CHANGING, *OPENING}
    assert {"rename", "mount", "syncfs", "openat2", "move_mount"} <= seen
    assert os.path.exists(BUSYBOX)


# many at once


def test_eight_processes_at_random_get_no_error_that_nobody_would_understand(
    stage: Stage,
) -> None:
    seconds = 60 if ALL else 6
    place = Path(tempfile.mkdtemp(dir=stage.place))
    done, wrong = stress(place, seconds, seed=TODAY)
    assert not wrong, "\n".join([done, *wrong])
