"""An error of a system call reads like the line that strace prints of it."""

import re
import subprocess
import sys
from pathlib import Path

from minidocker.linux import CloneFlags


CALLS = """
import os
from minidocker.calls import SysError
from minidocker.linux import CloneFlags, close_range, openat2
from minidocker.linux import pidfd_open, pivot_root, setns, syncfs
from minidocker.mounts import *

nosuid = MountFlags.RDONLY | MountFlags.NOSUID
for call in (
    lambda: mount("overlay", "/no where", "overlay", nosuid, "lowerdir=/a"),
    lambda: umount2("/no where", UmountFlags.DETACH | UmountFlags.NOFOLLOW),
    lambda: setns(-1, CloneFlags.NEWNS | CloneFlags.NEWUTS),
    lambda: pivot_root("/no where", "."),
    lambda: pidfd_open(4194305),
    lambda: fsopen("no such file system"),
    lambda: fsconfig_set_string(-1, "lowerdir+", "/a"),
    lambda: fsmount(-1, MountAttr.RDONLY),
    lambda: move_mount(-1, "/no where"),
    lambda: open_tree(AT_FDCWD, "/no where", OPEN_TREE_CLONE | AT_RECURSIVE),
    lambda: openat2(-1, "passwd", os.O_RDONLY),
    lambda: openat2(-1, "passwd", os.O_CREAT | os.O_WRONLY, mode=0o600),
    lambda: syncfs(-1),
    lambda: close_range(5, 3),
):
    try:
        call()
    except SysError as why:
        print(why)
"""
TRACED = (
    "mount,umount2,setns,pivot_root,pidfd_open,fsopen,fsconfig,fsmount,"
    "move_mount,open_tree,openat2,syncfs,close_range"
)


def test_an_error_reads_as_strace_prints_the_call(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    run = ["strace", "-qq", "-e", f"trace={TRACED}", "-o", str(trace)]
    done = subprocess.run(
        [*run, sys.executable, "-c", CALLS], capture_output=True, text=True, check=True
    )
    ours = done.stdout.splitlines()
    lines = trace.read_text().splitlines()
    theirs = [re.sub(r"\) +=", ") =", line) for line in lines if "= -1 E" in line]
    assert len(ours) == 14
    assert theirs == ours


def test_a_flag_that_nobody_knows_is_shown_as_a_number() -> None:
    assert (CloneFlags.NEWNS | CloneFlags(0x1)).strace() == "CLONE_NEWNS|0x1"
    assert CloneFlags(0).strace() == "0"
