"""What overlayfs does when this book mounts it, as root and in a user namespace."""

import mmap
import os
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from minidocker.errors import UnsupportedError
from minidocker.linux import CloneFlags, unshare
from minidocker.mounts import MountFlags, is_first_user_namespace, mount, mountinfo
from minidocker.overlayfs import (
    MAX_LOWERS,
    OPAQUE,
    Overlay,
    is_opaque,
    is_whiteout,
    mount_by_descriptor,
    mount_by_string,
    mount_overlay,
    overlay_mounted,
    supported,
)
from minidocker.rootless import enter_user_namespace


BOTH = pytest.mark.parametrize(
    "rootless",
    [
        pytest.param(False, id="root", marks=pytest.mark.root),
        pytest.param(True, id="userns"),
    ],
)
Work = Callable[[str], None]


def in_child(rootless: bool, work: Work) -> None:
    """Run ``work`` on an empty tmpfs, in namespaces of its own."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            enter(rootless)
            work("/tmp")
        except BaseException:  # noqa: BLE001  # noqa: BLE001
            said = traceback.format_exc()
        os.write(there, said.encode()[:60000])
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if said:
        pytest.fail(said)


def enter(rootless: bool) -> None:
    if rootless:
        enter_user_namespace()
    else:
        unshare(CloneFlags.NEWNS)
    mount(None, "/", None, MountFlags.PRIVATE | MountFlags.REC)
    mount("tmpfs", "/tmp", "tmpfs")


def directories(root: str, *names: str) -> list[str]:
    for name in names:
        os.makedirs(f"{root}/{name}")
    return [f"{root}/{name}" for name in names]


def numbered(root: str, count: int) -> tuple[str, ...]:
    """``count`` layers, top-first: each has its own file, and one that all have."""
    names = directories(root, *(f"layer-{n}" for n in range(count)))
    for n, name in enumerate(names):
        Path(name, f"f{n}").touch()
        Path(name, "all").write_text(str(n))
    return tuple(names)


@BOTH
def test_the_most_layers_are_one_tree(rootless: bool) -> None:
    def work(root: str) -> None:
        lowers = numbered(root, MAX_LOWERS)
        upper, workdir, merged = directories(root, "upper", "work", "merged")
        with overlay_mounted(
            Overlay(lowers, upper, workdir, userxattr=rootless), merged
        ):
            assert len(os.listdir(merged)) == MAX_LOWERS + 1
            assert Path(merged, "all").read_text() == "0"
            for n in range(MAX_LOWERS):
                assert os.path.exists(f"{merged}/f{n}")

    in_child(rootless, work)


@BOTH
def test_one_layer_too_many_is_refused_before_the_mount(rootless: bool) -> None:
    def work(root: str) -> None:
        with pytest.raises(UnsupportedError, match="501 layers"):
            mount_overlay(Overlay(("/nowhere",) * (MAX_LOWERS + 1)), root)

    in_child(rootless, work)


@BOTH
def test_the_kernel_takes_no_more_than_we_say(rootless: bool) -> None:
    def work(root: str) -> None:
        (merged,) = directories(root, "merged")
        with pytest.raises(UnsupportedError, match="500"):
            mount_by_descriptor(Overlay(numbered(root, MAX_LOWERS + 1)), merged)

    in_child(rootless, work)


@BOTH
def test_the_string_names_two_hundred_layers_of_any_name(rootless: bool) -> None:
    def work(root: str) -> None:
        lowers = numbered(f"{root}/a,b:c\\d {'long' * 20}", 200)
        upper, workdir, merged = directories(root, "up,per", "wo:rk", "merged")
        mount_by_string(Overlay(lowers, upper, workdir, userxattr=rootless), merged)
        assert len(os.listdir(merged)) == 201
        Path(merged, "new").touch()
        assert os.listdir(upper) == ["new"]

    in_child(rootless, work)


@BOTH
@pytest.mark.parametrize("make", [mount_by_descriptor, mount_by_string])
def test_without_an_upper_directory_it_is_read_only(
    make: Callable[[Overlay, str], None], rootless: bool
) -> None:
    def work(root: str) -> None:
        lowers = numbered(root, 2)
        (merged,) = directories(root, "merged")
        make(Overlay(lowers, userxattr=rootless), merged)
        with pytest.raises(OSError, match="Read-only file system"):
            Path(merged, "new").touch()

    in_child(rootless, work)


@BOTH
def test_one_directory_alone_is_no_union(rootless: bool) -> None:
    def work(root: str) -> None:
        (merged,) = directories(root, "merged")
        for lowers in (numbered(root, 1), ()):
            with pytest.raises(UnsupportedError):
                mount_overlay(Overlay(lowers), merged)

    in_child(rootless, work)


@BOTH
def test_deleting_leaves_a_whiteout_and_making_again_an_opaque_directory(
    rootless: bool,
) -> None:
    def work(root: str) -> None:
        lower, upper, workdir, merged = directories(
            root, "lower", "upper", "work", "merged"
        )
        directories(lower, "again", "kept")
        Path(lower, "gone").touch()
        with overlay_mounted(
            Overlay((lower,), upper, workdir, userxattr=rootless), merged
        ):
            os.unlink(f"{merged}/gone")
            os.rmdir(f"{merged}/again")
            os.mkdir(f"{merged}/again")
            os.chmod(f"{merged}/kept", 0o700)
        assert is_whiteout(os.lstat(f"{upper}/gone"))
        assert not is_whiteout(os.lstat("/dev/null"))
        assert is_opaque(f"{upper}/again")
        assert not is_opaque(f"{upper}/kept")
        assert os.getxattr(f"{upper}/again", OPAQUE[rootless]) == b"y"

    in_child(rootless, work)


@BOTH
def test_it_is_unmounted_after_a_failure_and_while_in_use(rootless: bool) -> None:
    def work(root: str) -> None:
        lowers = numbered(root, 2)
        (merged,) = directories(root, "merged")
        held = []

        def fail() -> None:
            with overlay_mounted(Overlay(lowers), merged):
                held.append(os.open(f"{merged}/f0", os.O_RDONLY))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert os.listdir(merged) == []
        assert not [
            m for m in mountinfo() if m.fstype == "overlay" and m.target == merged
        ]
        os.close(held[0])

    in_child(rootless, work)


@BOTH
def test_a_volatile_overlay_says_so_and_is_writable(rootless: bool) -> None:
    def work(root: str) -> None:
        lowers = numbered(root, 1)
        upper, workdir, merged = directories(root, "upper", "work", "merged")
        overlay = Overlay(lowers, upper, workdir, userxattr=rootless, volatile=True)
        with overlay_mounted(overlay, merged):
            Path(merged, "x").touch()
            (found,) = [m for m in mountinfo() if m.target == merged]
            assert "volatile" in found.super_options  # fsync=volatile, of late

    in_child(rootless, work)


@BOTH
def test_a_refusal_has_the_kernels_words_and_leaves_no_mount(rootless: bool) -> None:
    def work(root: str) -> None:
        (merged,) = directories(root, "merged")
        before = len(mountinfo())
        with pytest.raises(UnsupportedError) as refused:
            mount_by_descriptor(Overlay((f"{root}/no-such",)), merged)
        assert "no-such" in str(refused.value) or "lowerdir" in str(refused.value)
        assert refused.value.where == merged
        with pytest.raises(FileNotFoundError):
            mount_by_string(Overlay((f"{root}/no-such",)), merged)
        assert len(mountinfo()) == before

    in_child(rootless, work)


@BOTH
def test_supported_tries_it(rootless: bool) -> None:
    def work(root: str) -> None:
        assert is_first_user_namespace() is not rootless
        (scratch,) = directories(root, "scratch")
        supported(scratch)
        assert not [m for m in mountinfo() if m.target.startswith(scratch)]

    in_child(rootless, work)


def test_without_rights_it_is_refused_with_a_hint(tmp_path: Path) -> None:
    if os.geteuid() == 0:

        def work(root: str) -> None:
            os.setresuid(4242, 4242, 4242)
            denied("/usr", "/mnt")

        in_child(False, work)
    else:
        denied("/usr", str(tmp_path))


def denied(lower: str, target: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        mount_overlay(Overlay((lower,)), target)
    assert "root" in (refused.value.hint or "")


# What the model of chapter union says of the kernel, and does otherwise.


@BOTH
def test_the_kernel_lists_a_whiteout_that_hides_nothing(rootless: bool) -> None:
    def work(root: str) -> None:
        lower, upper, workdir, merged = directories(
            root, "lower", "upper", "work", "merged"
        )
        directories(lower, "d")
        for name in ("ghost", "d/ghost"):
            os.mknod(f"{lower}/{name}", stat.S_IFCHR, 0)
        with overlay_mounted(
            Overlay((lower,), upper, workdir, userxattr=rootless), merged
        ):
            assert os.listdir(merged) == ["d"]
            assert os.listdir(f"{merged}/d") == ["ghost"]
            assert not os.path.lexists(f"{merged}/d/ghost")

    in_child(rootless, work)


@BOTH
def test_names_of_a_copied_up_file_are_two_inodes_in_a_user_namespace(
    rootless: bool,
) -> None:
    def work(root: str) -> None:
        (lower,) = numbered(root, 1)
        upper, workdir, merged = directories(root, "upper", "work", "merged")
        with overlay_mounted(
            Overlay((lower,), upper, workdir, userxattr=rootless), merged
        ):
            os.link(f"{merged}/all", f"{merged}/also")
            assert os.path.samefile(f"{merged}/all", f"{merged}/also") is not rootless
            assert os.path.samefile(f"{upper}/all", f"{upper}/also")
            if rootless:
                with pytest.raises(OSError, match="Stale file handle"):
                    os.rename(f"{merged}/all", f"{merged}/also")
            else:
                os.rename(f"{merged}/all", f"{merged}/also")
            assert sorted(os.listdir(merged)) == ["all", "also", "f0"]

    in_child(rootless, work)


@BOTH
def test_a_map_of_a_lower_file_does_not_see_what_is_written(rootless: bool) -> None:
    """Who reads does, since Linux 4.19."""

    def work(root: str) -> None:
        (lower,) = numbered(root, 1)
        upper, workdir, merged = directories(root, "upper", "work", "merged")
        with overlay_mounted(
            Overlay((lower,), upper, workdir, userxattr=rootless), merged
        ):
            early = os.open(f"{merged}/all", os.O_RDONLY)
            mapped = mmap.mmap(early, 0, mmap.MAP_SHARED, mmap.PROT_READ)
            Path(merged, "all").write_text("9")
            assert os.pread(early, 9, 0) == b"9"
            assert mapped[:1] == b"0"
            late = os.open(f"{merged}/all", os.O_RDONLY)
            again = mmap.mmap(late, 0, mmap.MAP_SHARED, mmap.PROT_READ)
            assert again[:1] == b"9"
            for held in (mapped, again):
                held.close()
            for descriptor in (early, late):
                os.close(descriptor)

    in_child(rootless, work)
