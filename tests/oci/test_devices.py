"""Which devices may be opened: by files in version 1, by a program of ours in version 2."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.store import Store

from minidocker.cgroups import Group
from minidocker.device_rules import (
    DeviceRule,
    attach_device_program,
    device_program,
    docker_rules,
    settled,
)


pytestmark = pytest.mark.root
OPEN = "(: </dev/kmsg) && echo read; (: >/dev/kmsg) && echo written; true"


def test_a_device_is_given_for_reading_only(store: Store) -> None:
    words = ["run", "--rm", "--network", "none", "--cap-add", "SYSLOG"]
    both = store.says(*words, "--device", "/dev/kmsg", "small", "sh", "-c", OPEN)
    assert both == "read\nwritten\n"
    done = store(*words, "--device", "/dev/kmsg:/dev/kmsg:r", "small", "sh", "-c", OPEN)
    assert done.stdout == "read\n"
    assert "Operation not permitted" in done.stderr
    done = store(*words, "--device", "/dev/kmsg:w", "small", "sh", "-c", OPEN)
    assert done.stdout == "written\n"


def test_what_is_usual_stays_open_beside_it(store: Store) -> None:
    script = "echo x > /dev/null && head -c1 /dev/urandom | wc -c && test -t 0; tty"
    words = ["run", "--rm", "--network", "none", "--device", "/dev/kmsg:r"]
    assert store.says(*words, "small", "sh", "-c", script + " || true")[:2] == "1\n"


@pytest.fixture
def unified() -> Iterator[str]:
    """A group of version 2: of the whole machine, or of the tree beside version 1."""
    above = "/sys/fs/cgroup"
    if not os.path.exists(f"{above}/cgroup.controllers"):
        above = f"{above}/unified"
    place = f"{above}/minidocker-test-{os.getpid()}"
    os.mkdir(place)
    yield place
    os.rmdir(place)


def opened_in(place: str, path: str, flags: int) -> bool:
    """Say whether a process in a group may open a device."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            Path(place, "cgroup.procs").write_text("0")
            os.close(os.open(path, flags))
            status = 0
        except PermissionError:
            status = 2
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 2)
    return status == 0


@pytest.mark.parametrize("access", ["r", "w", "rw", "m", ""])
def test_our_program_is_taken_by_the_kernel_and_obeyed(
    unified: str, access: str
) -> None:
    found = os.stat("/dev/kmsg").st_rdev
    numbers = os.major(found), os.minor(found)
    mine = [DeviceRule(True, "c", *numbers, access)] if access else []
    attach_device_program(unified, device_program(settled([*docker_rules(), *mine])))
    assert opened_in(unified, "/dev/null", os.O_RDWR)
    assert opened_in(unified, "/dev/kmsg", os.O_RDONLY) == ("r" in access)
    assert opened_in(unified, "/dev/kmsg", os.O_WRONLY) == ("w" in access)
    assert not opened_in(unified, "/dev/net/tun", os.O_RDWR)


def test_all_but_one(unified: str) -> None:
    rules = [DeviceRule(True), DeviceRule(False, "c", 1, 3, "w")]
    attach_device_program(unified, device_program(settled(rules)))
    assert opened_in(unified, "/dev/null", os.O_RDONLY)
    assert not opened_in(unified, "/dev/null", os.O_RDWR)
    assert opened_in(unified, "/dev/zero", os.O_RDWR)


def test_a_group_without_a_devices_tree_is_left_alone() -> None:
    from minidocker.device_rules import restrict_devices

    restrict_devices(Group("none", 1), docker_rules())
