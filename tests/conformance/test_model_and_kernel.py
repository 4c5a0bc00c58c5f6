"""The model of a union and the kernel's overlayfs do and leave the same."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from unions import BOUNDED, Both, Kernel, Step, Tree, Unions

from minidocker.operations import Metadata, Union
from minidocker.union import (
    WHITEOUT,
    Kind,
    MemoryBranch,
    Node,
    directory,
    file,
    link_to,
    symlink_to,
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({}, id="root", marks=pytest.mark.root),
        pytest.param({"redirects": True}, id="redirects", marks=pytest.mark.root),
        pytest.param({"rootless": True}, id="userns"),
    ],
)
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    made = Kernel(**request.param)
    yield made
    made.close()


# -------------------------------------------------------------- the scenarios

BASE: Tree = {
    "etc/hosts": file("localhost", 0o640),
    "etc/motd": file("welcome"),
    "etc/ssl/certs/ca": file("ca"),
    "usr/bin/ls": file("ELF", 0o755),
    "usr/bin/dir": link_to("usr/bin/ls"),
    "usr/bin/vdir": link_to("usr/bin/ls"),
    "bin": symlink_to("usr/bin"),
    "absolute": symlink_to("/etc/motd"),
    "up": symlink_to("etc/../../../usr"),
    "nowhere": symlink_to("no/such"),
    "new-by-link": symlink_to("etc/made"),
    "loop": symlink_to("loop"),
    "empty": directory(0o700),
    "tmp": directory(0o1777),
}
MIDDLE: Tree = {
    "etc/motd": WHITEOUT,
    "etc/issue": file("middle"),
    "usr/bin": directory(opaque=True),
    "usr/bin/sh": file("sh"),
    "empty": file("a file over a directory"),
    "was-below": WHITEOUT,
}
TOP: Tree = {
    "empty/of-top": file("x"),
    "etc/ssl": file("hides a directory"),
    "etc/motd": file("back"),
}

SCENARIOS: dict[str, tuple[list[Tree], list[Step], list[str], dict[str, object]]] = {
    "reading goes through links": ([BASE], [
        ("read", "/bin/ls"), ("read", "/absolute"), ("readdir", "/up"),
        ("read", "/nowhere"),
        ("read", "/loop"), ("read", "/etc"), ("readdir", "/etc/motd"),
        ("read", "/etc/motd/x"),
    ], [
        "b'ELF'", "b'welcome'", "['bin']", "ENOENT", "ELOOP", "EISDIR", "ENOTDIR",
        "ENOTDIR",
    ], {}),
    "three layers": ([TOP, MIDDLE, BASE], [
        ("readdir", "/"), ("readdir", "/empty"), ("read", "/etc/motd"),
        ("readdir", "/usr/bin"), ("read", "/etc/ssl"),
        ("unlink", "/empty/of-top"), ("rmdir", "/empty"),
    ], [
        "['absolute', 'bin', 'empty', 'etc', 'loop', 'new-by-link', 'nowhere', "
        "'tmp', 'up', 'usr']",
        "['of-top']", "b'back'", "['sh']", "b'hides a directory'", "ok", "ok",
    ], {"empty": WHITEOUT}),
    "a deleted file leaves a whiteout": ([BASE], [
        ("unlink", "/etc/motd"), ("read", "/etc/motd"), ("unlink", "/etc/motd"),
        ("write", "/etc/motd", "new"),
        ("unlink", "/etc/motd"),
    ], [
        "ok", "ENOENT", "ENOENT", "ok", "ok",
    ], {"etc": directory(), "etc/motd": WHITEOUT}),
    "a new file leaves nothing when it goes": ([BASE], [
        ("write", "/tmp/x", "x"), ("unlink", "/tmp/x"),
    ], ["ok", "ok"], {"tmp": directory(0o1777)}),
    "a lower whiteout is enough": ([MIDDLE, BASE], [
        ("write", "/etc/motd", "x"), ("unlink", "/etc/motd"),
    ], ["ok", "ok"], {"etc": directory()}),
    "a directory made again is opaque": ([BASE], [
        ("rmdir", "/etc"), ("unlink", "/etc"), ("unlink", "/etc/hosts"),
        ("unlink", "/etc/motd"),
        ("unlink", "/etc/ssl/certs/ca"), ("rmdir", "/etc/ssl/certs"),
        ("rmdir", "/etc/ssl"), ("rmdir", "/etc"),
        ("mkdir", "/etc", 0o750), ("readdir", "/etc"),
    ], [
        "ENOTEMPTY", "EISDIR", *["ok"] * 7, "[]",
    ], {"etc": directory(0o750, opaque=True)}),
    "writing copies up with the directories above": ([BASE], [
        ("write", "/etc/ssl/certs/ca", "new"), ("chmod", "/etc/hosts", 0o600),
    ], ["ok", "ok"], {
        "etc": directory(), "etc/ssl": directory(), "etc/ssl/certs": directory(),
        "etc/ssl/certs/ca": file("new"), "etc/hosts": file("localhost", 0o600),
    }),
    "copy-up parts hard links": ([BASE], [
        ("write", "/usr/bin/dir", "new"), ("read", "/usr/bin/ls"),
        ("read", "/usr/bin/vdir"),
    ], [
        "ok", "b'ELF'", "b'ELF'",
    ], {"usr": directory(), "usr/bin": directory(), "usr/bin/dir": file("new", 0o755)}),
    "links made above stay one file": ([BASE], [
        ("link", "/etc/motd", "/tmp/motd"), ("write", "/tmp/motd", "both"),
        ("read", "/etc/motd"),
        ("rename", "/etc/motd", "/tmp/motd"), ("unlink", "/etc/motd"),
        ("read", "/tmp/motd"),
        ("link", "/etc", "/x"), ("link", "/no", "/x"),
        ("link", "/tmp/motd", "/etc/hosts"), ("link", "/loop", "/loop2"),
    ], [
        "ok", "ok", "b'both'", "ok", "ok", "b'both'", "EPERM", "ENOENT", "EEXIST", "ok",
    ], {
        "etc": directory(), "etc/motd": WHITEOUT, "tmp": directory(0o1777),
        "tmp/motd": file("both"),
        "loop": symlink_to("loop"), "loop2": link_to("loop"),
    }),
    "lower hard links are two files to rename": ([BASE], [
        ("rename", "/usr/bin/ls", "/usr/bin/dir"), ("readdir", "/bin"),
    ], ["ok", "['dir', 'vdir']"], {
        "usr": directory(), "usr/bin": directory(), "usr/bin/dir": file("ELF", 0o755),
        "usr/bin/ls": WHITEOUT,
    }),
    "a lower or merged directory cannot be renamed": ([BASE], [
        ("rename", "/etc", "/x"), ("chmod", "/tmp", 0o700), ("rename", "/tmp", "/x"),
        ("rename", "/etc", "/etc"),
        ("rename", "/etc", "/etc/x"), ("rename", "/etc/ssl/certs", "/etc"),
        ("rename", "/no", "/etc"),
        ("rename", "/etc", "/absolute"), ("rename", "/bin", "/etc"),
    ], [
        "EXDEV", "ok", "EXDEV", "ok", "EINVAL", "ENOTEMPTY", "ENOENT", "ENOTDIR",
        "EISDIR",
    ], {"tmp": directory(0o700)}),
    "a directory of the top branch is renamed": ([BASE], [
        ("mkdir", "/d"), ("mkdir", "/d/e"), ("write", "/d/e/f", "x"),
        ("rename", "/d", "/tmp/d"),
        ("rename", "/tmp/d/e", "/empty"), ("readdir", "/empty"),
        ("rename", "/empty", "/etc"),
        ("mkdir", "/e"), ("rename", "/empty", "/tmp/d"), ("rename", "/e", "/empty"),
    ], ["ok", "ok", "ok", "ok", "ok", "['f']", "ENOTEMPTY", "ok", "ok", "ok"], {
        "empty": directory(opaque=True), "tmp": directory(0o1777),
        "tmp/d": directory(opaque=True), "tmp/d/f": file("x"),
    }),
    "a directory moved into a lower one is opaque": ([BASE], [
        ("mkdir", "/d"), ("rename", "/d", "/etc/d"),
    ], ["ok", "ok"], {"etc": directory(), "etc/d": directory(opaque=True)}),
    "renaming a file": ([BASE], [
        ("rename", "/etc/motd", "/tmp/motd"), ("rename", "/tmp/motd", "/etc/hosts"),
        ("write", "/etc/motd", "m"),
        ("rename", "/etc/motd", "/etc/motd2"), ("rename", "/absolute", "/etc/motd"),
    ], ["ok"] * 5, {
        "absolute": WHITEOUT, "etc": directory(), "etc/hosts": file("welcome"),
        "etc/motd": symlink_to("/etc/motd"),
        "etc/motd2": file("m"), "tmp": directory(0o1777),
    }),
    "links lead where the union shows": ([BASE], [
        ("write", "/new-by-link", "x"), ("read", "/etc/made"),
        ("write", "/nowhere", "x"), ("write", "/loop", "x"),
        ("mkdir", "/nowhere"), ("chmod", "/absolute", 0o600),
        ("truncate", "/absolute", 2), ("truncate", "/bin/ls", 5),
        ("truncate", "/etc", 0), ("symlink", "a", "/bin/a"), ("symlink", "a", "/loop"),
        ("unlink", "/bin"), ("rmdir", "/up"),
    ], [
        "ok", "b'x'", "ENOENT", "ELOOP", "EEXIST", "ok", "ok", "ok", "EISDIR", "ok",
        "EEXIST", "ok", "ENOTDIR",
    ], {
        "bin": WHITEOUT, "etc": directory(), "etc/made": file("x"),
        "etc/motd": file("we", 0o600),
        "usr": directory(), "usr/bin": directory(), "usr/bin/a": symlink_to("a"),
        "usr/bin/ls": file("ELF\0\0", 0o755),
    }),
    "nested opaque directories": ([
        {
            "d": directory(opaque=True), "d/e": directory(opaque=True),
            "d/e/top": file("t"),
        },
        {"d/e": directory(opaque=True), "d/e/middle": file("m"), "d/g": file("g")},
        {"d/e/low": file("l"), "d/h": file("h")},
    ], [
        ("readdir", "/d"), ("readdir", "/d/e"), ("unlink", "/d/e/top"),
        ("rmdir", "/d/e"), ("mkdir", "/d/e"), ("readdir", "/d/e"),
        ("chmod", "/d", 0o700), ("readdir", "/d"),
    ], [
        "['e']", "['top']", "ok", "ok", "ok", "[]", "ok", "['e']",
    ], {"d": directory(0o700), "d/e": directory(opaque=True)}),
    "whiteouts over whiteouts": ([
        {"a": WHITEOUT, "d/a": WHITEOUT}, {"a": file("3"), "d/a": file("3")},
        {"a": WHITEOUT, "d": directory(opaque=True), "d/a": directory()},
        {"a": file("1"), "d/a/x": file("1")},
    ], [
        ("read", "/a"), ("readdir", "/d"), ("write", "/a", "new"), ("unlink", "/a"),
        ("mkdir", "/a"), ("rmdir", "/a"), ("mkdir", "/d/a"), ("readdir", "/d/a"),
        ("rename", "/d/a", "/a"), ("rmdir", "/a"), ("rmdir", "/d"), ("mkdir", "/d"),
    ], [
        "ENOENT", "[]", "ok", "ok", "ok", "ok", "ok", "[]", "ok", "ok", "ok", "ok",
    ], {"d": directory(opaque=True)}),
    "a refused rename has marked its directory": ([BASE], [
        ("mkdir", "/d"), ("write", "/d/f", ""), ("mkdir", "/etc/d"),
        ("rename", "/etc/d", "/d"), ("readdir", "/etc"),
    ], [
        "ok", "ok", "ok", "ENOTEMPTY", "['d', 'hosts', 'motd', 'ssl']",
    ], {
        "d": directory(), "d/f": file(), "etc": directory(),
        "etc/d": directory(opaque=True),
    }),
    "names that are not there": ([BASE], [
        ("mkdir", "/etc"), ("mkdir", "/no/x"), ("mkdir", "/etc/motd/x"),
        ("unlink", "/no"), ("rmdir", "/no"),
        ("rmdir", "/etc/motd"), ("chmod", "/no", 0), ("truncate", "/no", 0),
        ("write", "/etc", ""),
        ("rename", "/etc/motd", "/no/x"), ("rename", "/etc/motd", "/etc/hosts/x"),
    ], [
        "EEXIST", "ENOENT", "ENOTDIR", "ENOENT", "ENOENT", "ENOTDIR", "ENOENT",
        "ENOENT", "EISDIR", "ENOENT",
        "ENOTDIR",
    ], {}),
}  # fmt: skip

REDIRECTED: dict[str, tuple[list[Tree], list[Step], dict[str, object]]] = {
    "at home by its name": ([BASE], [("rename", "/etc", "/old")], {
        "etc": WHITEOUT, "old": directory(redirect="etc"),
    }),
    "abroad by its path": ([BASE], [("rename", "/etc/ssl", "/tmp/ssl")], {
        "etc": directory(), "etc/ssl": WHITEOUT, "tmp": directory(0o1777),
        "tmp/ssl": directory(redirect="/etc/ssl"),
    }),
    "twice, at home and then abroad": ([BASE], [
        ("rename", "/etc", "/old"), ("rename", "/old/ssl", "/old/tls"),
        ("rename", "/old/tls", "/tls"), ("rename", "/tls", "/tmp/tls"),
    ], {
        "etc": WHITEOUT, "old": directory(redirect="etc"), "old/ssl": WHITEOUT,
        "tmp": directory(0o1777), "tmp/tls": directory(redirect="/etc/ssl"),
    }),
    "a new directory beside them hides": ([BASE], [
        ("rename", "/etc", "/old"), ("mkdir", "/etc"), ("mkdir", "/old/new"),
        ("mkdir", "/etc/new"), ("write", "/old/motd", "2"),
    ], {
        "etc": directory(opaque=True), "etc/new": directory(),
        "old": directory(redirect="etc"), "old/new": directory(opaque=True),
        "old/motd": file("2"),
    }),
}  # fmt: skip


def compare(
    kernel: Kernel, lowers: list[Tree], steps: list[Step], *, writable: bool = True
) -> tuple[list[str], Tree]:
    """Do steps on both; return the answers and what is left."""
    both = Both(kernel, lowers, writable=writable)
    answers = [both.step(str(name), *words) for name, *words in steps]
    return answers, both.left()


def undated(tree: Tree) -> Tree:
    return {
        path: node if node.kind is Kind.LINK else node.replace(mtime=0)
        for path, node in tree.items()
    }


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_model_and_kernel_answer_as_expected(scenario, kernel: Kernel) -> None:
    lowers, steps, answers, upper = scenario
    got, left = compare(kernel, lowers, steps)
    if not kernel.redirects:
        assert got == answers
        assert undated(left) == upper


@pytest.mark.parametrize("scenario", REDIRECTED.values(), ids=REDIRECTED.keys())
def test_merged_directories_are_renamed_by_a_mark(scenario, kernel: Kernel) -> None:
    lowers, steps, upper = scenario
    got, left = compare(kernel, lowers, steps)
    if kernel.redirects:
        assert set(got) == {"ok"}
        assert undated(left) == upper
    else:
        assert "EXDEV" in got


@pytest.mark.root
def test_owners_and_devices_are_copied_up() -> None:
    lower = {
        "d": directory(0o750).replace(uid=5, gid=6),
        "d/f": file("x").replace(uid=7, gid=8),
        "d/null": Node(Kind.DEVICE, b"c 1 3", 0o666),
    }
    steps: list[Step] = [
        ("write", "/d/f", "y"),
        ("chown", "/d", 1, 2),
        ("symlink", "x", "/d/l"),
        ("chown", "/d/l", 3, 4),
        ("chmod", "/d/null", 0o600),
        ("mknod", "/d/zero", "c 1 5"),
        ("mknod", "/d/zero", "c 1 5"),
        ("mknod", "/d/whiteout", "c 0 0"),
        ("truncate", "/d/null", 0),
    ]
    kernel = Kernel()
    answers, _ = compare(kernel, [lower], steps)
    kernel.close()
    assert answers[-3:] == ["EEXIST", "EPERM", "EINVAL"]


def test_without_a_writable_branch_nothing_changes(kernel: Kernel) -> None:
    steps: list[Step] = [
        ("write", "/etc/motd", ""), ("write", "/no", ""), ("write", "/etc", ""),
        ("mkdir", "/no"), ("mkdir", "/etc"), ("mkfifo", "/no"), ("mkfifo", "/etc"),
        ("unlink", "/etc/motd"), ("unlink", "/no"), ("rmdir", "/etc"),
        ("rmdir", "/no/x"), ("rmdir", "/no"),
        ("chmod", "/etc", 0), ("chmod", "/no", 0), ("truncate", "/etc", 0),
        ("truncate", "/etc/motd", 0), ("utime", "/etc", 5), ("utime", "/no", 5),
        ("setxattr", "/etc", "user.a", b""), ("setxattr", "/no", "user.a", b""),
        ("removexattr", "/etc", "user.a"),
        ("rename", "/etc/motd", "/x"), ("rename", "/no", "/x"),
        ("rename", "/no/x", "/x"),
        ("link", "/etc/motd", "/x"), ("link", "/etc", "/x"), ("link", "/no", "/x"),
        ("link", "/bin", "/etc"),
        ("symlink", "x", "/x"), ("symlink", "x", "/bin"),
    ]  # fmt: skip
    compare(kernel, [MIDDLE, BASE], steps, writable=False)


# ------------------------------------------------------------ any steps at all


def test_any_steps_on_any_layers_give_the_same(kernel: Kernel) -> None:
    run_state_machine_as_test(partial(Unions, kernel), settings=BOUNDED)


# ----------------------------------------------------- the tests can fail

MUTATIONS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "nothing is hidden": (
        Union, "hide", lambda u, path: u.branches[0].remove(path),
    ),
    "a new directory is never opaque": (
        Union, "create",
        lambda u, path, node: u.copy_up(path.rpartition("/")[0]).put(
            path, node.replace(mtime=None)
        ),
    ),
    "copy-up forgets attributes": (
        MemoryBranch, "adopt",
        lambda b, path, place: b.put(
            path, place.node.replace(opaque=False, redirect="", xattrs=())
        ),
    ),
    "a moved directory has no marks": (Union, "marks", lambda u, old, new: {}),
    "a pipe can be truncated": (Metadata, "truncate", lambda u, path, size: None),
}  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_wrong_model_is_found_out(mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*mutation)
    kernel = Kernel()
    few = settings(BOUNDED, max_examples=500, phases=[Phase.generate])
    try:
        with pytest.raises((AssertionError, ExceptionGroup)):
            run_state_machine_as_test(partial(Unions, kernel), settings=few)
    finally:
        kernel.close()
