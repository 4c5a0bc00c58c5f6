"""Containers from create to remove: attached, detached, killed, looked at."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_namespaces import Failed, apart, forked
from test_running import busybox  # noqa: F401

from minidocker import restarts
from minidocker.archive import pack
from minidocker.background import run_detached
from minidocker.blueprint import complete_config
from minidocker.containers import Container, ContainerStore, Status
from minidocker.door import STOPPED, make_mark
from minidocker.drivers import DRIVERS
from minidocker.durable import Batch
from minidocker.errors import ConflictError, MinidockerError, NotFoundError
from minidocker.executing import exec_foreground
from minidocker.images import ImageStore
from minidocker.layers import LayerStore
from minidocker.lifecycle import kill, remove, stop, sweep_containers, wait
from minidocker.linux import start_time
from minidocker.logs import logs
from minidocker.oci import ContainerConfig, ImageConfig
from minidocker.program import HostConfig, Network, ProcessSpec
from minidocker.pump import Client
from minidocker.supervisor import Supervisor, run_foreground


class World:
    """A store with one image; its methods are called in a forked child."""

    def __init__(self, root: str, driver: str) -> None:
        batch = Batch(root, f"{root}/tmp")
        kept = DRIVERS[driver](root)
        self.layers = LayerStore(root, kept, batch)
        self.images = ImageStore(root, driver, batch)
        self.store = ContainerStore(root, self.layers, self.images)

    def make_image(self, tar: Path) -> None:
        with open(tar, "rb") as file:
            layer = self.layers.add(file.read)
        assert layer
        config = ContainerConfig(env=("PATH=/bin",), cmd=("sh",), stop_signal="USR1")
        image = ImageConfig(config=config, diff_ids=(layer.diff_id,))
        self.images.add(image, None)

    def create(self, script: str, *, name: str = "", **more: Any) -> Container:
        [image] = self.images.ids()
        host = {k: more.pop(k) for k in list(more) if k in HostConfig.__match_args__}
        own = ContainerConfig(cmd=("sh", "-c", script), **more)
        whole = complete_config(self.images.get(image).config or ContainerConfig(), own)
        return self.store.create(image, whole, HostConfig(**host), name)

    def foreground(self, container: Container, given: bytes = b"") -> tuple[int, bytes]:
        """Run attached to a file; return status and output."""
        source, theirs = os.pipe()
        os.write(theirs, given)
        os.close(theirs)
        out = os.memfd_create("out")
        status = run_foreground(self.store, container, Client(source, out, out))
        return status, os.pread(out, 1 << 20, 0)

    def execute(
        self, container: Container, *argv: str, **more: Any
    ) -> tuple[int, bytes]:
        out = os.memfd_create("out")
        null = os.open("/dev/null", os.O_RDONLY)
        spec = ProcessSpec(argv, cwd="", **more)
        client = Client(null, out, out)
        status = exec_foreground(self.store, container, spec, client)
        return status, os.pread(out, 1 << 20, 0)

    def said(self, container: Container) -> list[str]:
        return [entry.log for entry in logs(self.store, container)]


@pytest.fixture(params=["overlay2", "vfs"], scope="session")
def world(
    request: pytest.FixtureRequest,
    busybox: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    root = tmp_path_factory.mktemp("store")
    with open(root / "image.tar", "wb") as file:
        pack(str(busybox), file.write)
    forked(lambda: World(str(root), request.param).make_image(root / "image.tar"))
    return World(str(root), request.param)


def inside(world: World, body: Callable[[World], Any]) -> Any:
    """Call ``body`` in a child, in a mount namespace of its own; nothing may stay."""

    def whole() -> Any:
        apart()
        fresh = World(os.path.dirname(world.store.root), world.layers.driver.name)
        value = body(fresh)
        for container, _ in fresh.store.list():
            remove(fresh.store, container, force=True)
        assert os.listdir(fresh.store.root) == []
        assert os.listdir(fresh.store.names) == []
        assert os.listdir(fresh.layers.mounts) == []
        return value

    return forked(whole)


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def test_a_container_runs_attached_and_leaves_a_record(world: World):
    def body(w: World) -> Any:
        box = w.create("echo out; echo err >&2; exit 7", name="box")
        created = w.store.state(box.id).status
        result = w.foreground(box)
        state = w.store.state(box.id)
        fields = state.status, state.exit_code, state.pid
        return created, result, fields, state.started < state.finished, w.said(box)

    created, (status, out), fields, ordered, said = inside(world, body)
    assert created is Status.CREATED
    assert (status, sorted(out.split())) == (7, [b"err", b"out"])
    assert fields == (Status.EXITED, 7, 0)
    assert ordered
    assert sorted(said) == ["err\n", "out\n"]


def test_what_it_wrote_is_there_at_the_next_start(world: World):
    def body(w: World) -> Any:
        box = w.create("cat /file 2>/dev/null; echo kept >/file")
        paths = []
        w.foreground(box)
        paths = [change.path for change in w.layers.changes(box.id)]
        return w.foreground(box)[1], paths

    out, paths = inside(world, body)
    assert out == b"kept\n"
    assert "/file" in paths


def test_input_is_passed_on_only_with_i(world: World):
    def body(w: World) -> Any:
        given = b"line\n" * 50000  # more than a pipe holds
        with_i = w.foreground(w.create("wc -c", open_stdin=True), b"line\n")
        without = w.foreground(w.create("wc -c"), b"line\n")
        return with_i, without, len(given)

    with_i, without, _ = inside(world, body)
    assert with_i == (0, b"5\n")
    assert without == (0, b"0\n")


def test_much_output_comes_whole_and_in_order(world: World):
    def body(w: World) -> Any:
        box = w.create("head -c 3000000 /dev/zero")
        out = os.memfd_create("out")
        run_foreground(w.store, box, Client(-1, out, out))
        return os.fstat(out).st_size

    assert inside(world, body) == 3000000


def test_with_rm_nothing_is_left_and_the_status_can_still_be_waited_for(world: World):
    def body(w: World) -> Any:
        box = w.create("sleep 0.3; exit 5", auto_remove=True)
        run_detached(w.store, box)
        status = wait(w.store, box)
        until(lambda: not w.store.ids())
        return status

    assert inside(world, body) == 5


@pytest.mark.parametrize("auto_remove", [False, True])
def test_a_command_that_is_not_there(world: World, auto_remove: bool):
    def body(w: World) -> Any:
        box = w.create("", auto_remove=auto_remove)
        box = box.replace(config=box.config.replace(cmd=("nothere",)))
        try:
            w.foreground(box)
        except MinidockerError as why:
            if auto_remove:
                return why.status, w.store.ids(), ""
            state = w.store.state(box.id)
            return why.status, [], (state.status, state.exit_code, state.error)
        return None

    status, ids, state = inside(world, body)
    assert status == 127
    assert ids == []
    if not auto_remove:
        assert state[:2] == (Status.CREATED, 127)
        assert "executable file not found" in state[2]


def test_the_config_files_are_docker_s_and_inside(world: World):
    def body(w: World) -> Any:
        script = "hostname; cat /etc/hostname; grep -c localhost /etc/hosts"
        box = w.create(script, name="named")
        with open(w.store.path(box.id, "config.v2.json")) as file:
            found = json.load(file)
        return box.id, found, w.foreground(box)[1].decode().split()

    id, found, said = inside(world, body)
    assert (found["ID"], found["Name"], found["Path"]) == (id, "/named", "sh")
    assert found["Config"]["Env"] == ["PATH=/bin"]
    assert said == [id[:12], id[:12], "2"]


def test_a_volume_and_a_read_only_root(world: World, tmp_path: Path):
    (tmp_path / "data").mkdir()

    def body(w: World) -> Any:
        binds = (f"{tmp_path}/data:/data",)
        script = "echo new >/data/new; echo x >/x"
        return w.foreground(w.create(script, binds=binds, readonly=True))[1]

    assert b"Read-only" in inside(world, body)
    assert (tmp_path / "data/new").read_text() == "new\n"


def test_a_detached_container_is_found_stopped_and_removed(world: World):
    def body(w: World) -> Any:
        script = (
            "trap 'echo bye; exit 3' USR1; echo ready; while :; do sleep 0.01; done"
        )
        box = w.create(script, name="service")
        run_detached(w.store, box)
        running = w.store.state(box.id)
        until(lambda: w.said(box) == ["ready\n"])
        found = [w.store.resolve(t).id == box.id for t in ("service", box.id[:5])]
        try:
            remove(w.store, box)
            refused = ""
        except ConflictError as why:
            refused = str(why)
        stop(w.store, box, 5)
        state = w.store.state(box.id)
        ended = state.status, state.exit_code
        return running.status, found, refused, ended, w.said(box)

    status, found, refused, ended, said = inside(world, body)
    assert status is Status.RUNNING
    assert found == [True, True]
    assert "cannot remove" in refused
    assert ended == (Status.EXITED, 3)
    assert said == ["ready\n", "bye\n"]


def test_one_who_ignores_the_stop_signal_is_killed(world: World):
    def body(w: World) -> Any:
        box = w.create("while :; do sleep 0.01; done")
        run_detached(w.store, box)
        stop(w.store, box, 0.1)
        try:
            kill(w.store, box, signal.SIGTERM)
        except ConflictError as why:
            return w.store.state(box.id).exit_code, str(why)
        return None

    code, said = inside(world, body)
    assert code == 137
    assert "is not running" in said


def test_it_cannot_run_twice_at_once(world: World):
    def body(w: World) -> Any:
        box = w.create("sleep 60")
        run_detached(w.store, box)
        try:
            run_detached(w.store, box)
        except MinidockerError as why:
            return str(why)
        return ""

    assert "is running" in inside(world, body)


def test_a_detached_start_that_fails_says_why(world: World):
    def body(w: World) -> Any:
        box = w.create("")
        try:
            run_detached(w.store, box.replace(config=box.config.replace(cmd=("no",))))
        except MinidockerError as why:
            return why.status
        return 0

    assert inside(world, body) == 127


def test_a_killed_supervisor_leaves_exited_137_and_nothing_else(world: World):
    def body(w: World) -> Any:
        box = w.create("echo up; sleep 60")
        supervisor = os.fork()
        if supervisor == 0:
            run_foreground(w.store, box, Client(-1, -1, -1))
            os._exit(0)
        until(lambda: w.said(box) == ["up\n"])
        state = w.store.state(box.id)
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)
        until(lambda: start_time(state.pid) == 0)
        after = w.store.state(box.id)
        return after.status, after.exit_code, wait(w.store, box)

    assert inside(world, body) == (Status.EXITED, 137, 137)


def test_signals_are_forwarded(world: World):
    def body(w: World) -> Any:
        script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done"
        box = w.create(script)
        supervisor = os.fork()
        if supervisor == 0:
            os._exit(run_foreground(w.store, box, Client(-1, -1, -1)))
        until(lambda: w.said(box) == ["up\n"])
        os.kill(supervisor, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1])

    assert inside(world, body) == 9


def test_exec_has_the_container_s_environment_and_its_own(world: World):
    def body(w: World) -> Any:
        box = w.create("sleep 60", env=("A=1",), working_dir="/usr")
        run_detached(w.store, box)
        return [
            w.execute(box, "sh", "-c", "echo $A $B; pwd; exit 4", env=("B=2",)),
            w.execute(box, "sh", "-c", "echo $$ >/dev/stderr"),
            w.execute(box, "tty", tty=True),
        ]

    first, second, terminal = inside(world, body)
    assert first == (4, b"1 2\n/usr\n")
    assert second[0] == 0
    assert terminal == (0, b"/dev/pts/0\r\n")


def test_exec_needs_a_running_container(world: World):
    def body(w: World) -> None:
        w.execute(w.create("true"), "true")

    with pytest.raises(Failed, match="is not running"):
        forked(
            lambda: body(
                World(os.path.dirname(world.store.root), world.layers.driver.name)
            )
        )
    inside(world, lambda w: None)


def test_a_log_is_followed_to_the_end(world: World):
    def body(w: World) -> Any:
        box = w.create("for i in 1 2 3; do echo $i; sleep 0.1; done; printf end")
        run_detached(w.store, box)
        followed = [entry.log for entry in logs(w.store, box, follow=True)]
        last = [entry.log for entry in logs(w.store, box, tail=2)]
        return followed, last, [e.log for e in logs(w.store, box, tail=0)]

    followed, last, none = inside(world, body)
    assert followed == ["1\n", "2\n", "3\n", "end"]
    assert (last, none) == (["3\n", "end"], [])


def test_a_detached_container_keeps_nothing_of_its_starter_open(world: World):
    """``$(minidocker run -d ...)`` must return, and the store's lock be free."""

    def body(w: World) -> Any:
        ours, theirs = os.pipe()
        os.set_inheritable(theirs, True)
        box = w.create("sleep 60")
        run_detached(w.store, box)
        os.close(theirs)
        return os.read(ours, 1)

    assert inside(world, body) == b""


