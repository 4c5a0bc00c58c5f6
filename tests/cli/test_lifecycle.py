"""`create start restart attach rename top logs`, restart policies, guests and their keys."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cli.store import Store
from cli.test_run import eventually


@pytest.fixture(params=["overlay2"])
def store(request: pytest.FixtureRequest, imported) -> Store:  # type: ignore[no-untyped-def]
    """One driver is enough: nothing here looks at layers."""
    found = Store(imported(request.param), request.param)
    yield found
    if ids := found.says("ps", "-aq").split():
        found.says("rm", "-f", *ids)
    for name in ("containers", "names"):
        assert list((found.root / name).glob("*")) == []


class Screen:
    """A command in a terminal of its own."""

    def __init__(self, argv: list[str], rows: int = 30, columns: int = 90) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execv(argv[0], argv)
        os.set_blocking(self.master, False)
        self.seen = b""

    def until(self, text: bytes, seconds: float = 20) -> None:
        """Read until a text is there."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, (text, self.seen)
            self.read(0.2)

    def read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:
            data = b""
        self.seen += data
        return bool(data)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def ends(self) -> int:
        """Read to the end; return the exit status."""
        end = time.monotonic() + 20
        while self.read(0.2):
            assert time.monotonic() < end, self.seen
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def guests(store: Store) -> int:
    """How many have been let in, ever."""
    return (store.root / "events.json").read_text().count('"Action":"attach"')


def state(store: Store, name: str, form: str = "{{.State.Status}}") -> str:
    return store.says("inspect", "-f", form, name).strip()


def test_create_and_start_are_run(store: Store, tmp_path: Path) -> None:
    cidfile = tmp_path / "cid"
    script = "echo out; echo err >&2; echo more >>/kept; cat /kept; exit 3"
    words = (
        "create",
        "--cidfile",
        str(cidfile),
        "--name",
        "box",
        "small:v1",
        "sh",
        "-c",
    )
    id = store.says(*words, script).strip()
    assert cidfile.read_text() == id
    assert state(store, "box") == "created"
    done = store("start", "-a", "box")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\nmore\n", "err\n")
    assert store.says("start", "box") == "box\n"
    assert store.says("wait", "box") == "3\n"
    assert store.says("logs", "box") == "out\nmore\nout\nmore\nmore\n"
    assert state(store, "box", "{{.State.Status}} {{.State.ExitCode}}") == "exited 3"
    assert store(*words[:2], str(cidfile), "small:v1", "true").returncode == 125


def test_start_is_loud_about_what_it_cannot_start(store: Store) -> None:
    store.says("create", "--name", "no", "small:v1", "nope")
    assert store("start", "no").returncode == 1
    assert state(store, "no", "{{.State.Status}} {{.State.ExitCode}}") == "created 127"
    assert "executable file not found" in store("start", "-a", "no").stderr
    assert store("start", "nobody").returncode == 1
    assert store("start", "-a", "no", "no").returncode == 1


def test_restart_starts_again_what_runs_and_what_does_not(store: Store) -> None:
    script = "echo born; exec sleep 60"
    store.says("run", "-d", "--rm", "--name", "box", "small:v1", "sh", "-c", script)
    before = state(store, "box", "{{.State.Pid}}")
    assert store.says("restart", "-t", "0", "box") == "box\n"
    assert state(store, "box", "{{.State.Pid}}") != before
    assert eventually(lambda: store.says("logs", "box") == "born\nborn\n")
    store.says("stop", "-t", "0", "box")
    assert store("inspect", "box").returncode == 1  # --rm holds again
    store.says("create", "--name", "idle", "small:v1", "sleep", "60")
    store.says("restart", "idle")
    assert state(store, "idle") == "running"


def test_a_name_is_changed_while_the_container_runs(store: Store) -> None:
    store.says("run", "-d", "--rm", "--name", "old", "small:v1", "sleep", "60")
    store.says("create", "--name", "taken", "small:v1", "true")
    assert store("rename", "old", "taken").returncode == 1
    assert store("rename", "old", "old").returncode == 1
    store.says("rename", "old", "new")
    assert store.says("ps", "--format", "{{.Names}}") == "new\n"
    assert store("inspect", "old").returncode == 1
    store.says("kill", "new")
    assert eventually(
        lambda: store.says("ps", "-a", "--format", "{{.Names}}") == "taken\n"
    )
    store.says("rename", "taken", "new")
    assert os.listdir(store.root / "names") == ["new"]


