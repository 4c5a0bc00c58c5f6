"""`run`, `exec` and what looks after containers, as a user types them."""

import json
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from cli.store import Store


def eventually(condition: object, seconds: float = 20) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def run(store: Store, *words: str) -> str:
    return store.says("run", "--rm", "small:v1", *words)


def test_the_container_prints_to_our_output(store: Store) -> None:
    assert run(store, "echo", "hello") == "hello\n"


@pytest.mark.parametrize("status", [0, 1, 42, 255])
def test_the_status_is_the_process_s_own(store: Store, status: int) -> None:
    assert (
        store("run", "--rm", "small:v1", "sh", "-c", f"exit {status}").returncode
        == status
    )


def test_a_process_killed_by_a_signal_ends_with_128_and_its_number(
    store: Store,
) -> None:
    script = "sh -c 'kill -9 $$'; exit $?"
    assert store("run", "--rm", "small:v1", "sh", "-c", script).returncode == 137


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("small:v1", "nope"), 127, '"nope": executable file not found in $PATH'),
        (("small:v1", "/bin/plain"), 126, "permission denied"),
        (("small:v1", "/etc"), 126, '"/etc"'),
        (("small:v1", "/bin/orphan"), 127, "interpreter"),
        (("nowhere",), 125, 'no such image: "nowhere"'),
        (("small:v2",), 125, "small:v1"),
        (("UPPER",), 125, "lowercase"),
        (("--nmae", "x", "small:v1"), 125, '"--name"'),
        (("--user", "nobody", "small:v1", "id"), 125, '"nobody"'),
        (("--network", "moon", "small:v1", "id"), 125, "network moon "),
        (("small:v1",), 125, "no command"),
        (("-w", "relative", "small:v1", "pwd"), 125, "absolute path"),
        (("-e", "=x", "small:v1", "env"), 125, '"=x"'),
        (("-v", "/no/such:relative", "small:v1", "true"), 125, "/no/such"),
        (("--stop-signal", "NOPE", "small:v1", "true"), 125, "signal: NOPE"),
        (("--hostname", "x" * 65, "small:v1", "true"), 125, "64 bytes"),
        (("--name", "-x", "small:v1", "true"), 125, "(-x)"),
        (("-u", "-5", "small:v1", "id"), 125, '"-5"'),
        (("", "true"), 125, "no name"),
        ((), 1, "at least 1 argument"),
    ],
)
def test_what_cannot_run_is_one_line_with_docker_s_status(
    store: Store, words: tuple[str, ...], status: int, said: str
) -> None:
    done = store("run", "--rm", *words)
    assert (done.returncode, done.stdout) == (status, "")
    lines = done.stderr.splitlines()
    assert said in done.stderr
    assert len(lines) <= 2
    assert lines[0].startswith("minidocker: ")


def test_the_container_has_its_own_namespaces(store: Store) -> None:
    script = "for n in mnt pid uts ipc net cgroup; do ls -l /proc/self/ns/$n; done"
    inside = {
        line.split(" -> ")[1] for line in run(store, "sh", "-c", script).splitlines()
    }
    ours = {
        os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")
    }
    assert len(inside) == 6
    assert not inside & ours


def test_it_is_process_one_and_sees_no_other(store: Store) -> None:
    assert run(store, "sh", "-c", "echo $$") == "1\n"
    assert len(run(store, "ps").splitlines()) == 2


