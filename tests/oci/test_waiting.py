"""A created container is stopped, frozen and started: what runc does, and what we do."""

import json
import time
from collections.abc import Callable

import pytest

from oci.conftest import Bundle, Runtime


pytestmark = pytest.mark.root

FAILS = {"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]}]}


def settled(runtime: Runtime, id: str, status: str) -> str:
    """The state of a container, when it is ``status`` or a while has gone."""
    end = time.monotonic() + 10
    while (found := runtime.state(id)["status"]) != status and time.monotonic() < end:
        time.sleep(0.02)
    return str(found)


@pytest.mark.parametrize("signal", ["TERM", "HUP", "INT"])
def test_a_signal_ends_one_that_waits(
    runtimes: Callable[[str], Runtime], bundle: Bundle, signal: str
) -> None:
    bundle.write("sleep", "60")
    for name in ("runc", "minidocker"):
        runtime, id = runtimes(name), f"{bundle.path.parent.name}-{name}"
        runtime.says("create", "--bundle", str(bundle.path), id)
        runtime.says("kill", id, "USR1")
        assert runtime.state(id)["status"] == "created"
        runtime.says("kill", id, signal)
        assert settled(runtime, id, "stopped") == "stopped"
        assert runtime("start", id).returncode == 1


def test_the_program_has_every_signal_as_usual(ours: Runtime, bundle: Bundle) -> None:
    plain = "grep SigCgt /proc/self/status"
    bundle.write("busybox", *plain.split())
    assert int(ours.says("run", "-b", str(bundle.path), "plain").split()[1], 16) == 0


def test_one_that_waits_is_frozen_and_thawed(
    runtimes: Callable[[str], Runtime], bundle: Bundle
) -> None:
    bundle.write("sleep", "60")
    for name in ("runc", "minidocker"):
        runtime, id = runtimes(name), f"{bundle.path.parent.name}-{name}"
        runtime.says("create", "--bundle", str(bundle.path), id)
        runtime.says("pause", id)
        assert runtime.state(id)["status"] == "paused"
        done = runtime("start", id)
        assert (done.returncode, "in the paused state" in done.stderr) == (1, True)
        assert runtime("delete", id).returncode == 1
        runtime.says("resume", id)
        assert runtime.state(id)["status"] == "created"
        runtime.says("start", id)
        assert runtime.state(id)["status"] == "running"


@pytest.mark.parametrize("detached", [True, False])
def test_a_run_whose_hook_fails_leaves_nothing(
    runtimes: Callable[[str], Runtime], bundle: Bundle, detached: bool
) -> None:
    bundle.write("sleep", "60", hooks=FAILS)
    for name in ("runc", "minidocker"):
        runtime, more = runtimes(name), ("--detach",) * detached
        done = runtime("run", *more, "--bundle", str(bundle.path), "hooked")
        assert done.returncode == 1
        assert "exit status 3" in done.stderr, done.stderr
        assert json.loads(runtime.says("list", "--format", "json")) in (None, [])


def test_a_start_whose_hook_fails_stops_the_container(
    ours: Runtime, bundle: Bundle
) -> None:
    # runc 1.1 runs this hook at `create`, too early; the specification: "stop"
    bundle.write("sleep", "60", hooks=FAILS)
    ours.says("create", "--bundle", str(bundle.path), "hooked")
    assert ours("start", "hooked").returncode == 1
    assert settled(ours, "hooked", "stopped") == "stopped"
    ours.says("delete", "hooked")
