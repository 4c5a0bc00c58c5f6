"""Real containers over a static busybox: what their processes see, and how they end."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from test_namespaces import Failed, apart, forked

from minidocker.drivers import Directory, RootView
from minidocker.joining import exec_in
from minidocker.linux import capset, start_time
from minidocker.mounts import is_first_user_namespace
from minidocker.namespaces import Bind
from minidocker.overlayfs import Overlay
from minidocker.program import Network, ProcessSpec
from minidocker.rootless import enter_user_namespace
from minidocker.runtime import Process, start


APPLETS = """
sh cat ls id hostname ip true false env pwd stat kill sleep ps head echo tty test wc
grep touch mkdir dd stty mount umount readlink sort chroot mknod tail od
"""
PASSWD = """\
root:x:0:0:root:/root:/bin/sh
web:x:1001:1002:Web:/srv/web:/bin/sh
odd:x::
"""


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of an image; nobody writes into it."""
    tree = tmp_path_factory.mktemp("image")
    for name in ("bin", "etc", "tmp", "root", "usr"):
        (tree / name).mkdir()
    tree.chmod(0o755)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for name in APPLETS.split():
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc/passwd").write_text(PASSWD)
    (tree / "etc/group").write_text("root:x:0:\nweb:x:1002:\nextra:x:1003:web\n")
    (tree / "tmp").chmod(0o1777)
    (tree / "bin/script").write_text("#!/nowhere/sh\n")
    (tree / "bin/script").chmod(0o755)
    (tree / "bin/text").write_text("no program\n")
    (tree / "bin/text").chmod(0o755)
    (tree / "bin/plain").write_text("not executable\n")
    return tree


@pytest.fixture
def view(busybox: Path, tmp_path: Path) -> RootView:
    """A writable union over the image."""
    for name in ("upper", "work", "rootfs"):
        (tmp_path / name).mkdir()
    (tmp_path / "upper").chmod(0o755)
    userxattr = os.geteuid() != 0 or not is_first_user_namespace()
    upper, work = str(tmp_path / "upper"), str(tmp_path / "work")
    return Overlay((str(busybox),), upper, work, userxattr=userxattr)


class Box:
    """Runs commands in containers of one view; used in a forked child."""

    def __init__(self, view: RootView, place: Path) -> None:
        self.view, self.rootfs = view, str(place / "rootfs")

    def start(self, *argv: str, **more: Any) -> tuple[Process, int]:
        """Start; return the process and the reading end of its output."""
        ours, theirs = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        spec = ProcessSpec(argv, view=self.view, rootfs=self.rootfs)
        spec = spec.replace(stdin=null, stdout=theirs, stderr=theirs).replace(**more)
        try:
            return start(spec), ours
        finally:
            os.close(theirs)
            os.close(null)

    def run(self, *argv: str, **more: Any) -> tuple[int, str]:
        """Run to the end, in a child; return status and output."""

        def body() -> tuple[int, str]:
            process, ours = self.start(*argv, **more)
            with open(ours) as file:
                text = file.read()
            return process.wait(), text

        return forked(body)

    def sh(self, script: str, **more: Any) -> str:
        """Return the output of a shell script."""
        return self.run("sh", "-c", script, **more)[1]


@pytest.fixture
def box(view: RootView, tmp_path: Path) -> Box:
    return Box(view, tmp_path)


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 42", 42), ("kill -KILL $$", 0), ("kill -9 1", 0)],
)
def test_the_status_is_the_program_s_own(box: Box, script: str, status: int):
    assert box.run("sh", "-c", script)[0] == status


def test_a_signal_from_outside_gives_128_and_its_number(box: Box):
    def body() -> int:
        process, _ = box.start("sleep", "60")
        os.kill(process.pid, signal.SIGKILL)
        return process.wait()

    assert forked(body) == 137


@pytest.mark.parametrize(
    ("program", "status", "text"),
    [
        ("nothere", 127, 'exec: "nothere": executable file not found in $PATH'),
        ("/bin/nothere", 127, "no such file or directory"),
        ("/bin/sh/x", 127, "not a directory"),
        ("/bin/script", 127, "the interpreter"),
        ("/bin/text", 126, "exec format error"),
        ("/bin/plain", 126, "permission denied"),
        ("/etc", 126, "is a directory"),
        ("/proc/self/exe", 126, "permission denied.*leads out of the container"),
    ],
)
def test_what_cannot_be_executed_is_told_apart(
    box: Box, program: str, status: int, text: str
):
    with pytest.raises(Failed, match="(?s)" + text.replace("$", r"\$")) as why:
        box.run(program)
    assert why.value.status == status


