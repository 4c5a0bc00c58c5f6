"""Runs one after another leave nothing behind; `bench containers` does a thousand."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import traces

from cli.store import Store


pytestmark = pytest.mark.root
RUNS = 12
INSIDE = """
import os, sys
from minidocker.cli import main
words = sys.argv[1:]
def held():
    return sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                  if os.path.lexists(f"/proc/self/fd/{n}"))
assert main(words) == 0
before = held()
for _ in range(5):
    assert main(words) == 0
assert held() == before, (before, held())
"""


def processes(store: Store) -> list[bytes]:
    """The command lines of what works for a store."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue  # it has ended
        if os.fsencode(store.root) in line:
            found.append(line)
    return found


def rested(look: Callable[[], object], before: object) -> object:
    """What is there now; what is about to end is given five seconds."""
    end = time.monotonic() + 5
    while (now := look()) != before and time.monotonic() < end:
        time.sleep(0.02)
    return now


def directories(store: Store) -> list[str]:
    return sorted(place for place, _, _ in os.walk(store.root))


@pytest.mark.parametrize("more", [(), ("--memory", "64m"), ("--read-only", "--init")])
def test_runs_leave_no_trace(store: Store, more: tuple[str, ...]) -> None:
    words = ["run", "--rm", *more, "small:v1", "true"]
    links = traces()["links"]
    store.says(*words)

    def look() -> object:
        return traces(), directories(store), processes(store)

    assert rested(lambda: processes(store), []) == []
    assert rested(lambda: traces()["links"], links) == links
    before = look()
    for _ in range(RUNS):
        store.says(*words)
    assert rested(look, before) == before


def test_runs_within_one_process_leave_no_descriptor(store: Store) -> None:
    words = store.argv("run", "--rm", "small:v1", "true")[3:]
    subprocess.run([sys.executable, "-c", INSIDE, *words], check=True, timeout=60)


def said(path: Path) -> str:
    """What a file of /proc says; nothing when its process has just ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(text) for path in paths for text in said(path).split()]


def who_started(pid: int, uid: int) -> int:
    """The child of a process below which somebody is user ``uid`` now."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for first in children(pid):
            below = [first]
            for one in below:
                below += children(one)
                if f"\nUid:\t{uid}\t" in said(Path(f"/proc/{one}/status")):
                    return first
        time.sleep(0.02)
    raise AssertionError("nobody became that user")


@pytest.mark.parametrize("verb", ["run", "exec"])
def test_who_is_killed_at_the_change_of_user_takes_the_program_along(
    store: Store, verb: str
) -> None:
    """The kernel forgets at setresuid that the process is to die with its parent."""
    late = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=setresuid"]
    late += ["-e", "inject=setresuid:delay_exit=1500000"]
    words = ["run", "--name", "box", "-u", "www", "small:v1", "sleep", "50"]
    if verb == "exec":
        store.says("run", "-d", "--name", "box", "small:v1", "sleep", "50")
        words = ["exec", "-u", "www", "box", "sleep", "50"]
    with subprocess.Popen([*late, *store.argv(*words)]) as strace:
        os.kill(who_started(strace.pid, 33), 9)
        strace.wait(10)  # it ends with the last process that it traces
    store.says("rm", "-f", "box")
