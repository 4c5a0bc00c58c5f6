"""The tests of limits, on a kernel that has control groups of version 2."""

# ruff: noqa: F811

import os
import subprocess
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2] / "kernel"))
from test_limits import (  # noqa: F401
    Shop,
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


USER = 4242
AS_USER = f"""
set -e
echo $$ >{{place}}/session/cgroup.procs
exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@"
"""


def test_a_user_may_limit_in_the_part_that_was_given_to_it(
    shop: Shop, tmp_path: Path
) -> None:
    """As systemd delegates: the directory and three of its files belong to the user."""
    place = Path("/sys/fs/cgroup/user-part")
    (place / "session").mkdir(parents=True)
    try:
        (place / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        for one in (place, place / "session"):
            for name in (
                "",
                "cgroup.procs",
                "cgroup.subtree_control",
                "cgroup.threads",
            ):
                os.chown(one / name, USER, USER)
        os.chown(tmp_path, USER, USER)
        for above in (tmp_path.parent, tmp_path.parent.parent):
            above.chmod(0o755)
        tar = shop.root.parent / "tree.tar"
        (tmp_path / "tree.tar").write_bytes(tar.read_bytes())
        theirs = Shop(tmp_path / "store")

        def said(*words: str) -> subprocess.CompletedProcess[str]:
            script = AS_USER.format(place=place)
            command = ["sh", "-c", script, "sh", *theirs.argv(*words)]
            env = {**os.environ, "HOME": str(tmp_path)}
            return subprocess.run(
                command, capture_output=True, text=True, check=False, env=env
            )

        assert said("import", str(tmp_path / "tree.tar"), "box").returncode == 0
        words = ("--memory", "16m", "box", "tail", "-c", "300m", "/dev/zero")
        done = said("run", "--rm", *words)
        assert done.returncode == 137, done.stderr
        done = said("run", "--rm", "--cpuset-cpus", "0", "box", "true")
        assert (done.returncode, "no control group for cpuset" in done.stderr) == (
            125,
            True,
        )
        assert sorted(p.name for p in place.iterdir() if p.is_dir()) == ["session"]
    finally:
        for name in ("session", ""):
            (place / name).rmdir()


IN_A_CONTAINER = """
set -e
echo $$ >/sys/fs/cgroup/outer/cgroup.procs
exec unshare --cgroup --mount sh -c 'umount /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && exec "$@"' sh "$@"
"""


def test_in_a_container_of_others_everybody_makes_room(shop: Shop) -> None:
    """There the root of the tree is a group like any other, and we are in it."""
    outer = Path("/sys/fs/cgroup/outer")
    outer.mkdir()
    try:
        words = shop.argv(
            "run", "--rm", "--memory", "16m", "box", "tail", "-c", "300m", "/dev/zero"
        )
        done = subprocess.run(
            ["sh", "-c", IN_A_CONTAINER, "sh", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 137, done.stderr
        assert [p.name for p in outer.iterdir() if p.is_dir()] == ["init"]
    finally:
        for place in (outer / "init", outer):
            if place.exists():
                place.rmdir()