def test_a_terminal_carries_keys_size_and_signals(world: World):
    def body(w: World) -> Any:
        script = "trap 'exit 6' INT; stty size; read a; echo got $a; sleep 60 & wait"
        box = w.create(script, tty=True, open_stdin=True)
        pid, master = pty.fork()
        if pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
            os._exit(run_foreground(w.store, box))
        text = b""
        keys = [(b"33 77", b"key\r"), (b"got key", b"\x03")]
        while keys:
            text += os.read(master, 1000)
            if keys[0][0] in text:
                os.write(master, keys.pop(0)[1])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text

    status, text = inside(world, body)
    assert b"got key" in text
    assert status == 6


@pytest.mark.root
def test_a_user_of_the_image_may_write_to_its_stderr(world: World):
    def body(w: World) -> Any:
        return w.foreground(w.create("id -u; echo e >/dev/stderr", user="1001"))

    assert inside(world, body) == (0, b"1001\ne\n")


def test_a_name_is_taken_once_and_a_failed_create_leaves_nothing(world: World):
    def body(w: World) -> Any:
        w.create("true", name="one")
        try:
            w.create("true", name="one")
        except ConflictError as why:
            return str(why), len(os.listdir(w.store.root)), os.listdir(w.layers.mounts)
        return None

    said, count, mounts = inside(world, body)
    assert "already in use" in said
    assert count == len(mounts) == 1


