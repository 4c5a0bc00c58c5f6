"""Limits of real containers, whichever version of control groups the kernel has."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minidocker.cgroups import (
    Limits,
    find_group,
    find_hierarchies,
    is_version_2,
    read,
    settings_v1,
    settings_v2,
)


pytestmark = pytest.mark.root
APPLETS = "sh sleep cat echo tail true ps seq touch"
EVERYTHING = (
    "--memory", "64m", "--memory-swap", "96m", "--memory-reservation", "32m",
    "--cpus", "0.5", "--cpu-shares", "512", "--pids-limit", "30",
)  # fmt: skip
WANTED = Limits(64 << 20, 96 << 20, 32 << 20, 5 * 10**8, 512, pids=30)


class Shop:
    """A store with one image, driven by the command line."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "minidocker", "--root", str(self.root), *words]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words), capture_output=True, check=False, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def says(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def start(self, *flags: str, script: str = "sleep 600") -> str:
        return self.says("run", "-d", *flags, "box", "sh", "-c", script)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    where = tmp_path_factory.mktemp("limits")
    (where / "tree/bin").mkdir(parents=True)
    (where / "tree/tmp").mkdir()
    shutil.copy("/bin/busybox", where / "tree/bin/busybox")
    for name in APPLETS.split():
        (where / "tree/bin" / name).symlink_to("busybox")
    tar = where / "tree.tar"
    subprocess.run(["tar", "-C", where / "tree", "-cf", tar, "."], check=True)
    found = Shop(where / "store")
    found.says("import", str(tar), "box")
    return found


@pytest.fixture(autouse=True)
def no_container_is_left(shop: Shop) -> Iterator[None]:
    yield
    left = shop.says("ps", "-aq").split()
    if left:
        shop("rm", "-f", *left)
    groups = [d for d, _, _ in os.walk("/sys/fs/cgroup") if "/minidocker" in d]
    ours = {path.name for path in shop.root.glob("containers/*")}
    assert not [g for g in groups if g.rpartition("/")[2] in ours]


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


def pid_of(shop: Shop, id: str) -> int:
    return int(shop.says("inspect", "-f", "{{.State.Pid}}", id))


def test_every_limit_is_in_its_file(shop: Shop) -> None:
    id = shop.start(*EVERYTHING)
    group = find_group(id)
    plan = (settings_v2 if is_version_2() else settings_v1)(WANTED)
    assert {one.controller for one in plan} == {"memory", "cpu", "pids"}
    for one in plan:
        there = [
            p
            for f in one.files
            if os.path.exists(p := f"{group.place(one.controller)}/{f}")
        ]
        for path in there:  # a kernel without swap has no file for it
            assert read(path).strip() == one.text, path
    first = pid_of(shop, id)
    procs = [read(f"{place}/cgroup.procs").split() for _, place in group.places]
    assert all(str(first) in pids for pids in procs)
    shop.says("exec", id, "true")
    host = json.loads(shop.says("inspect", "-f", "{{json .HostConfig}}", id))
    kept = {
        key: host[key]
        for key in ("Memory", "MemorySwap", "MemoryReservation", "NanoCpus")
    }
    assert list(kept.values()) == [64 << 20, 96 << 20, 32 << 20, 5 * 10**8]
    assert (host["CpuShares"], host["PidsLimit"]) == (512, 30)
    shop.says("rm", "-f", id)
    assert not find_group(id).places


def test_a_process_that_joins_is_limited_too(shop: Shop) -> None:
    id = shop.start("--pids-limit", "20")
    place = find_group(id).place("pids")
    script = "sleep 600 & wait"
    process = subprocess.Popen(shop.argv("exec", id, "sh", "-c", script))
    assert eventually(lambda: len(read(f"{place}/cgroup.procs").split()) >= 3)
    shop.says("rm", "-f", id)
    process.wait()


