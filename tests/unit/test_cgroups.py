"""What is written where, and which limits cannot be: without any control group."""

import doctest
import os

import pytest

from minidocker import cgroups
from minidocker.cgroups import (
    Group,
    Hierarchies,
    Limits,
    check_limits,
    members,
    settings_v1,
    settings_v2,
    wanted_controllers,
)
from minidocker.errors import MinidockerError, UsageError


MIB = 1 << 20
ALL = Limits(256 * MIB, 512 * MIB, 128 * MIB, 1_500_000_000, 1024, "0", "0", 100, 500)


def written(plan: tuple[cgroups.Setting, ...]) -> dict[str, str]:
    return {one.files[0]: one.text for one in plan}


def test_doctests_hold():
    assert doctest.testmod(cgroups).failed == 0


def test_version_1_is_told_in_its_own_numbers():
    assert written(settings_v1(ALL)) == {
        "memory.limit_in_bytes": str(256 * MIB),
        "memory.memsw.limit_in_bytes": str(512 * MIB),
        "memory.soft_limit_in_bytes": str(128 * MIB),
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "150000",
        "cpu.shares": "1024",
        "cpuset.cpus": "0",
        "cpuset.mems": "0",
        "pids.max": "100",
        "blkio.weight": "500",
    }


def test_version_2_is_told_in_its_own_numbers():
    assert written(settings_v2(ALL)) == {
        "memory.max": str(256 * MIB),
        "memory.swap.max": str(256 * MIB),
        "memory.low": str(128 * MIB),
        "cpu.max": "150000 100000",
        "cpu.weight": "39",
        "cpuset.cpus": "0",
        "cpuset.mems": "0",
        "pids.max": "100",
        "io.weight": "default 4950",
    }


def test_without_limits_nothing_is_written():
    assert settings_v1(Limits()) == settings_v2(Limits()) == ()


@pytest.mark.parametrize(
    ("swap", "v1", "v2"),
    [(0, 128 * MIB, 64 * MIB), (64 * MIB, 64 * MIB, 0), (-1, -1, "max")],
)
def test_swap_is_counted_with_memory_and_without(swap: int, v1: int, v2: object):
    limits = Limits(memory=64 * MIB, memory_swap=swap)
    assert written(settings_v1(limits))["memory.memsw.limit_in_bytes"] == str(v1)
    assert written(settings_v2(limits))["memory.swap.max"] == str(v2)


def test_no_end_of_processes():
    assert written(settings_v1(Limits(pids=-1))) == {"pids.max": "max"}
    assert written(settings_v2(Limits(pids=-1))) == {"pids.max": "max"}


@pytest.mark.parametrize(
    ("shares", "weight"), [(2, "1"), (1024, "39"), (262144, "10000")]
)
def test_shares_become_weights_on_the_other_scale(shares: int, weight: str):
    assert written(settings_v2(Limits(cpu_shares=shares))) == {"cpu.weight": weight}


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"memory": 6 * MIB - 1}, "minimum memory limit allowed is 6MB"),
        ({"memory_swap": 1 << 30}, "always set the memory limit"),
        ({"memory": 64 * MIB, "memory_swap": 32 * MIB}, "larger than memory limit"),
        ({"memory_reservation": 1}, "minimum memory reservation allowed is 6MB"),
        (
            {"memory": 8 * MIB, "memory_reservation": 9 * MIB},
            "less than memory reservation",
        ),
        ({"nano_cpus": 1}, "range of CPUs is from 0.01 to"),
        ({"nano_cpus": 10**13}, "as there are only"),
        ({"nano_cpus": -1}, "range of CPUs"),
        ({"cpu_shares": 1}, "range of cpu shares"),
        ({"cpu_shares": 300000}, "range of cpu shares"),
        ({"blkio_weight": 9}, "range of blkio weight is from 10 to 1000"),
        ({"blkio_weight": 1001}, "range of blkio weight"),
        ({"cpuset_cpus": "0-"}, "invalid value 0- for cpuset cpus"),
        ({"cpuset_cpus": "x"}, "invalid value x for cpuset cpus"),
        ({"cpuset_cpus": "3-1"}, "invalid value 3-1"),
        ({"cpuset_cpus": "8000"}, "requested CPUs are not available - requested 8000"),
        ({"cpuset_mems": "900"}, "requested memory nodes are not available"),
    ],
)
def test_nonsense_is_refused_in_docker_s_words(limits: dict[str, object], text: str):
    with pytest.raises(UsageError, match=text):
        check_limits(Limits(**limits))


def test_what_makes_sense_passes():
    for limits in (
        Limits(),
        ALL,
        Limits(memory=6 * MIB, memory_swap=-1),
        Limits(pids=-1),
    ):
        assert check_limits(limits) == limits


@pytest.mark.parametrize(
    "text", ["", "1-", "-", "a", "1,,2", "2-1", "-1", "1-2-3", "9000"]
)
def test_other_sets_are_refused(text: str):
    with pytest.raises(ValueError):  # noqa: PT011
        members(text)


def test_a_set_is_read_as_the_kernel_writes_it():
    assert members("0-2,5, 7-7\n") == {0, 1, 2, 5, 7}


def test_a_controller_that_is_not_there_is_an_error():
    one = Hierarchies(1, (("memory", "/m"),))
    assert wanted_controllers(one, ["memory", "memory"]) == ["memory"]
    with pytest.raises(MinidockerError, match="no control group for pids"):
        wanted_controllers(one, ["pids"])
    two = Hierarchies(2, (("memory", "/g"), ("pids", "/g")))
    assert wanted_controllers(two, ["pids", "freezer"]) == ["memory"]
    with pytest.raises(MinidockerError, match="no control group for cpuset"):
        wanted_controllers(two, ["cpuset"])


def test_a_process_is_born_in_version_2_and_moves_in_version_1():
    places = (("memory", "/a"), ("pids", "/b"))
    assert (Group("x", 1, places).unified, Group("x", 1, places).joined) == (
        "",
        ("/a", "/b"),
    )
    assert (Group("x", 2, places).unified, Group("x", 2, places).joined) == ("/a", ())
    assert Group("x", 2, places).place("cpu") == "/a"
    assert (Group("x", 1, places).place("cpu"), Group("x", 1).joined) == ("", ())


def test_a_group_of_version_1_is_not_looked_for_without_need(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(cgroups, "is_version_2", lambda: False)
    monkeypatch.setattr(cgroups, "find_hierarchies", lambda: 1 / 0)
    assert cgroups.make_group("x") == Group("x", 1)


def test_the_highest_group_that_is_ours_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path
):
    place = tmp_path / "user.slice/me/session"
    place.mkdir(parents=True)
    for one in (place, place.parent):
        (one / "cgroup.procs").write_text("")
    monkeypatch.setattr(cgroups, "V2", str(tmp_path))
    real = cgroups.read
    monkeypatch.setattr(
        cgroups,
        "read",
        lambda p: (
            "0::/user.slice/me/session\n" if p == "/proc/self/cgroup" else real(p)
        ),
    )
    assert cgroups.delegated() == str(place.parent)
    os.unlink(place.parent / "cgroup.procs")
    assert cgroups.delegated() == str(place)