def test_what_a_crash_left_is_swept(world: World):
    def body(w: World) -> Any:
        half = w.create("true", name="half")
        os.unlink(w.store.path(half.id, "config.v2.json"))
        os.utime(w.store.path(half.id), (0, 0))
        ended = w.create("true", auto_remove=True)
        kept = w.create("true", name="kept")
        supervisor = os.fork()
        if supervisor == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(supervisor, 0)
        sweep_containers(w.store)
        return half.id in os.listdir(w.store.root), ended.id, kept.id, w.store.ids()

    half, ended, kept, ids = inside(world, body)
    assert not half
    assert kept in ids
    assert ended in ids  # it was never started


def test_what_is_not_there_is_named(world: World):
    def body(w: World) -> Any:
        said = []
        for text in ("nobody", "0" * 64, "../names", ""):
            try:
                w.store.resolve(text)
            except NotFoundError as why:
                said.append(why.what)
        return said

    assert inside(world, lambda w: (w.create("true"), body(w))[1])[0] == (
        "no such container: nobody"
    )


def test_the_path_of_run_imports_little():
    heavy = (
        "typing dataclasses pathlib argparse subprocess socket hashlib shutil tempfile"
    )
    code = "import sys, minidocker.supervisor; print(*sys.modules)"
    run = [sys.executable, "-S", "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert not set(heavy.split()) & set(done.stdout.split())


def test_the_host_s_network_brings_the_host_s_names(world: World):
    def body(w: World) -> Any:
        return w.foreground(w.create("cat /etc/hosts", network=Network.HOST))[1]

    assert inside(world, body) == Path("/etc/hosts").read_bytes()


def test_who_is_stopped_between_two_lives_does_not_live_on(world: World) -> None:
    """The mark comes when the supervisor has looked for it, and no process is named."""

    def body(w: World) -> object:
        script = "[ -e /again ] || exec touch /again; exec sleep 50"
        box = w.create(script, restart="always")
        looked = restarts.rest

        def rest(keeper: Supervisor, code: int) -> bool:
            again = looked(keeper, code)
            make_mark(w.store, box, STOPPED)
            return again

        restarts.rest = rest
        run_foreground(w.store, box)
        state = w.store.state(box.id)
        return state.status.value, state.exit_code, state.restarts

    assert inside(world, body) == ("exited", 137, 1)