def test_a_plain_directory_serves_as_a_root(busybox: Path, tmp_path: Path):
    shutil.copytree(busybox, tmp_path / "tree", symlinks=True)
    (tmp_path / "rootfs").mkdir()
    box = Box(Directory(str(tmp_path / "tree")), tmp_path)
    assert box.sh("echo here >/tmp/file; cat /tmp/file") == "here\n"
    assert (tmp_path / "tree/tmp/file").read_text() == "here\n"


def test_the_environment_has_docker_s_defaults_and_ours(box: Box):
    text = box.run("env", env=("A=1", "B=", "C=x=y"), hostname="box")[1]
    assert sorted(text.splitlines()) == [
        "A=1",
        "B=",
        "C=x=y",
        "HOME=/root",
        "HOSTNAME=box",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]


def test_the_working_directory_is_made(box: Box):
    assert box.run("pwd", cwd="/a/new/place")[1] == "/a/new/place\n"


@pytest.mark.parametrize(
    "cwd", ["/proc/self/fd/7", "/proc/1/cwd", "/proc/self/root/.."]
)
def test_the_working_directory_does_not_lead_out(box: Box, cwd: str):
    """CVE-2024-21626."""
    with pytest.raises(Failed, match="cannot enter the working directory"):
        box.run("pwd", cwd=cwd)


@pytest.mark.root
@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", "0 0 0 /root"),
        ("web", "1001 1002 1002 1003 /srv/web"),
        ("1001", "1001 1002 1002 1003 /srv/web"),
        ("web:root", "1001 0 0 /srv/web"),
        ("1001:7", "1001 7 7 /srv/web"),
        ("4000", "4000 0 0 /"),
    ],
)
def test_users_are_the_image_s(box: Box, user: str, ids: str):
    lines = box.sh(
        "grep -E '^([UG]id|Groups)' /proc/self/status; echo $HOME", user=user
    )
    uid, gid, groups, home = (line.split() for line in lines.splitlines())
    assert [uid[1], gid[1], *groups[1:], home[0]] == ids.split()


@pytest.mark.parametrize(
    ("user", "text"),
    [
        ("odd", 'the line of "odd" is malformed'),
        ("nobody", 'unable to find user "nobody"'),
        ("0:nogroup", 'unable to find group "nogroup"'),
        ("-1", "is not between 0 and"),
        ("4294967295", "is not between 0 and"),
    ],
)
def test_a_user_who_is_not_there_is_an_error(box: Box, user: str, text: str):
    with pytest.raises(Failed, match=text):
        box.run("id", user=user)


def test_every_user_exists_with_root_and_without(box: Box):
    assert box.run("id", "-u", user="1001") == (0, "1001\n")
    assert box.run("id", "-g", user="0:7") == (0, "7\n")
    assert (
        box.run("sh", "-c", "grep CapEff /proc/self/status", user="1001")[1].split()[1]
        == "0" * 16
    )


def test_a_user_may_open_its_own_stderr(box: Box):
    assert box.run("sh", "-c", "echo x >/dev/stderr", user="web") == (0, "x\n")


def test_the_first_process_is_1_and_alone(box: Box):
    assert box.sh("echo $$; cd /proc; echo [0-9]*") == "1\n1\n"


def test_every_kind_of_namespace_is_its_own(box: Box):
    kinds = ["mnt", "pid", "uts", "ipc", "net", "cgroup"]
    inside = box.sh("for n in " + " ".join(kinds) + "; do readlink /proc/1/ns/$n; done")
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    assert len(inside.splitlines()) == len(kinds)
    assert not set(inside.splitlines()) & set(outside)


def test_the_network_is_a_loopback_that_is_up(box: Box):
    assert "UP" in box.sh("ip link show lo")
    assert "127.0.0.1" in box.sh("ip addr")
    assert box.sh("ls /sys/class/net") == "lo\n"


def test_the_host_s_network_can_be_kept(box: Box):
    text = box.sh("readlink /proc/1/ns/net; ls -d /sys/class", network=Network.HOST)
    assert text.splitlines()[0] == os.readlink("/proc/self/ns/net")
    assert text.splitlines()[1] == "/sys/class"


def test_the_host_name_is_set_inside_only(box: Box):
    before = os.uname().nodename
    assert box.run("hostname", hostname="inside")[1] == "inside\n"
    assert os.uname().nodename == before


