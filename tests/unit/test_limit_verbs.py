"""What `stats` shows is computed without a container."""

import doctest

from minidocker import limit_verbs
from minidocker.containers import Container
from minidocker.limit_verbs import Usage, binary_size, process_usage, stats_row
from minidocker.oci import ContainerConfig


def test_doctests_hold() -> None:
    assert doctest.testmod(limit_verbs).failed == 0


def test_a_row_has_docker_s_fields() -> None:
    web = Container("c0ffee" * 10 + "abcd", "web", "", "", ContainerConfig())
    used = Usage(50 << 20, 200 << 20, pids=3, read=4100, written=5_000_000)
    assert stats_row(web, "w", 0, used, 1.5, whole=False) == {
        "BlockIO": "4.1kB / 5MB",
        "CPUPerc": "150.00%",
        "Container": "w",
        "ID": "c0ffeec0ffee",
        "MemPerc": "25.00%",
        "MemUsage": "50MiB / 200MiB",
        "Name": "web",
        "NetIO": "0B / 0B",
        "PIDs": "3",
    }


def test_sizes_of_memory_are_binary() -> None:
    sizes = [binary_size(n) for n in (0, 1023, 1024, 1536, 1 << 30, 24 << 30, 1 << 60)]
    assert sizes == ["0B", "1023B", "1KiB", "1.5KiB", "1GiB", "24GiB", "1024PiB"]


def test_processes_that_are_gone_count_for_nothing() -> None:
    assert process_usage([2**22 - 1]).pids == 0
    import os

    mine = process_usage([os.getpid()])
    assert mine.pids >= 1
    assert 0 < mine.memory < mine.memory_limit
