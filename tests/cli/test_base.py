"""The base image from this machine: on an empty store, whatever the machine has."""

import subprocess
from pathlib import Path

import pytest

from cli.store import Store
from minidocker import base


UNSHARE = ["unshare", "--user", "--map-root-user"]


def test_an_empty_store_makes_its_base_and_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store("run", "minidocker/base", "echo", "hello")
    assert (first.returncode, first.stdout) == (0, "hello\n")
    assert first.stderr.startswith("Making minidocker/base")
    again = store(
        "run", "--rm", "minidocker/base", "sh", "-c", "id -u; echo $PATH | wc -c"
    )
    assert (again.stdout.split()[0], again.stderr) == ("0", "")
    store.says("rm", *store.says("ps", "-aq").split())


def test_four_at_once_make_one_base(tmp_path: Path) -> None:
    store = Store(tmp_path)
    words = store.argv("run", "--rm", "minidocker/base", "echo", "hello")
    running = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0] for process in running] == [b"hello\n"] * 4
    assert len(store.says("images", "-aq").split()) == 1


def inside(tree: Path, *argv: str) -> str:
    """What a program says that runs in a tree by chroot."""
    return subprocess.run(
        [*UNSHARE, "chroot", str(tree), *argv],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    ).stdout


def test_without_a_static_busybox_programs_come_with_their_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "static_busybox", lambda: None)
    base.make_base(str(tmp_path / "tree"))
    script = "echo b a | tr ' ' '\\n' | sort; ls /bin | grep -c ."
    *lines, count = inside(tmp_path / "tree", "/bin/sh", "-c", script).split()
    assert lines == ["a", "b"]
    assert int(count) > 20
    assert not (tmp_path / "tree/bin/busybox").exists()


def test_a_python_comes_with_its_library_on_request(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    base.make_base(str(tree))
    base.add_python(str(tree), prefix="/opt/python")
    code = "import json, ctypes, sqlite3, ssl, zlib, sys; print(sys.prefix, zlib.crc32(b'x'))"
    said = inside(tree, "/opt/python/bin/python3", "-c", code)
    assert said == "/opt/python 2363233923\n"
