# From book/130-base.md. Edit there and tangle, or here and tangle --back.

# %% Base: a root tree from this machine
"""Make a small root tree from this machine's programs, and a Python in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence

from minidocker.elf import closure, is_static, read_elf
from minidocker.errors import ConflictError, NotFoundError


# %% What every root has
DIRECTORIES = (
    ("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("home", 0o755), ("lib", 0o755),
    ("proc", 0o555), ("root", 0o700), ("run", 0o755), ("sbin", 0o755),
    ("sys", 0o555), ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755),
    ("usr/lib", 0o755), ("usr/sbin", 0o755), ("var", 0o755), ("var/tmp", 0o1777),
)  # fmt: skip
FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
    ),
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "",
    "etc/hostname": "",
    "etc/resolv.conf": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/os-release": 'ID=minidocker\nPRETTY_NAME="minidocker base"\n',
}


# %% What every root has
def make_skeleton(tree: str) -> None:
    """Make the directories and files of a root in ``tree``, which must be empty."""
    os.makedirs(tree, exist_ok=True)
    if os.listdir(tree):
        raise ConflictError("the directory is not empty", where=tree)
    os.chmod(tree, 0o755)  # noqa: S103
    for name, mode in DIRECTORIES:
        os.mkdir(f"{tree}/{name}")
        os.chmod(f"{tree}/{name}", mode)
    for name, text in FILES.items():
        with open(f"{tree}/{name}", "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(f"{tree}/{name}", 0o644)


# %% What every root has
BIRTHDAY = 1_363_305_600  # 15 March 2013: Docker's first public showing


def set_times(tree: str) -> None:
    """Give every file of a tree one fixed time, the directories last."""
    for head, directories, files in os.walk(tree, topdown=False):
        for name in (*files, *directories):
            os.utime(f"{head}/{name}", (BIRTHDAY, BIRTHDAY), follow_symlinks=False)
    os.utime(tree, (BIRTHDAY, BIRTHDAY))


# %% Programs
CHOSEN = [
    "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname",
    "du", "echo", "env", "expr", "false", "find", "grep", "head", "hostname", "id",
    "ip", "kill", "ln", "ls", "md5sum", "mkdir", "mktemp", "mount", "mv", "nproc",
    "od", "printf", "ps", "pwd", "readlink", "realpath", "rm", "rmdir", "sed", "seq",
    "sh", "sha256sum", "sleep", "sort", "stat", "tail", "tar", "tee", "test", "touch",
    "tr", "true", "tty", "umount", "uname", "uniq", "wc", "which", "whoami", "xargs",
    "yes",
]  # fmt: skip
SEARCHED = ("/bin", "/usr/bin", "/sbin", "/usr/sbin")


def find_program(name: str) -> str | None:
    """Return the path of a program of this machine, links followed, or None."""
    places = (f"{directory}/{name}" for directory in SEARCHED)
    found = next((path for path in places if os.access(path, os.X_OK)), None)
    return os.path.realpath(found) if found else None


# %% Programs
def static_busybox() -> str | None:
    """Return the path of a busybox that needs no library, or None."""
    found = find_program("busybox")
    return found if found and is_static(found) else None


def add_busybox(tree: str, busybox: str) -> None:
    """Copy busybox into a tree, and link the names that it answers to."""
    copy_program(busybox, f"{tree}/bin/busybox")
    listed = subprocess.run(
        [busybox, "--list-full"], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.split():
        os.makedirs(os.path.dirname(f"{tree}/{line}"), exist_ok=True)
        if not os.path.lexists(f"{tree}/{line}"):
            os.symlink("/bin/busybox", f"{tree}/{line}")


def copy_program(source: str, target: str) -> None:
    """Copy a program or library, readable for everybody, never set-uid."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755)  # noqa: S103


# %% Programs
def add_closure(tree: str, programs: Iterable[str]) -> None:
    """Copy programs and all that they need into a tree, at the paths they have."""
    for path in closure(programs):
        if not os.path.lexists(tree + path):
            copy_program(path, tree + path)


def add_programs(tree: str, names: Sequence[str] = CHOSEN) -> None:
    """Copy the programs of this machine that are there, with their libraries."""
    for name in names:
        if (path := find_program(name)) is None:
            continue
        target = f"{tree}/bin/{name}"
        if read_elf(path) is not None and not os.path.lexists(target):
            copy_program(path, target)
            add_closure(tree, [p for p in closure([path]) if p != path])


# %% Programs
def make_base(target: str) -> None:
    """Make a root tree with a shell and common programs in the directory ``target``.

    It is made if it is missing, and must be empty. Needs no right: the files belong to
    whoever calls. Raises NotFoundError on a machine without a shell.
    """
    make_skeleton(target)
    if busybox := static_busybox():
        add_busybox(target, busybox)
    else:
        add_programs(target)
    if not os.path.lexists(f"{target}/bin/sh"):
        hint = "install busybox-static"
        raise NotFoundError("this machine has no shell to copy", hint=hint)
    set_times(target)


# %% A Python
UNWANTED = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3",
    "__pycache__", "site-packages", "dist-packages",
}  # fmt: skip


def version_directory() -> str:
    """Return ``python3.X``, the name of the standard library's directory."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def standard_files(library: str) -> Iterator[str]:
    """Yield the paths below the standard library that are worth copying, sorted."""
    for head, directories, files in os.walk(library):
        directories[:] = sorted(set(directories) - UNWANTED)
        for name in sorted(files):
            if not name.endswith((".pyc", ".a", ".o")):
                yield os.path.relpath(f"{head}/{name}", library)


def copy_tree_of_files(source: str, target: str, names: Iterable[str]) -> None:
    """Copy files by their relative paths; what is a link becomes a file."""
    for name in names:
        os.makedirs(os.path.dirname(f"{target}/{name}"), exist_ok=True)
        shutil.copyfile(f"{source}/{name}", f"{target}/{name}")
        os.chmod(f"{target}/{name}", 0o644)


# %% A Python
def add_python(
    tree: str, *, prefix: str = "/usr", packages: Sequence[str] = ()
) -> None:
    """Copy this machine's Python into a tree, below ``prefix``, absolute in the tree.

    ``packages`` are directories of importable packages to copy with it.
    """
    name = version_directory()
    interpreter = os.path.realpath(f"{sys.base_prefix}/bin/{name}")
    if not os.path.exists(interpreter):
        interpreter = os.path.realpath(sys.executable)
    home = tree + prefix
    copy_program(interpreter, f"{home}/bin/python3")
    library = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix})
    copy_tree_of_files(library, f"{home}/lib/{name}", standard_files(library))
    site = f"{home}/lib/{name}/site-packages"
    os.makedirs(site, exist_ok=True)
    for package in packages:
        target = f"{site}/{os.path.basename(package)}"
        copy_tree_of_files(package, target, standard_files(package))
    link_name = f"{home}/lib/{name}/dist-packages"  # where Debian's Python looks
    os.symlink("site-packages", link_name)
    add_libraries(tree, interpreter, library)
    set_times(tree)


def add_libraries(tree: str, interpreter: str, library: str) -> None:
    """Copy what an interpreter and its extension modules need."""
    modules = [f"{library}/{n}" for n in standard_files(library) if n.endswith(".so")]
    needed = closure([interpreter, *modules])
    add_closure(tree, [p for p in needed if p not in (interpreter, *modules)])
