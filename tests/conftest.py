"""What every test shares: nothing may be left mounted, linked or running."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def traces() -> dict[str, list[str]]:
    """What a test must leave as it found it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    groups = [d for d, _, _ in os.walk("/sys/fs/cgroup") if "minidocker" in d]
    loops = [p.name for p in Path("/sys/block").glob("loop*") if (p / "loop").exists()]
    links = os.listdir("/sys/class/net")
    return {
        "mounts": sorted(line.split(" ", 2)[2] for line in mounts),
        "cgroups": sorted(groups),
        "loop devices": sorted(loops),
        "links": sorted(links),
    }


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = traces()
    yield
    until = time.monotonic() + 5  # the kernel takes unused devices down in its own time
    while traces() != before and time.monotonic() < until:
        time.sleep(0.02)
    assert traces() == before


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
