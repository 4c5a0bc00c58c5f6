"""Where something forbids containers without root: `info` and `run` name what it is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.somebody import HERE, User, somebody
from cli.store import Store


pytestmark = pytest.mark.root
FILTER = """
import os, sys
from minidocker.seccomp import *
rule = Rule(("unshare",), ERRNO | 1)
load_filter(compile_profile(Profile(ALLOW, (rule,)), this_machine()))
os.execv(sys.argv[1], sys.argv[1:])
"""
LIMIT = """
import os, sys
from minidocker.idmaps import user_namespace
from minidocker.linux import CloneFlags, setns
everybody = ((0, 0, 65536),)
setns(user_namespace(everybody, everybody), CloneFlags.NEWUSER)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
os.execv(sys.argv[1], sys.argv[1:])
"""
# the kernel counts in every namespace above: the limit of an outer one is met inside
OUTER = LIMIT.replace(
    "os.execv",
    "setns(user_namespace(everybody, everybody), CloneFlags.NEWUSER)\nos.execv",
).replace('write("0")', 'write("1")')


@pytest.fixture
def user(small_tree: Path) -> Iterator[User]:
    with somebody(small_tree) as found:
        yield found


def jail_of() -> str:
    return f"/tmp/jail{os.getpid()}"


def jail(user: User) -> tuple[str, ...]:
    """The words that go into a chroot which shows all that is needed."""
    script = """
    for d in usr bin lib lib64 etc proc dev mnt "$1"; do
      mkdir -p "$0/$d" && mount --rbind "/$d" "$0/$d" || exit
    done
    shift; exec chroot "$0" /bin/sh -c 'cd /mnt; exec "$@"' sh "$@"
    """
    home = user.root.parent
    unshare = ("/usr/bin/unshare", "-m", "--propagation", "private")
    return (*unshare, "/bin/sh", "-c", script, jail_of(), str(home)[1:])


FORBIDDEN = {
    "a filter": (FILTER, "a seccomp filter forbids it"),
    "a limit": (
        LIMIT,
        "user.max_user_namespaces is 0: `sysctl -w user.max_user_namespaces=15000`",
    ),
    "a limit further out": (
        OUTER,
        "all that user.max_user_namespaces allows are in use",
    ),
    "a chroot": ("", "this is a chroot, where none can be made"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_forbids_it_is_named(user: User, what: str) -> None:
    script, reason = FORBIDDEN[what]
    python = (sys.executable, "-c", script)
    user.before = python if script else jail(user)
    try:
        assert reason in user.says("info")
        done = user("run", "--rm", "small:v1", "true")
        assert done.returncode != 0
        assert reason in done.stderr
    finally:
        user.before = ()
        find = ["find", jail_of(), "-xdev", "-type", "d", "-empty", "-delete"]
        subprocess.run(find, stderr=subprocess.DEVNULL, check=False)


def nested(store: Store, tmp_path: Path, *words: str, inner: str) -> str:
    """What our own program says in a container of ours, to a user without root."""
    binds = [f"{d}:{d}:ro" for d in ("/usr", "/bin", "/lib", "/lib64")]
    binds += [f"{HERE}:/mnt:ro", f"{tmp_path}:/job"]
    flags = [word for bind in binds for word in ("-v", bind)]
    user = "setpriv --reuid 4242 --regid 4242 --clear-groups env HOME=/job"
    python = sys.executable.replace(str(HERE), "/mnt")
    line = f"cd /mnt; exec {user} {python} -m minidocker --driver vfs {inner}"
    base = ("run", "--rm", "--network", "none", *words, *flags, "small:v1")
    done = store(*base, "sh", "-c", line)
    return done.stdout + done.stderr


OPEN = ("--security-opt", "seccomp=unconfined")
WHOLE = (*OPEN, "--security-opt", "systempaths=unconfined")


@pytest.mark.parametrize("store", ["overlay2"], indirect=True)
def test_a_container_around_us_is_named_and_how_to_start_it(
    store: Store, tmp_path: Path, small_tree: Path
) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "small.tar").write_bytes(small_tree.read_bytes())
    (tmp_path / "small.tar").chmod(0o644)
    said = nested(store, tmp_path, inner="info")
    assert "where a container is around us: `--security-opt seccomp=unconfined`" in said
    said = nested(store, tmp_path, *OPEN, inner="info")
    assert (
        "Namespaces: no, the kernel refuses a new proc: what is mounted on /proc/"
        in said
    )
    assert (
        "start the container around us with --security-opt systempaths=unconfined"
        in said
    )
    assert "Namespaces: yes" in nested(store, tmp_path, *WHOLE, inner="info")
    nested(store, tmp_path, *WHOLE, inner="import /job/small.tar inner")
    words = "run --rm --network none inner echo from within"
    assert nested(store, tmp_path, *WHOLE, inner=words) == "from within\n"
    refused = nested(store, tmp_path, *OPEN, inner=words)
    assert "/proc: the kernel refuses a new proc" in refused
