"""A kernel with AppArmor: who gets which profile, and what it forbids."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from cli.conftest import add
from cli.store import Store

from minidocker.labels import DEFAULT, LISTED, loaded_profiles


SECRET = """
profile no-secrets flags=(attach_disconnected) {
  file,
  capability,
  network,
  deny /secret r,
}
"""
APPLETS = ("sh", "cat", "echo", "mount", "umount", "id", "sleep")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    place = tmp_path_factory.mktemp("labels")
    with tarfile.open(place / "small.tar", "w") as tar:
        add(tar, "bin/busybox", Path("/bin/busybox").read_bytes())
        for name in APPLETS:
            add(tar, f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox")
        add(tar, "script", b"#!/bin/sh\ncat /proc/self/attr/current\n")
        add(tar, "secret", b"hidden\n", mode=0o644)
    if not os.path.exists(LISTED):
        security = "/sys/kernel/security"
        subprocess.run(["mount", "-t", "securityfs", "none", security], check=True)
    found = Store(place / "store", "vfs")
    found.says("import", str(place / "small.tar"), "small")
    return found


def label(store: Store, *words: str, program: tuple[str, ...] = ()) -> str:
    argv = program or ("cat", "/proc/self/attr/current")
    return store.says("run", "--rm", "--network", "none", *words, "small", *argv)


def test_every_container_has_docker_s_profile(store: Store) -> None:
    assert label(store) == f"{DEFAULT} (enforce)\n"
    more = ("--init", "--user", "5", "--security-opt", "no-new-privileges")
    assert label(store, *more, program=("/script",)) == f"{DEFAULT} (enforce)\n"
    assert DEFAULT in (loaded_profiles() or ())


def test_none_with_all_rights_or_when_asked(store: Store) -> None:
    assert label(store, "--privileged") == "unconfined\n"
    assert label(store, "--security-opt", "apparmor=unconfined") == "unconfined\n"
    both = ("--privileged", "--security-opt", f"apparmor={DEFAULT}")
    assert label(store, *both) == f"{DEFAULT} (enforce)\n"


def test_exec_has_the_label_of_its_container(store: Store) -> None:
    store.says(
        "run", "-d", "--name", "box", "--network", "none", "small", "sleep", "60"
    )
    said = store.says("exec", "box", "cat", "/proc/self/attr/current")
    assert said == f"{DEFAULT} (enforce)\n"
    store.says("rm", "-f", "box")


FREE = (
    "--cap-add",
    "ALL",
    "--security-opt",
    "seccomp=unconfined",
    "--security-opt",
    "systempaths=unconfined",
)


FORBIDDEN = (
    "mount -t tmpfs none /mnt",
    "echo 1 > /proc/sys/kernel/panic_on_oops",
    "echo 1 > /proc/sys/vm/drop_caches",
    "echo h > /proc/sysrq-trigger",
    "cat /proc/kcore",
)
LEFT = (
    "echo 7 > /proc/sys/kernel/shmmni",
    "echo 5 > /proc/self/oom_score_adj",
    "echo ok > /mnt/file",
)


def test_the_profile_forbids_what_all_capabilities_allow(store: Store) -> None:
    tries = "".join(f"({one}) && echo done {n};" for n, one in enumerate(FORBIDDEN))
    lefts = "".join(f"({one}) || echo failed: '{one}';" for one in LEFT)
    script = f"busybox mkdir -p /mnt; {tries} {lefts}"
    words = ("run", "--rm", "--network", "none", *FREE, "small", "sh", "-c", script)
    done = store(*words)
    assert done.stdout == ""
    assert done.stderr.count("ermission denied") == len(FORBIDDEN), done.stderr


def test_a_profile_of_one_s_own(store: Store) -> None:
    subprocess.run(["apparmor_parser", "-Kr"], input=SECRET.encode(), check=True)
    mine = ("--security-opt", "apparmor=no-secrets")
    done = store("run", "--rm", "--network", "none", *mine, "small", "cat", "/secret")
    assert done.returncode == 1
    assert "ermission denied" in done.stderr


def test_an_unknown_one_is_refused_before_anything_is_made(store: Store) -> None:
    done = store("run", "--security-opt", "apparmor=nobody-s", "small", "true")
    assert done.returncode == 125
    assert "AppArmor profile nobody-s is not loaded" in done.stderr
    assert store.says("ps", "-aq") == ""


def test_info_names_the_profile(store: Store) -> None:
    assert f"AppArmor: yes, containers have the profile {DEFAULT}" in store.says("info")


def test_a_bundle_has_the_profile_that_it_names(store: Store, tmp_path: Path) -> None:
    words = ("run", "--network", "none", "--bundle", str(tmp_path / "b"), "small")
    store.says(*words, "cat", "/proc/self/attr/current")
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["process"]["apparmorProfile"] == DEFAULT
    code = "from minidocker.runtime_verbs import script; script()"
    argv = [sys.executable, "-c", code, "--root", str(tmp_path / "state")]
    done = subprocess.run(
        [*argv, "run", "-b", str(tmp_path / "b"), "box"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == f"{DEFAULT} (enforce)\n", done.stderr
    features = subprocess.run([*argv, "features"], capture_output=True, check=True)
    assert json.loads(features.stdout)["linux"]["apparmor"] == {"enabled": True}


def test_a_user_without_root_gets_it_too(store: Store) -> None:
    home = Path("/tmp/somebody")
    home.mkdir()
    shutil.chown(home, 4242, 4242)
    user = Store(home / "store", "vfs")
    own = user.argv
    prefix = [
        "setpriv",
        "--reuid=4242",
        "--regid=4242",
        "--clear-groups",
        "env",
        f"HOME={home}",
    ]
    user.argv = lambda *words: [*prefix, *own(*words)]  # type: ignore[method-assign]
    tree = Path(store.root).parent / "small.tar"
    user.says("import", "-", "small", stdin=tree.read_bytes())
    assert label(user) == f"{DEFAULT} (enforce)\n"
    assert f"containers have the profile {DEFAULT}" in user.says("info")
    unset = Path("/proc/sys/kernel/unprivileged_userns_clone")
    unset.write_text("0")
    try:
        refused = user("run", "--rm", "small", "true")
        assert "kernel.unprivileged_userns_clone is 0: `sysctl -w" in refused.stderr
        assert "kernel.unprivileged_userns_clone is 0" in user("info").stdout
    finally:
        unset.write_text("1")
