"""A real dockerd and containerd with our runtime: the user cannot tell it from runc."""

import io
import re
import shlex
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import Docker, docker_daemon

from oci.conftest import make_tree


pytestmark = pytest.mark.root

# logs what it is called with, and becomes the runtime
SPY = '#!/bin/sh\necho "$@" >> {log}\nexec {program} "$@"\n'
LOOK = (
    "cat /proc/self/status | grep -E '^(Cap|NoNew|Seccomp:|Groups)'; id; pwd; umask;"
    "stat -c '%n %F %a %t:%T %u:%g' /dev/* /tmp; hostname; ulimit -n; ulimit -Hn;"
    "cat /proc/sys/kernel/domainname /proc/self/oom_score_adj;"
    "cat /proc/sys/net/ipv4/ip_forward; readlink /proc/self/cwd; env | sort;"
    "cat /sys/fs/cgroup/pids/pids.max;"
    "grep -v -e cgroup -e /firmware -e ' /proc/' /proc/self/mountinfo"
    " | cut -d' ' -f5-6 | sort"
)
# what a user types after `docker run --rm --runtime RUNTIME --network none`
RUNS = f"""
small sh -c 'exit 42'
small nothere
small /etc/passwd
small /bin
small sh -c 'kill -9 $$'
small sh -c "{LOOK}"
--user web -w /srv/deep --cap-drop ALL --cap-add CHOWN --security-opt no-new-privileges --security-opt seccomp=unconfined --ulimit nofile=100:200 --sysctl net.ipv4.ip_forward=1 --hostname box --domainname lan --oom-score-adj 300 --read-only --tmpfs /tmp:size=1m --shm-size 1m --pids-limit 20 --memory 32m --cpus 0.5 --device /dev/loop-control small sh -c "{LOOK}"
--memory 16m small dd if=/dev/zero of=/dev/null bs=64M count=1
--device /dev/kmsg:/dev/kmsg:r small sh -c 'head -c1 /dev/kmsg | wc -c; echo x > /dev/kmsg'
--init --pid host --uts host --ipc host small sh -c 'test -d /proc/2 && echo there'
-v HERE:/data:ro -v HERE:/both:rslave small sh -c "cat /data/note; touch /data/x; grep ' /both ' /proc/self/mountinfo | grep -c master:"
-i small cat
-t small sh -c 'tty; ls -l /dev/console | cut -c1-10'
""".strip().splitlines()


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory, program: Path) -> Iterator[Docker]:
    root = tmp_path_factory.mktemp("docker")
    spy = root / "runtime"
    spy.write_text(SPY.format(log=root / "calls", program=program))
    spy.chmod(0o755)
    tree = root / "tree"
    make_tree(tree)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(tree, ".")
    (root / "note").write_text("a note\n")
    more = ["--add-runtime", f"minidocker={spy}", "--default-runtime", "minidocker"]
    with docker_daemon(root, *more, bridge="own") as daemon:
        daemon.says("import", "-", "small", stdin=out.getvalue())
        yield daemon


def test_all_rights_are_those_that_we_have(docker: Docker) -> None:
    """runc refuses --privileged where the host itself lacks a capability; we give the rest."""
    words = (
        "run",
        "--rm",
        "--runtime",
        "minidocker",
        "--network",
        "none",
        "--privileged",
    )
    found = docker.says(*words, "small", "grep", "CapEff", "/proc/self/status")
    host = re.search(r"CapPrm:\s(.*)", Path("/proc/self/status").read_text())
    assert host is not None
    ours, ask = (
        int(host[1], 16),
        0x3FFFFFFFFF,
    )  # the capabilities that Docker 20.10 knows
    assert int(found.split()[1], 16) == ours & ask


