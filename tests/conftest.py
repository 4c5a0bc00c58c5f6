"""What every test shares: nothing may be left mounted, linked or running."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings


# No test asks the world: names without a registry are looked for where nobody listens.
os.environ["MINIDOCKER_HUB"] = "127.0.0.1:1"


# A machine that is busy is slow, and that is no failure.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of the workers that share the tests mounts and links of its own."""
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        from minidocker.linux import CloneFlags, unshare
        from minidocker.namespaces import keep_mounts_private, raise_loopback

        unshare(CloneFlags.NEWNS | CloneFlags.NEWNET)
        keep_mounts_private()
        raise_loopback()


def empty_groups() -> list[str]:
    """Control groups that nobody is in: what a container left, not one that runs.

    Other test runs on this machine share the tree.
    """
    found = []
    for place, below, _ in os.walk("/sys/fs/cgroup"):
        if "/minidocker/" in place and not below:
            try:
                procs = Path(place, "cgroup.procs").read_text()
            except OSError:
                continue
            if not procs.strip():
                found.append(place)
    return found


def own_loops() -> list[str]:
    """Loop devices with a file of this worker: others of the run have theirs."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):  # it has just gone
            if worker in backing.read_text():
                found.append(backing.parts[3])
    return found


def traces() -> dict[str, list[str]]:
    """What a test must leave as it found it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "mounts": sorted(line.split(" ", 2)[2] for line in mounts),
        "cgroups": sorted(empty_groups()),
        "loop devices": sorted(own_loops()),
        "links": sorted(name for _, name in socket.if_nameindex()),
    }


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = traces()
    yield
    until = time.monotonic() + 5  # the kernel takes unused devices down in its own time
    while (now := new_traces(before)) != before and time.monotonic() < until:
        time.sleep(0.02)
    assert now == before


def new_traces(before: dict[str, list[str]]) -> dict[str, list[str]]:
    """What there is now; groups and links that were there before may have gone."""
    now = traces()
    for kind in ("cgroups", "links"):
        now[kind] = sorted({*before[kind], *now[kind]})
    return now


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their length: an archive has the time of the day in it."""
    long = isinstance(val, bytes) and len(val) > 16
    return f"{argname}-of-{len(val)}" if long else None


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave the tests marked ``root`` to the run as root; `make test` does both."""
    if os.geteuid() == 0:
        return
    ours = [item for item in items if not item.get_closest_marker("root")]
    if len(ours) != len(items):
        config.hook.pytest_deselected(items=[i for i in items if i not in ours])
        items[:] = ours


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything must run (CI), a skipped test is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter
        and os.environ.get("MINIDOCKER_NO_SKIP")
        and reporter.stats.get("skipped")
    ):
        reporter.write_line(
            "skipped tests are failures here (MINIDOCKER_NO_SKIP)", red=True
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
