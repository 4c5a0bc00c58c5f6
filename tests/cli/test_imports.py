"""What `run` and `exec` import: little, and every module of it is named here."""

import os
import re
import subprocess
import sys

from cli.store import Store


OURS = {
    "blueprint", "bundling", "calls", "cgroups", "cli", "container_verbs", "containers", "destinations", "dialogue", "door", "drivers", "durable", "engine", "errors",
    "etc_files", "netfilter", "networks", "rtnetlink", "sandbox", "wiring",
    "flags", "identity", "images", "last_call", "layers", "linux", "mounts", "namespaces", "oci", "opened_store",
    "overlayfs", "program", "pump", "records", "run_flags", "run_verb", "runtime", "seccomp", "security", "springboard",
    "supervisor", "trees",
}  # fmt: skip
EXEC = {
    "calls", "cgroups", "cli", "containers", "destinations", "dialogue", "durable", "errors",
    "exec_verb", "executing", "flags", "identity", "joining", "last_call", "linux", "mounts",
    "namespaces", "oci", "program", "pump", "records", "runtime", "seccomp", "security",
    "springboard", "trees",
}  # fmt: skip
STANDARD = {
    "__future__", "_ctypes", "_json", "_sha2", "_sha256", "_socket", "_struct", "abc",
    "collections", "encodings",
    "contextlib", "copyreg", "errno", "fcntl", "functools",
    "itertools", "keyword", "operator", "os", "reprlib", "select",
    "gc", "stat", "termios", "time", "types", "tty", "zlib",
}  # fmt: skip
IMPORT = re.compile(r"^import time:\s+\d+ \|\s+\d+ \| +(\S+)$", re.MULTILINE)


def imported(*argv: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argv],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(IMPORT.findall(done.stderr))


def need_little(found: set[str], chapters: set[str], further: set[str]) -> None:
    """Fail for what was imported beside ``chapters``, and a little of Python's own."""
    ours = {name.partition(".")[2] for name in found if name.startswith("minidocker.")}
    others = {name.partition(".")[0] for name in found} - {"minidocker"}
    assert ours <= chapters, "chapters that must not be imported"
    standard = {name.lstrip("_") for name in STANDARD | further}
    assert {name.lstrip("_") for name in others} <= standard
    heavy = {"pyroute2", "graphviz", "rich", "urllib", "http", "socket", "json", "re"}
    heavy |= {"ctypes", "enum", "signal", "struct"}  # the cores of them are enough
    assert not heavy & others


def test_run_imports_little_and_nothing_unexpected(store: Store) -> None:
    python = imported("-c", "import runpy, importlib.util")
    words = store.argv("run", "--rm", "small:v1", "true")[1:]
    found = imported(*words) - python
    # the way out of others, and into a user namespace
    rootless = {"uplink", "rootless", "idmaps"} if os.geteuid() else set()
    need_little(found, OURS | rootless, {"pwd"} if os.geteuid() else set())


def test_exec_imports_less_than_run(store: Store) -> None:
    python = imported("-c", "import runpy, importlib.util")
    store.says("run", "-d", "--name", "box", "small:v1", "sleep", "60")
    try:
        words = ("-m", "minidocker", "--root", str(store.root), "exec", "box", "true")
        need_little(imported(*words) - python, EXEC, set())
    finally:
        store.says("rm", "-f", "box")