def test_proc_is_masked_and_read_only_as_docker_s(box: Box):
    text = box.sh(
        "wc -c </proc/interrupts; wc -c </proc/timer_list; ls /sys/firmware | wc -l;"
        "echo x >/proc/sys/kernel/hostname; touch /sys/x"
    )
    assert text.splitlines()[:3] == ["0", "0", "0"]
    assert text.count("Read-only file system") == 2


def test_dev_has_docker_s_nodes_and_no_other(box: Box):
    text = box.sh("ls /dev; head -c 2 /dev/zero | od -An -tx1; ls /dev/pts")
    names = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty"
    assert text.splitlines()[:-2] == [*names.split(), "urandom", "zero"]
    assert text.splitlines()[-2:] == [" 00 00", "ptmx"]


def test_dev_shm_is_writable_and_64_mib(box: Box):
    assert box.sh("echo x >/dev/shm/f && cat /dev/shm/f") == "x\n"
    assert "size=65536k" in box.sh("grep /dev/shm /proc/mounts")


def test_no_descriptor_of_ours_is_inside(box: Box):
    def body() -> str:
        leak = os.open("/", os.O_RDONLY)
        os.set_inheritable(leak, True)
        process, ours = box.start("ls", "/proc/self/fd")
        with open(ours) as file:
            text = file.read()
        process.wait()
        return text

    assert forked(body).split() == ["0", "1", "2", "3"]  # 3 is what `ls` opened


def test_root_has_fourteen_capabilities_and_others_none(box: Box):
    def caps(**more: Any) -> dict[str, str]:
        lines = box.sh("grep Cap /proc/self/status", **more).splitlines()
        return dict(line.split(":\t") for line in lines)

    docker = "00000000a80425fb"
    root = caps()
    assert (root["CapBnd"], root["CapEff"], root["CapPrm"]) == (docker,) * 3
    assert (root["CapInh"], root["CapAmb"]) == ("0" * 16,) * 2
    if os.geteuid() == 0 and is_first_user_namespace():
        web = caps(user="web")
        assert (web["CapBnd"], web["CapEff"], web["CapPrm"]) == (
            docker,
            *["0" * 16] * 2,
        )


@pytest.mark.parametrize(
    "script",
    ["mount -t tmpfs t /tmp", "umount /proc", "chroot /proc/1/root/.. ls /work"],
)
def test_root_inside_cannot_undo_the_walls(box: Box, script: str):
    assert box.run("sh", "-c", script)[0] != 0