def test_without_a_network_only_the_loopback_is_there_and_it_is_up(
    store: Store,
) -> None:
    words = ("run", "--rm", "--network", "none", "small:v1")
    lines = store.says(*words, "cat", "/proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]
    said = store.says(*words, "busybox", "ip", "addr", "show", "lo")
    assert said.count("127.0.0.1") == 1


def test_nothing_of_the_host_is_mounted(store: Store) -> None:
    mounts = run(store, "cat", "/proc/mounts").splitlines()
    places = [line.split()[1] for line in mounts]
    assert places[0] == "/"
    allowed = (
        "/proc",
        "/dev",
        "/sys",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    )
    assert all(place.startswith(allowed) for place in places[1:]), places


def test_flags_reach_the_process(store: Store) -> None:
    flags = ("-e", "A=1", "-e", "FROM_US", "-w", "/new/dir", "--hostname", "box")
    script = "echo $A $FROM_US; pwd; hostname; cat /etc/hostname; echo $HOME"
    words = ("run", "--rm", *flags, "small:v1", "sh", "-c", script)
    assert store.says(*words, FROM_US="ours").split() == [
        "1", "ours", "/new/dir", "box", "box", "/root",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("user", "wanted"),
    [("www", "33 33 /var/www"), ("33", "33 33 /var/www"), ("1001", "1001 0 /"),
     ("1001:7", "1001 7 /"), ("www:0", "33 0 /var/www")],
)  # fmt: skip
def test_the_user_is_looked_up_in_the_image(
    store: Store, user: str, wanted: str
) -> None:
    script = "echo $(id -u) $(id -g) $HOME"
    assert (
        store.says("run", "--rm", "-u", user, "small:v1", "sh", "-c", script).strip()
        == wanted
    )


def test_another_user_may_write_to_its_own_output(store: Store) -> None:
    done = store(
        "run", "--rm", "-u", "1001", "small:v1", "sh", "-c", "echo x >/dev/stderr"
    )
    assert (done.returncode, done.stderr) == (0, "x\n")


def test_input_reaches_the_process_only_with_i(store: Store) -> None:
    words = ("--rm", "small:v1", "cat")
    assert store.says("run", "-i", *words, stdin=b"a\nb\n") == "a\nb\n"
    assert store.says("run", *words, stdin=b"a\nb\n") == ""


def test_a_large_output_arrives_whole(store: Store) -> None:
    script = "busybox yes 0123456789 | busybox head -n 200000"
    assert len(run(store, "sh", "-c", script)) == 200000 * 11


def test_read_only_and_volumes(store: Store, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host")
    done = store("run", "--rm", "--read-only", "small:v1", "sh", "-c", "echo x >/x")
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr
    bind = ("-v", f"{tmp_path}:/data:ro")
    assert (
        store.says("run", "--rm", *bind, "small:v1", "cat", "/data/given")
        == "from the host"
    )
    done = store("run", "--rm", *bind, "small:v1", "sh", "-c", "echo x >/data/x")
    assert "Read-only file system" in done.stderr
    store.says(
        "run",
        "--rm",
        "-v",
        f"{tmp_path}:/data",
        "small:v1",
        "sh",
        "-c",
        "echo y >/data/y",
    )
    assert (tmp_path / "y").read_text() == "y\n"


def test_a_signal_to_us_reaches_the_process(store: Store) -> None:
    script = (
        "trap 'echo caught; exit 9' TERM; echo ready; while true; do sleep 0.1; done"
    )
    process = subprocess.Popen(
        store.argv("run", "--rm", "small:v1", "sh", "-c", script),
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(20) == 9


def test_a_terminal_is_given_with_t(store: Store) -> None:
    ours, theirs = pty.openpty()
    words = store.argv(
        "run", "--rm", "-it", "small:v1", "sh", "-c", "busybox tty; read x; echo got $x"
    )
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"/dev/pts/0" not in seen:
        seen += os.read(ours, 1000)
    os.write(ours, b"word\r")
    while b"got word" not in seen:
        seen += os.read(ours, 1000)
    assert process.wait(20) == 0
    os.close(ours)


def test_it_asks_for_a_terminal_before_it_takes_one(store: Store) -> None:
    done = store("run", "--rm", "-it", "small:v1", "sh")
    assert (done.returncode, "not a TTY" in done.stderr) == (1, True)


def test_detached_from_start_to_removal(store: Store) -> None:
    script = "echo out; echo err >&2; touch /new; exec sleep 600"
    id = store.says(
        "run", "-d", "--name", "web", "small:v1", "sh", "-c", script
    ).strip()
    try:
        assert len(id) == 64
        assert eventually(lambda: "out" in store.says("logs", "web"))
        row = json.loads(store.says("ps", "--format", "json"))
        assert (row["Names"], row["Image"], row["State"]) == (
            "web",
            "small:v1",
            "running",
        )
        assert row["Status"].startswith("Up ")
        assert store("logs", "web").stderr == "err\n"
        assert "sleep" in store.says("exec", "web", "ps")
        assert store("exec", "web", "sh", "-c", "exit 5").returncode == 5
        assert store.says("exec", "-i", "web", "cat", stdin=b"in") == "in"
        assert (
            store.says(
                "exec", "-e", "B=2", "-w", "/tmp", "web", "sh", "-c", "echo $B $(pwd)"
            )
            == "2 /tmp\n"
        )
        assert store("rm", "web").returncode == 1
        assert store("run", "--name", "web", "small:v1", "true").returncode == 125
        assert store.says("diff", "web") == "A /new\n"
        assert store.says("stop", "-t", "0", "web") == "web\n"
        assert store.says("wait", "web") == "137\n"
        assert store.says("ps").count("\n") == 1
        assert "Exited (137)" in store.says("ps", "-a")
        assert store("exec", "web", "true").returncode == 1
        state = store.says(
            "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "web"
        )
        assert state == "exited 137\n"
    finally:
        assert store.says("rm", "-f", "web") == "web\n"


def test_wait_returns_the_status_of_one_that_removes_itself(store: Store) -> None:
    store.says(
        "run",
        "-d",
        "--rm",
        "--name",
        "brief",
        "small:v1",
        "sh",
        "-c",
        "sleep 0.5; exit 3",
    )
    assert store.says("wait", "brief") == "3\n"
    assert eventually(lambda: store.says("ps", "-aq") == "")


def test_a_container_whose_supervisor_is_killed_has_exited(store: Store) -> None:
    process = subprocess.Popen(
        store.argv("run", "--name", "orphan", "small:v1", "sleep", "600"),
        stdout=subprocess.DEVNULL,
    )
    assert eventually(lambda: store.says("ps", "-q") != "")
    pid = int(store.says("inspect", "-f", "{{.State.Pid}}", "orphan"))
    process.kill()
    process.wait()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists())
    assert "Exited (137)" in store.says("ps", "-a")
    assert store.says("rm", "orphan") == "orphan\n"


def test_one_with_rm_whose_supervisor_was_killed_is_removed_by_ps(
    store: Store,
) -> None:
    process = subprocess.Popen(
        store.argv("run", "--rm", "--name", "lost", "small:v1", "sleep", "600"),
        stdout=subprocess.DEVNULL,
    )
    assert eventually(lambda: store.says("ps", "-q") != "")
    process.kill()
    process.wait()
    assert eventually(lambda: store.says("ps", "-aq") == "")
    assert not os.listdir(store.root / "containers")


def test_a_reader_that_goes_ends_the_program_as_in_any_pipeline(store: Store) -> None:
    with subprocess.Popen(
        store.argv("run", "--rm", "small:v1", "busybox", "yes"), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(20) != 0


def test_megabytes_go_in_and_come_out_whole(store: Store) -> None:
    sent = os.urandom(1 << 20) * 8
    words = store.argv("run", "-i", "--rm", "small:v1")
    for command, wanted in (("cat", sent), ("true", b"")):
        done = subprocess.run(
            [*words, command], input=sent, capture_output=True, check=True, timeout=60
        )
        assert done.stdout == wanted


def test_a_log_is_followed_to_the_end_of_its_container(store: Store) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.2; done; exit 4"
    store.says("run", "-d", "--name", "talker", "small:v1", "sh", "-c", script)
    assert store.says("logs", "-f", "talker") == "line 1\nline 2\nline 3\n"
    assert store.says("wait", "talker") == "4\n"
    assert store.says("logs", "-n", "1", "talker") == "line 3\n"
    store.says("rm", "talker")


@pytest.mark.parametrize("command", ["run", "exec"])
def test_a_terminal_has_our_size_and_follows_it(store: Store, command: str) -> None:
    words = ["run", "--rm", "-it", "small:v1"]
    if command == "exec":
        store.says("run", "-d", "--name", "screen", "small:v1", "sleep", "600")
        words = ["exec", "-it", "screen"]
    script = "busybox stty size; read go; busybox stty size; exit 12"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (33, 111))
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *store.argv(*words, "sh", "-c", script)],
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    seen = b""
    while b"33 111" not in seen:
        seen += os.read(ours, 1000)
    termios.tcsetwinsize(theirs, (44, 122))
    time.sleep(0.3)
    os.write(ours, b"go\r")
    while b"44 122" not in seen:
        seen += os.read(ours, 1000)
    assert process.wait(20) == 12
    os.close(ours)
    os.close(theirs)
    if command == "exec":
        store.says("rm", "-f", "screen")


def test_kill_sends_the_signal_that_is_named(store: Store) -> None:
    script = "trap 'exit 7' USR1; echo ready; while true; do sleep 0.1; done"
    store.says("run", "-d", "--name", "victim", "small:v1", "sh", "-c", script)
    assert eventually(lambda: "ready" in store.says("logs", "victim"))
    store.says("kill", "-s", "USR1", "victim")
    assert store.says("wait", "victim") == "7\n"
    assert store("kill", "-s", "NOPE", "victim").returncode == 1
    assert store("kill", "victim").returncode == 1
    store.says("rm", "victim")


def test_commit_makes_an_image_with_one_more_layer(store: Store) -> None:
    store.says(
        "run",
        "--name",
        "worker",
        "small:v1",
        "sh",
        "-c",
        "echo made >/made; rm /bin/plain",
    )
    try:
        words = (
            "commit",
            "-m",
            "by hand",
            "-c",
            'CMD ["cat", "/made"]',
            "worker",
            "made:v1",
        )
        id = store.says(*words).strip()
        assert store.says("run", "--rm", "made:v1") == "made\n"
        assert store("run", "--rm", "made:v1", "cat", "/bin/plain").returncode == 1
        newest = json.loads(
            store.says("history", "--format", "json", "made:v1").splitlines()[0]
        )
        assert (newest["Comment"], newest["Size"]) == ("by hand", "5B")
        assert store.says("diff", "worker") == "C /bin\nD /bin/plain\nA /made\n"
        assert f"Deleted: {id}" in store.says("rmi", "made:v1")
    finally:
        store.says("rm", "worker")


def test_a_container_that_only_runs_changes_nothing(store: Store) -> None:
    store.says("run", "--name", "idle", "small:v1", "true")
    assert store.says("diff", "idle") == ""
    store.says("rm", "idle")


def test_export_is_the_whole_tree(store: Store, tmp_path: Path) -> None:
    store.says("run", "--name", "full", "small:v1", "sh", "-c", "echo x >/x")
    store.says("export", "-o", str(tmp_path / "out.tar"), "full")
    store.says("rm", "full")
    listed = subprocess.run(
        ["tar", "-tf", tmp_path / "out.tar"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"x", "bin/busybox", "etc/passwd"} <= {name.rstrip("/") for name in listed}
