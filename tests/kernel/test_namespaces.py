"""What a plan mounts, and that no image can redirect it."""

import ctypes
import doctest
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minidocker import namespaces, rootless
from minidocker.destinations import directory_in_root, file_in_root
from minidocker.errors import RuntimeFault
from minidocker.linux import CloneFlags, Prctl, prctl, unshare
from minidocker.mounts import is_first_user_namespace, mountinfo
from minidocker.namespaces import (
    Bind,
    Device,
    Filesystem,
    Link,
    Mask,
    ReadOnly,
    apply_mounts,
    keep_mounts_private,
    pivot,
)
from minidocker.rootless import enter_user_namespace
from minidocker.security import docker_mounts


def forked(body: Callable[[], Any]) -> Any:
    """Call ``body`` in a child that may mount; return its value, or raise its error."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            if os.geteuid():
                enter_user_namespace()
            answer = ("value", body())
        except BaseException as why:  # noqa: BLE001
            status = getattr(why, "status", None)
            answer = ("error", f"{type(why).__name__}: {why}", status)
        try:
            with open(theirs, "wb") as file:
                pickle.dump(answer, file)
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as file:
        kind, value, *status = pickle.load(file)
    os.waitpid(pid, 0)
    if kind == "error":
        raise Failed(value, *status)
    return value


class Failed(Exception):
    """What a child raised: its text and exit status."""

    def __init__(self, text: str, status: int | None) -> None:
        super().__init__(text)
        self.status = status


def apart() -> None:
    """Enter a mount namespace that is ours alone."""
    if os.geteuid() == 0:
        unshare(CloneFlags.NEWNS)
    keep_mounts_private()


@pytest.fixture
def root(tmp_path: Path):
    (tmp_path / "etc").mkdir()
    handle = os.open(tmp_path, os.O_PATH)
    yield handle
    os.close(handle)


def test_doctests_hold():
    assert doctest.testmod(namespaces).failed == 0


def test_a_link_in_the_image_never_leads_out(root: int, tmp_path: Path):
    (tmp_path / "etc/shadow").symlink_to("/../../../../etc/hostname")
    (tmp_path / "up").symlink_to("../../..")
    os.close(directory_in_root(root, "/up/made/here"))
    assert (tmp_path / "made/here").is_dir()
    os.close(file_in_root(root, "/etc/shadow"))
    assert (tmp_path / "etc/hostname").read_bytes() == b""


def test_a_file_is_made_where_a_link_to_nowhere_points(root: int, tmp_path: Path):
    (tmp_path / "etc/resolv.conf").symlink_to("../run/systemd/stub.conf")
    os.close(file_in_root(root, "/etc/resolv.conf"))
    assert (tmp_path / "run/systemd/stub.conf").is_file()


def test_links_in_a_circle_are_an_error(root: int, tmp_path: Path):
    (tmp_path / "etc/a").symlink_to("b")
    (tmp_path / "etc/b").symlink_to("a")
    with pytest.raises(OSError, match="ELOOP"):
        file_in_root(root, "/etc/a")
    with pytest.raises(OSError, match="ELOOP"):
        directory_in_root(root, "/etc/a")


@pytest.mark.parametrize("target", ["/etc", "/../../etc", "nowhere"])
def test_a_file_system_is_not_mounted_over_a_link(tmp_path: Path, target: str):
    (tmp_path / "etc").mkdir()
    (tmp_path / "proc").symlink_to(target)

    def body() -> None:
        apart()
        root = os.open(tmp_path, os.O_PATH)
        Filesystem("/proc", "tmpfs", namespaces.QUIET).apply(root)

    with pytest.raises(Failed, match="no directory to mount tmpfs on"):
        forked(body)


def test_a_read_only_bind_covers_the_mounts_below_it(tmp_path: Path):
    for name in ("root", "source/below"):
        (tmp_path / name).mkdir(parents=True)

    def body() -> list[str]:
        apart()
        source = os.open(tmp_path / "source", os.O_PATH)
        Filesystem("/below", "tmpfs", namespaces.QUIET).apply(source)
        root = os.open(tmp_path / "root", os.O_PATH)
        Bind(str(tmp_path / "source"), "/data", readonly=True).apply(root)
        refused = []
        for place in ("data/file", "data/below/file"):
            try:
                (tmp_path / "root" / place).write_text("x")
            except OSError as why:
                refused.append(why.strerror)
        (tmp_path / "source/below/file").write_text("the source stays writable")
        return refused

    assert forked(body) == ["Read-only file system"] * 2


def test_masks_hide_files_and_directories_and_skip_what_is_not_there(tmp_path: Path):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir/secret").write_text("secret")
    (tmp_path / "file").write_text("secret")

    def body() -> tuple[list[str], bytes]:
        apart()
        plan = (Mask("/dir"), Mask("/file"), Mask("/none"), ReadOnly("/none"))
        apply_mounts(plan, os.open(tmp_path, os.O_PATH))
        return os.listdir(tmp_path / "dir"), (tmp_path / "file").read_bytes()

    assert forked(body) == ([], b"")


def test_device_nodes_are_made_or_bound(tmp_path: Path):
    def body() -> tuple[bool, bytes, str]:
        apart()
        root = os.open(tmp_path, os.O_PATH)
        plan = (
            Filesystem("/dev", "tmpfs", namespaces.MountFlags.NOSUID, "mode=755"),
            Device("zero"),
            Link("core", "/proc/kcore"),
        )
        apply_mounts(plan, root)
        status = os.stat(tmp_path / "dev/zero")
        right = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 5)
        with open(tmp_path / "dev/zero", "rb") as file:
            return right, file.read(2), os.readlink(tmp_path / "dev/core")

    assert forked(body) == (True, b"\0\0", "/proc/kcore")


def test_after_the_pivot_the_old_tree_is_gone(tmp_path: Path):
    (tmp_path / "here").write_text("")
    (tmp_path / "in").mkdir()

    def body() -> tuple[list[str], list[str]]:
        apart()
        above = os.open(tmp_path, os.O_PATH)
        Filesystem("/in", "tmpfs", namespaces.QUIET).apply(above)
        root = os.open(tmp_path / "in", os.O_PATH)
        Bind("/proc", "/proc").apply(root)
        pivot(root)
        os.chdir("../../..")
        return os.listdir("."), [mount.target for mount in mountinfo()]

    names, targets = forked(body)
    assert names == ["proc"]
    assert {target.split("/")[1] for target in targets} == {"", "proc"}


def test_a_link_that_is_swapped_in_a_loop_never_leads_out(tmp_path: Path):
    """CVE-2021-30465: the destination is a directory now and a link a moment later."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for place in (root / "data", outside / "below", tmp_path / "source"):
        place.mkdir(parents=True)
    (root / "link").symlink_to(outside)
    (tmp_path / "source/here").touch()

    def swap() -> None:
        os.chdir(root)
        exchange = ctypes.CDLL(None).renameat2
        while True:
            exchange(-100, b"data", -100, b"link", 2)  # AT_FDCWD, RENAME_EXCHANGE

    def body() -> tuple[int, list[str]]:
        apart()
        racer = os.fork()
        if racer == 0:
            swap()
        handle, done = os.open(root, os.O_PATH), 0
        step = Bind(str(tmp_path / "source"), "/data/below")
        try:
            for _ in range(300):
                try:
                    step.apply(handle)
                    done += 1
                except (OSError, RuntimeFault):
                    pass
        finally:
            os.kill(racer, 9)
            os.waitpid(racer, 0)
        return done, [
            m.target for m in mountinfo() if m.target.startswith(str(tmp_path))
        ]

    done, targets = forked(body)
    assert done > 0
    assert not [t for t in targets if t.startswith(str(outside))]
    assert os.listdir(outside / "below") == []
    assert os.listdir(outside) == ["below"]