def test_no_more_processes_than_allowed(shop: Shop) -> None:
    script = "for n in $(seq 30); do sleep 5 & done; echo made"
    done = shop("run", "--rm", "--pids-limit", "10", "box", "sh", "-c", script)
    assert "can't fork" in done.stderr


def test_who_takes_too_much_memory_is_killed_and_inspect_tells(shop: Shop) -> None:
    words = (
        "--memory",
        "16m",
        "--name",
        "greedy",
        "box",
        "tail",
        "-c",
        "300m",
        "/dev/zero",
    )
    assert shop("run", *words).returncode == 137
    state = json.loads(shop.says("inspect", "-f", "{{json .State}}", "greedy"))
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (
        True,
        137,
        "exited",
    )
    shop.says("run", "--name", "modest", "box", "true")
    assert shop.says("inspect", "-f", "{{.State.OOMKilled}}", "modest") == "false"
    shop.says("rm", "greedy", "modest")


def test_a_container_sees_no_group_but_its_own(shop: Shop) -> None:
    lines = shop.says("run", "--rm", *EVERYTHING, "box", "cat", "/proc/self/cgroup")
    by_name = {line.split(":")[1]: line.split(":")[2] for line in lines.splitlines()}
    assert all(by_name[name] == "/" for name in ("memory", "pids") if name in by_name)
    assert by_name.get("", "/") == "/"


def test_a_container_reads_its_own_limits(shop: Shop) -> None:
    name = "memory.max" if is_version_2() else "memory/memory.limit_in_bytes"
    script = f"cat /sys/fs/cgroup/{name}; touch /sys/fs/cgroup/x; echo 1 >/sys/fs/cgroup/{name}"
    done = shop("run", "--rm", "--memory", "64m", "box", "sh", "-c", script)
    assert done.stdout == f"{64 << 20}\n"
    assert done.stderr.count("ead-only") == 2


def test_update_changes_a_running_container_and_what_is_kept(shop: Shop) -> None:
    id = shop.start()
    assert shop.says("update", "--memory", "50m", "--pids-limit", "40", id) == id
    group = find_group(id)
    plan = settings_v2 if is_version_2() else settings_v1
    for one in plan(Limits(50 << 20, 100 << 20, pids=40)):
        for path in [f"{group.place(one.controller)}/{f}" for f in one.files]:
            assert not os.path.exists(path) or read(path).strip() == one.text, path
    assert (
        str(pid_of(shop, id)) in read(f"{group.place('memory')}/cgroup.procs").split()
    )
    shop.says("update", "--memory", "500m", "--memory-swap", "-1", id)
    shop.says("update", "--memory", "40m", "--memory-swap", "80m", id)
    assert shop.says("inspect", "-f", "{{.HostConfig.Memory}}", id) == str(40 << 20)
    for words in (["--memory", "5m"], ["--memory", "200m"], []):
        done = shop("update", *words, id)
        assert done.returncode == 1, words
        assert done.stderr.startswith("minidocker: ")
    assert shop.says("inspect", "-f", "{{.State.Running}}", id) == "true"
    shop.says("rm", "-f", id)


def test_pause_stops_every_process_where_it_is(shop: Shop) -> None:
    script = "while true; do echo x; sleep 0.02; done"
    id = shop.start(script=f"({script}) & {script}")
    log = shop.root / f"containers/{id}/{id}-json.log"
    assert eventually(lambda: log.exists() and log.stat().st_size > 0)
    shop.says("pause", id)

    def silent() -> bool:  # what was written before may still be on its way
        size = log.stat().st_size
        time.sleep(0.3)
        return log.stat().st_size == size

    assert eventually(silent)
    size = log.stat().st_size
    assert "(Paused)" in shop.says("ps")
    assert (
        shop.says("inspect", "-f", "{{.State.Status}} {{.State.Paused}}", id)
        == "paused true"
    )
    for words in (["exec", id, "true"], ["pause", id]):
        done = shop(*words)
        assert done.returncode == 1
        assert "paused" in done.stderr
    shop.says("unpause", id)
    assert eventually(lambda: log.stat().st_size > size)
    assert "not paused" in shop("unpause", id).stderr
    shop.says("pause", id)
    shop.says("rm", "-f", id)
    assert not find_group(id).places