def test_a_guest_reads_types_and_leaves_by_two_keys(store: Store) -> None:
    script = "echo hello; while read word; do echo got $word; done; exit 4"
    screen = Screen(
        store.argv("run", "-it", "--name", "box", "small:v1", "sh", "-c", script)
    )
    screen.until(b"hello\r\n")
    screen.type(b"a\x10b\r")
    screen.until(b"got a\x10b")
    screen.type(b"\x10\x11")
    assert screen.ends() == 0
    assert state(store, "box") == "running"
    before = guests(store)
    second = Screen(store.argv("attach", "box"))
    third = Screen(store.argv("attach", "--detach-keys", "x,ctrl-y", "box"))
    assert eventually(lambda: guests(store) >= before + 2)
    second.type(b"c\r")
    for one in (second, third):
        one.until(b"got c\r\n")
        assert b"hello" not in one.seen
    third.type(b"x\x19")
    assert third.ends() == 1
    assert b"read escape sequence" in third.seen
    second.type(b"\x04")
    assert second.ends() == 4
    assert "exited 4" in state(store, "box", "{{.State.Status}} {{.State.ExitCode}}")


def test_a_guest_without_terminal_has_both_streams_and_the_end(store: Store) -> None:
    script = "while read word; do echo $word; echo $word >&2; done; exit 5"
    store.says("run", "-di", "--name", "box", "small:v1", "sh", "-c", script)
    done = subprocess.Popen(
        store.argv("attach", "box"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert done.stdin
    assert done.stdout
    assert done.stderr
    done.stdin.write(b"one\n")
    done.stdin.flush()
    assert (done.stdout.readline(), done.stderr.readline()) == (b"one\n", b"one\n")
    done.stdin.close()  # the container's input stays open: -d
    time.sleep(0.2)
    assert state(store, "box") == "running"
    done.send_signal(signal.SIGKILL)
    done.wait()
    before = guests(store)
    quiet = subprocess.Popen(
        store.argv("attach", "--no-stdin", "box"), stdout=subprocess.PIPE
    )
    assert eventually(lambda: guests(store) > before)
    store.says("kill", "box")
    assert quiet.wait(20) == 137
    done.stdout.close()
    done.stderr.close()
    assert quiet.stdout
    quiet.stdout.close()


def test_a_guest_that_does_not_read_makes_only_the_program_wait(store: Store) -> None:
    script = "read go; busybox yes"
    store.says("run", "-di", "--name", "box", "small:v1", "sh", "-c", script)
    lazy = subprocess.Popen(
        store.argv("attach", "box"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert lazy.stdin
    time.sleep(1)
    lazy.stdin.write(b"go\n")
    lazy.stdin.flush()
    time.sleep(0.5)
    store.says("stop", "-t", "0", "box")
    assert state(store, "box") == "exited"
    lazy.kill()
    lazy.communicate()


def test_signals_of_a_guest_are_the_program_s(store: Store) -> None:
    script = "trap 'exit 9' USR1; echo ready; while true; do sleep 0.1; done"
    store.says("create", "--name", "box", "small:v1", "sh", "-c", script)
    guest = subprocess.Popen(store.argv("start", "-a", "box"), stdout=subprocess.PIPE)
    assert guest.stdout
    assert guest.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    guest.send_signal(signal.SIGUSR1)
    assert guest.wait(20) == 9
    guest.stdout.close()
    plain = subprocess.Popen(
        store.argv(
            "run", "--sig-proxy=false", "--name", "two", "small:v1", "sh", "-c", script
        ),
        stdout=subprocess.PIPE,
    )
    assert plain.stdout
    assert plain.stdout.readline() == b"ready\n"
    plain.send_signal(signal.SIGINT)
    assert plain.wait(20) != 0
    assert state(store, "two") == "running"
    plain.stdout.close()


@pytest.mark.root
def test_what_cannot_be_attached_to_says_so(store: Store) -> None:
    store.says("create", "--name", "box", "small:v1", "sleep", "60")
    assert "start it first" in store("attach", "box").stderr
    store.says("start", "box")
    assert store("attach", "--detach-keys", "ctrl-1", "box").returncode == 1
    assert store("attach", "nobody").returncode == 1
    store.says("pause", "box")
    assert "unpause it first" in store("attach", "box").stderr
    assert "try unpause" in store("start", "box").stderr


def test_exec_in_the_background_and_with_keys(store: Store) -> None:
    store.says("run", "-d", "--name", "box", "small:v1", "sleep", "60")
    assert store.says("exec", "-d", "box", "sh", "-c", "echo x >/made") == ""
    assert eventually(lambda: store("exec", "box", "cat", "/made").stdout == "x\n")
    assert store("exec", "-d", "box", "nope").returncode == 1
    screen = Screen(
        store.argv("exec", "-it", "box", "sh", "-c", "echo in; read x; exit 7")
    )
    screen.until(b"in\r\n")
    screen.type(b"go\r")
    assert screen.ends() == 7
    screen = Screen(store.argv("exec", "-it", "box", "sh", "-c", "echo in; sleep 50"))
    screen.until(b"in\r\n")
    screen.type(b"\x10\x11")
    assert screen.ends() == 1
    assert "sleep 50" in store.says("top", "box")


def test_only_the_streams_of_a_are_attached(store: Store) -> None:
    script = "echo out; echo err >&2"
    for stream, wanted in (("STDOUT", ("out\n", "")), ("stderr", ("", "err\n"))):
        words = ("run", "--rm", "--network", "none", "-a", stream, "small:v1")
        done = store(*words, "sh", "-c", script)
        assert (done.stdout, done.stderr) == wanted
    assert store("run", "-a", "nope", "small:v1", "true").returncode == 125
    assert store("run", "-a", "stdout", "-d", "small:v1", "true").returncode == 125


def test_a_policy_restarts_what_fails_and_counts(store: Store) -> None:
    script = "echo life; exit 1"
    words = ("--restart", "on-failure:2", "small:v1", "sh", "-c", script)
    assert store("run", "--name", "box", *words).returncode == 1
    assert eventually(lambda: state(store, "box") == "exited")
    assert state(store, "box", "{{.RestartCount}}") == "2"
    assert store.says("logs", "box") == "life\n" * 3
    assert (
        store.says("run", "--restart", "on-failure", "small:v1", "echo", "x") == "x\n"
    )
    host = json.loads(state(store, "box", "{{json .HostConfig.RestartPolicy}}"))
    assert host == {"Name": "on-failure", "MaximumRetryCount": 2}


def test_a_container_that_is_stopped_stays_so(store: Store) -> None:
    words = ("-d", "--restart", "always")
    store.says("run", *words, "--name", "box", "small:v1", "false")
    store.says("run", *words, "--name", "calm", "small:v1", "sleep", "60")
    assert eventually(lambda: "Restarting (1)" in store.says("ps"))
    assert eventually(lambda: "restarting" in store("exec", "box", "true").stderr)
    store.says("stop", "box")
    store.says("kill", "calm")
    assert store.says("wait", "calm") == "137\n"
    time.sleep(0.5)
    assert (state(store, "box"), state(store, "calm")) == ("exited", "exited")
    store.says("start", "calm")
    assert state(store, "calm", "{{.RestartCount}}") == "0"


@pytest.mark.parametrize(
    "words",
    [
        ("--restart", "sometimes"), ("--restart", "always:3"), ("--restart", "on-failure:x"),
        ("--restart", "on-failure:-1"), ("--restart", "always", "--rm"),
        ("--log-driver", "smoke"), ("--log-opt", "max-size=x"), ("--log-opt", "max-file=0"),
        ("--log-opt", "colour=red"), ("--log-driver", "none", "--log-opt", "max-size=1k"),
        ("--cidfile", "/no/such/place"), ("--cidfile", "/etc/passwd"),
        ("--label-file", "/no/such"), ("--env-file", "/no/such"), ("-l", "=x"), ("--env-file", "/etc/services"),
        ("--stop-timeout", "x"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_anything_is_made(
    store: Store, words: tuple[str, ...]
) -> None:
    done = store("run", *words, "small:v1", "true")
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) <= 2
    assert store.says("ps", "-aq") == ""


@pytest.mark.root
def test_files_of_labels_groups_and_stop_timeout(store: Store, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.write_text("# none\na=1\n\nb=two words\n")
    words = (
        "--label-file",
        str(labels),
        "-l",
        "a=2",
        "--stop-timeout",
        "0",
        "--group-add",
        "7",
    )
    store.says("run", "-d", "--name", "box", *words, "small:v1", "sleep", "60")
    assert state(store, "box", "{{.Config.Labels}}") == "map[a:2 b:two words]"
    assert "7" in store.says("exec", "box", "id", "-G").split()
    assert "7" in store.says("exec", "-u", "www", "box", "id", "-G").split()
    begun = time.monotonic()
    store.says("stop", "box")
    assert time.monotonic() - begun < 8
    done = store("run", "--rm", "--group-add", "nope", "small:v1", "true")
    assert (done.returncode, "nope" in done.stderr) == (125, True)


def test_a_log_is_rotated_followed_and_cut_by_time(store: Store) -> None:
    script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i + 1)); done"
    words = ("--log-opt", "max-size=1k", "--log-opt", "max-file=3", "--name", "box")
    store.says("run", *words, "small:v1", "sh", "-c", script)
    lines = store.says("logs", "box").split("\n")
    assert lines[-2] == "line 59"
    assert 20 < len(lines) < 60
    logs = Path(state(store, "box", "{{.LogPath}}")).parent.glob("*.log*")
    assert len(list(logs)) == 3
    assert store.says("logs", "--tail", "15", "box").split("\n") == lines[-16:]
    assert store.says("logs", "--since", "1h", "--tail", "1", "box") == "line 59\n"
    assert store.says("logs", "--until", "1h", "box") == ""
    stamp = store.says("logs", "-t", "--tail", "2", "box").split()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp)
    assert store.says("logs", "--since", stamp, "box").endswith("line 58\nline 59\n")
    assert store("logs", "--since", "nonsense", "box").returncode == 1
    assert store("logs", "--tail", "nonsense", "box").returncode == 125
    slow = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i + 1)); sleep 0.01; done"
    store.says("run", "-d", *words[:4], "--name", "two", "small:v1", "sh", "-c", slow)
    assert store.says("logs", "-f", "two").split("\n")[:-1] == [
        f"line {n}" for n in range(60)
    ]
    store.says(
        "run", "--name", "mute", "--log-driver", "none", "small:v1", "echo", "hi"
    )
    assert "does not support reading" in store("logs", "mute").stderr


def test_ps_finds_what_the_filters_ask_for(store: Store) -> None:
    store.says(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "web-1",
        "-l",
        "a=1",
        "small:v1",
        "sleep",
        "60",
    )
    store("run", "--name", "web-2", "-l", "a=2", "small:v1", "false")
    store.says("create", "--name", "db", "small:v1", "true")

    def names(*filters: str, more: tuple[str, ...] = ("-a",)) -> list[str]:
        words = [word for text in filters for word in ("--filter", text)]
        return store.says("ps", *more, *words, "--format", "{{.Names}}").split()

    assert names() == ["db", "web-2", "web-1"]
    assert names("name=web") == ["web-2", "web-1"]
    assert names("name=^/web-1$") == ["web-1"]
    assert names("status=exited", more=()) == ["web-2"]
    assert names("status=created", "status=running") == ["db", "web-1"]
    assert names("label=a") == ["web-2", "web-1"]
    assert names("label=a=2") == ["web-2"]
    assert names("exited=1") == ["web-2"]
    assert names("ancestor=small:v1", "name=d") == ["db"]
    assert names("ancestor=other") == []
    assert names("before=web-2") == ["web-1"]
    assert names("since=web-2") == ["db"]
    assert names("network=none", more=()) == ["web-1"]
    assert names("health=none", more=()) == ["web-1"]
    assert names(more=("-n", "2")) == ["db", "web-2"]
    assert names(more=("-l",)) == ["db"]
    id = state(store, "db", "{{.Id}}")
    assert names(f"id={id[:9]}") == ["db"]
    for wrong in ("status=asleep", "health=fine", "colour=red", "exited=x"):
        assert store("ps", "--filter", wrong).returncode == 1, wrong
    assert store("ps", "--filter", "nonsense").returncode == 125


def test_top_shows_the_processes_as_the_host_counts_them(store: Store) -> None:
    store.says("run", "-d", "--name", "box", "small:v1", "sh", "-c", "sleep 61 & wait")
    heads, *rows = store.says("top", "box").splitlines()
    assert heads.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert sorted(row.split(None, 7)[7] for row in rows) == [
        "sh -c sleep 61 & wait",
        "sleep 61",
    ]
    pids = store.says("top", "box", "-o", "pid,cmd").splitlines()[1:]
    assert state(store, "box", "{{.State.Pid}}") in [row.split()[0] for row in pids]
    assert "PID field" in store("top", "box", "-o", "cmd").stderr
    assert "not allowed" in store("top", "box", "-o", "ppid=PID").stderr
    assert "error running ps" in store("top", "box", "-Z9").stderr


def test_a_supervisor_that_is_killed_takes_nothing_with_it(store: Store) -> None:
    """Its container dies, `ps` says so, and the files stay."""
    script = "echo kept >/kept; echo ready; exec sleep 600"
    words = (
        "run",
        "-d",
        "--restart",
        "always",
        "--name",
        "box",
        "small:v1",
        "sh",
        "-c",
        script,
    )
    store.says(*words)
    assert eventually(lambda: store.says("logs", "box") == "ready\n")
    pid = int(state(store, "box", "{{.State.Pid}}"))
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    before = guests(store)
    guest = subprocess.Popen(store.argv("attach", "box"))
    assert eventually(lambda: guests(store) > before)
    os.kill(parent, signal.SIGKILL)
    assert guest.wait(20) == 137
    assert "Exited (137)" in store.says("ps", "-a")
    assert "A /kept" in store.says("diff", "box")
    store.says("start", "box")
    assert store.says("exec", "box", "cat", "/kept") == "kept\n"
