"""The tests of limits, on a kernel that has control groups of version 2."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2] / "kernel"))
from test_limits import (  # noqa: F401
    no_container_is_left,
    shop,
    test_a_container_reads_its_own_limits,
    test_a_limit_that_no_controller_keeps_is_refused,
    test_every_limit_is_in_its_file,
    test_pause_stops_every_process_where_it_is,
    test_stats_counts_what_a_container_uses,
    test_update_changes_a_running_container_and_what_is_kept,
    test_who_takes_too_much_memory_is_killed_and_inspect_tells,
)

from minidocker.cgroups import is_version_2


def test_this_is_version_2() -> None:
    assert is_version_2()