def test_a_volume_can_be_read_only(box: Box, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("data\n")
    source = str(tmp_path / "data")
    mounts = (Bind(source, "/ro", readonly=True), Bind(source, "/rw"))
    text = box.sh("cat /ro/file; echo x >/ro/file; echo new >/rw/new", mounts=mounts)
    assert text.splitlines()[0] == "data"
    assert "Read-only" in text
    assert (tmp_path / "data/new").read_text() == "new\n"


def test_a_volume_that_is_not_there_is_an_error(box: Box):
    with pytest.raises(Failed, match="no such path on the host") as why:
        box.run("true", mounts=(Bind("/not/there", "/data"),))
    assert why.value.status == 125


def test_the_root_can_be_read_only(box: Box):
    text = box.sh("echo x >/file; echo y >/dev/shm/f && echo fine", readonly=True)
    assert "Read-only" in text
    assert text.endswith("fine\n")


def test_a_link_in_the_image_does_not_redirect_a_mount(box: Box, tmp_path: Path):
    (tmp_path / "upper/proc").symlink_to("/etc")
    with pytest.raises(Failed, match="no directory to mount proc on"):
        box.run("true")


def test_ignored_signals_are_given_back(box: Box):
    def body() -> str:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        process, ours = box.start("grep", "SigIgn", "/proc/self/status")
        with open(ours) as file:
            text = file.read()
        process.wait()
        return text

    # 32 and 33 are the C library's own; nobody but it can set them
    assert int(forked(body).split()[1], 16) & 0x7FFF_FFFF == 0


def test_a_terminal_is_the_program_s_own(box: Box):
    def body() -> tuple[int, str]:
        process, _ = box.start("sh", "-c", "tty; test -t 0 && stty size", tty=True)
        text = b""
        while True:
            try:
                chunk = os.read(process.terminal, 4096)
            except OSError:
                break
            text += chunk
        return process.wait(), text.decode()

    status, text = forked(body)
    assert status == 0
    assert text.splitlines()[0] == "/dev/pts/0"


def test_the_container_dies_with_whoever_started_it(box: Box):
    def body() -> bool:
        ours, theirs = os.pipe()
        middle = os.fork()
        if middle == 0:
            process, _ = box.start("sleep", "60")
            os.write(theirs, b"%d" % process.pid)
            time.sleep(60)
        pid = int(os.read(ours, 20))
        assert start_time(pid)
        os.kill(middle, signal.SIGKILL)
        os.waitpid(middle, 0)
        for _ in range(200):
            if not start_time(pid):
                return True
            time.sleep(0.01)
        return False

    assert forked(body)


def exec_text(process: Process, *argv: str, **more: Any) -> tuple[int, str]:
    ours, theirs = os.pipe()
    null = os.open("/dev/null", os.O_RDONLY)
    spec = ProcessSpec(argv, stdin=null, stdout=theirs, stderr=theirs, **more)
    try:
        inner = exec_in(process.pid, spec)
    finally:
        os.close(theirs)
    with open(ours) as file:
        text = file.read()
    return inner.wait(), text


def test_exec_joins_the_container(box: Box):
    def body() -> list[tuple[int, str]]:
        process, _ = box.start("sleep", "60", hostname="box")
        results = [
            exec_text(process, "sh", "-c", "hostname; ls /proc/1/exe; exit 3"),
            exec_text(process, "sh", "-c", "echo $A; pwd", env=("A=1",), cwd="/tmp"),
            exec_text(process, "grep", "CapEff", "/proc/self/status"),
            exec_text(process, "ls", "/proc/self/fd"),
            exec_text(process, "sh", "-c", "kill -TERM $$"),
        ]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return results

    first, second, caps, fds, killed = forked(body)
    assert first == (3, "box\n/proc/1/exe\n")
    assert second == (0, "1\n/tmp\n")
    assert caps[1].split()[1] == "00000000a80425fb"
    assert fds[1].split() == ["0", "1", "2", "3"]
    assert killed[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("score", [0, 100])
def test_a_process_of_exec_is_in_the_container_unless_one_stands_between(
    box: Box, score: int
):
    def body() -> tuple[int, int, int]:
        process, _ = box.start("sleep", "60")
        spec = ProcessSpec(("sleep", "60"), oom_score_adj=score)
        inner = exec_in(process.pid, spec)
        status = Path(f"/proc/{inner.pid}/status").read_text()
        (line,) = (one for one in status.splitlines() if one.startswith("NSpid:"))
        visible = os.access("/proc/self/environ", os.R_OK)  # we hid for a moment
        owner = os.stat("/proc/self/environ").st_uid
        for one in (inner, process):
            os.kill(one.pid, signal.SIGKILL)
            one.wait()
        return len(line.split()) - 1, visible, owner

    spaces, visible, owner = forked(body)
    assert spaces == (1 if score or os.geteuid() else 2)  # a user needs the middle
    assert visible
    assert owner == 0


def test_exec_works_from_outside_the_user_namespace(box: Box):
    """As the user who made it, with a process that has not entered its namespace."""
    if os.geteuid() == 0:
        return  # root's containers have no user namespace
    ours, theirs = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            enter_user_namespace()
            process, _ = box.start("sleep", "60")
            os.write(theirs, b"%d" % process.pid)
            process.wait()
        finally:
            os._exit(0)
    pid = int(os.read(ours, 20))
    reading, writing = os.pipe()
    spec = ProcessSpec(("sh", "-c", "id -u; echo $$"), stdout=writing, stderr=writing)
    inner = exec_in(pid, spec)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    assert inner.wait() == 0
    assert text.splitlines()[0] == "0"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(middle, 0)


@pytest.mark.root
def test_exec_takes_a_user_of_the_image(box: Box):
    def body() -> tuple[int, str]:
        process, _ = box.start("sleep", "60")
        try:
            return exec_text(
                process, "sh", "-c", "id -u; echo >/dev/stderr", user="web"
            )
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    assert forked(body) == (0, "1001\n\n")


def test_exec_of_nothing_is_127(box: Box):
    def body() -> None:
        process, _ = box.start("sleep", "60")
        try:
            exec_text(process, "nothere")
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    with pytest.raises(Failed, match="executable file not found") as why:
        forked(body)
    assert why.value.status == 127


def test_without_a_right_to_namespaces_one_error_says_so(box: Box):
    def body() -> None:
        capset(0, 0, 0)  # a root that may not
        box.start("true")

    with pytest.raises(Failed, match=r"no new namespaces: clone3.*EPERM"):
        forked(body)


def test_mounts_of_a_container_are_not_seen_outside(box: Box):
    def body() -> tuple[str, str]:
        apart()
        before = Path("/proc/self/mountinfo").read_text()
        process, _ = box.start("sleep", "60")
        during = Path("/proc/self/mountinfo").read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return before, during

    before, during = forked(body)
    assert before == during