def test_stats_counts_what_a_container_uses(shop: Shop) -> None:
    busy = shop.start("--name", "busy", script="while true; do true; done")
    idle = shop.start(
        "--name", "idle", "--memory", "64m", script="sleep 600 & sleep 600"
    )
    rows = [
        json.loads(line)
        for line in shop.says("stats", "--no-stream", "--format", "json").splitlines()
    ]
    by_name = {row["Name"]: row for row in rows}
    shares = {name: float(row["CPUPerc"].rstrip("%")) for name, row in by_name.items()}
    assert shares["busy"] > shares["idle"]
    assert by_name["idle"]["MemUsage"].endswith("/ 64MiB")
    assert int(by_name["idle"]["PIDs"]) >= 2
    table = shop.says("stats", "--no-stream", "busy").splitlines()
    assert table[0].split()[:2] == ["CONTAINER", "ID"]
    assert table[1].startswith(busy[:12])
    shop.says("rm", "-f", busy, idle)


def test_nothing_is_left_after_the_supervisor_is_killed(shop: Shop) -> None:
    process = subprocess.Popen(
        shop.argv("run", "--name", "orphan", "--memory", "64m", "box", "sleep", "600"),
        stdout=subprocess.DEVNULL,
    )
    assert eventually(lambda: shop.says("ps", "-q") != "")
    id = shop.says("inspect", "-f", "{{.Id}}", "orphan")
    assert find_group(id).places
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "Exited (137)" in shop.says("ps", "-a")
    assert not find_group(id).places
    shop.says("rm", "orphan")


def test_a_container_in_the_host_s_pid_namespace_leaves_nobody(shop: Shop) -> None:
    mark = f"6{os.getpid()}"
    script = f"sleep {mark} & exit 3"
    assert (
        shop("run", "--rm", "--pid", "host", "box", "sh", "-c", script).returncode == 3
    )
    lines = subprocess.run(
        ["ps", "-eo", "args"], capture_output=True, text=True, check=True
    ).stdout
    assert f"sleep {mark}" not in lines.splitlines()


def test_only_the_container_is_stopped_and_counted_in_shared_namespaces(
    shop: Shop,
) -> None:
    """Its pid namespace is full of others, who must not notice."""
    other = shop.start("--name", "other")
    for mode in ("host", "container:other"):
        id = shop.start("--pid", mode, script="sleep 600 & sleep 600")
        shop.says("update", "--pids-limit", "50", id)
        group = find_group(id)
        place = group.place("pids")
        mine = set(read(f"{place}/cgroup.procs").split())
        assert 2 <= len(mine) <= 3
        assert str(os.getpid()) not in mine
        assert str(pid_of(shop, other)) not in mine
        shop.says("pause", id)
        row = json.loads(shop.says("stats", "--no-stream", "--format", "json", id))
        assert int(row["PIDs"]) == len(mine)
        assert shop.says("exec", "other", "echo", "awake") == "awake"
        shop.says("unpause", id)
        shop.says("rm", "-f", id)
        assert not find_group(id).places
    shop.says("rm", "-f", other)


def test_a_limit_that_no_controller_keeps_is_refused(shop: Shop) -> None:
    """Neither kernel has a weight for its disks."""
    if any(find_hierarchies().root(name) for name in ("io", "blkio")):
        done = shop("run", "--name", "heavy", "--blkio-weight", "300", "box", "true")
        assert done.returncode in (0, 125)
        assert ("no control group" in done.stderr) is (done.returncode == 125)
        shop.says("rm", "heavy")