def test_the_plan_can_be_printed_and_is_docker_s():
    described = {step.describe()[0]: step.describe()[1:] for step in docker_mounts()}
    assert described["/proc"][0] == "proc"
    assert described["/dev/shm"] == (
        "tmpfs",
        "nosuid,nodev,noexec,mode=1777,size=65536k",
    )
    assert described["/proc/kcore"] == ("mask", "ro")
    assert described["/proc/sys"] == ("readonly", "ro")
    assert described["/sys"] == ("sysfs", "ro,nosuid,nodev,noexec")


def test_without_root_one_id_is_mapped():
    def body() -> tuple[int, list[str]]:
        if os.geteuid() == 0 and is_first_user_namespace():
            os.setresuid(4242, 4242, 4242)
            prctl(Prctl.SET_DUMPABLE, 1)  # the change of user took /proc/self away
            enter_user_namespace()
        return os.geteuid(), Path("/proc/self/uid_map").read_text().split()

    uid, mapped = forked(body)
    assert uid == 0
    assert (mapped[0], mapped[2]) == ("0", "1")
    assert mapped[1] != "0"


def test_the_error_names_what_forbids_user_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "limit").write_text("0\n")
    settings = ((str(tmp_path / "limit"), "0", "15000"),)
    monkeypatch.setattr(rootless, "FORBIDDERS", settings)
    assert "=15000`, or run as root" in rootless.why_no_user_namespace()
    (tmp_path / "limit").write_text("7\n")
    assert "limit" not in rootless.why_no_user_namespace()