def told(docker: Docker, runtime: str, line: str) -> tuple[int, str, str]:
    """What a user hears of a run: status, output, and message without ids."""
    words = shlex.split(line.replace("HERE", str(docker.root)))
    flags = ["run", "--rm", "--runtime", runtime, "--network", "none"]
    done = docker(*flags, *words, stdin=b"input\n" if words[0] == "-i" else b"")
    hidden = re.sub(r"[0-9a-f]{64}|\b[0-9a-f]{12}\b", "ID", done.stdout + done.stderr)
    names = r"(runc|minidocker) |failed to start shim.*?: |unable to start.*?process: "
    hidden = re.sub(names, "", hidden)
    hidden = re.sub(r"time=.*error waiting for container: .*\n", "", hidden)  # or not
    output, _, message = hidden.partition("docker: Error")
    return done.returncode, output, message


@pytest.mark.parametrize("line", RUNS, ids=lambda line: line[:50])
def test_run_is_the_same(docker: Docker, line: str) -> None:
    seen, expected = told(docker, "minidocker", line), told(docker, "runc", line)
    assert seen[0] == expected[0]
    assert seen[1].splitlines() == expected[1].splitlines()
    assert bool(seen[2]) == bool(expected[2])
    end = "executable file not found in $PATH"
    assert (end in seen[2]) == (end in expected[2])


def test_a_container_lives_and_is_worked_on(docker: Docker) -> None:
    run = ("run", "-d", "--runtime", "minidocker", "--name", "box", "--memory", "64m")
    docker.says(
        *run, "small", "sh", "-c", 'trap "exit 3" TERM; while :; do sleep 0.1; done'
    )
    assert "inet 172." in docker.says("exec", "box", "busybox", "ip", "addr")
    assert docker("exec", "box", "sh", "-c", "exit 7").returncode == 7
    assert docker("exec", "box", "nothere").returncode == 126  # runc's, too
    assert (
        docker.says("exec", "-u", "7:8", "-w", "/tmp", "box", "sh", "-c", "id -u; pwd")
        == "7\n/tmp\n"
    )
    assert docker.says("exec", "-t", "box", "tty").strip() == "/dev/pts/0"
    assert (
        docker.says("exec", "-i", "box", "cat", stdin=b"x" * 100_000) == "x" * 100_000
    )
    docker.says("pause", "box")
    assert docker.says("inspect", "-f", "{{.State.Status}}", "box") == "paused\n"
    docker.says("unpause", "box")
    docker.says("update", "--memory", "48m", "--memory-swap", "48m", "box")
    limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert docker.says("exec", "box", "cat", limit) == f"{48 << 20}\n"
    assert "trap" in docker.says("top", "box")
    assert "MiB" in docker.says("stats", "--no-stream", "box")
    docker.says("stop", "box")
    assert docker.says("inspect", "-f", "{{.State.ExitCode}}", "box") == "3\n"
    docker.says("start", "box")
    docker.says("kill", "box")
    assert docker.says("wait", "box") == "137\n"
    docker.says("rm", "box")


def test_a_build_runs_its_steps_in_it(docker: Docker, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "FROM small\nRUN echo built > /built && id -u >> /built\nUSER web\n"
        'WORKDIR /tmp\nRUN ["sh", "-c", "id -u > mine"]\nCMD cat /built mine\n'
    )
    assert docker.says("info", "-f", "{{.DefaultRuntime}}") == "minidocker\n"
    docker.says("build", "-t", "built", "--network", "none", str(tmp_path))
    words = ("run", "--rm", "--network", "none", "--runtime")
    for runtime in ("runc", "minidocker"):
        assert docker.says(*words, runtime, "built") == "built\n0\n7\n"
    failing = b"FROM small\nRUN exit 3\n"
    build = docker("build", "--network", "none", "-q", "-", stdin=failing)
    assert build.returncode == 3


def test_nothing_is_left_and_every_call_is_known(docker: Docker) -> None:
    deadline = time.monotonic() + 10
    state = docker.root / "exec/runtime-minidocker/moby"
    while state.exists() and list(state.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(state.iterdir()) if state.exists() else True
    calls = (docker.root / "calls").read_text().splitlines()
    verbs = {word for line in calls for word in line.split()}
    assert {
        "create",
        "start",
        "kill",
        "delete",
        "exec",
        "pause",
        "resume",
        "update",
    } <= verbs
