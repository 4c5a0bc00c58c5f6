"""What `run` says of a mistake: what is wrong, where, and what to do."""

from pathlib import Path

import pytest

from cli.somebody import somebody
from cli.store import Store


pytestmark = pytest.mark.root

RUN = ("run", "--rm", "--network", "none")
SMALL = "small:v1"


def complaint(store: Store, *words: str) -> str:
    """What `run` says with these flags, having ended with Docker's status."""
    done = store(*RUN, *words, SMALL, "true")
    assert done.returncode == 125, done
    assert store.says("ps", "-aq") == ""
    return done.stderr


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("file", "/etc", "a file, here: this is a directory in the image"),
        ("dir", "/etc/passwd", "a directory, here: this is a file in the image"),
        ("dir", "/etc/passwd/x", "a directory, here: a part of this path is a file"),
        ("file", "/etc/passwd/x", "a file, here: a part of this path is a file"),
    ],
)
def test_a_bind_of_the_other_kind(
    store: Store, tmp_path: Path, source: str, target: str, said: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    wanted = f"minidocker: {target}: cannot mount {tmp_path}/{source}, {said}\nhint: "
    said = complaint(store, "-v", f"{tmp_path}/{source}:{target}")
    assert said.startswith(wanted)
    assert len(said.splitlines()) == 2


def test_a_file_that_no_tmpfs_can_cover(store: Store) -> None:
    wanted = "minidocker: /etc/passwd: cannot mount a tmpfs here: this is a file"
    assert complaint(store, "--tmpfs", "/etc/passwd").startswith(wanted)


@pytest.mark.parametrize(
    ("option", "hint"),
    [("size=abc", "size=BYTES"), ("size=", "size=BYTES"), ("size", "size=BYTES"),
     ("mode=9", "mode=OCTAL"), ("uid=bob", "uid=NUMBER"), ("foo", "")],
)  # fmt: skip
def test_an_option_of_a_tmpfs(store: Store, option: str, hint: str) -> None:
    said = complaint(store, "--tmpfs", f"/x:exec,{option}")
    assert said.startswith(f'minidocker: invalid tmpfs option ["{option}"]\n')
    assert (f"hint: {hint}" in said) == bool(hint)


def test_what_only_the_kernel_knows_of_a_tmpfs(store: Store) -> None:
    said = complaint(store, "--tmpfs", "/x:uid=4294967295,mode=700")
    assert 'no tmpfs with the options "uid=4294967295,mode=700"' in said


def test_options_of_a_tmpfs_that_can_be(store: Store) -> None:
    flags = ("--tmpfs", "/x:size=2M,mode=1750,uid=7,nr_inodes=1k")
    script = "busybox stat -c '%a %u' /x; busybox grep /x /proc/mounts"
    mode, mount = store.says(*RUN, *flags, SMALL, "sh", "-c", script).splitlines()
    assert mode == "1750 7"
    assert "size=2048k,nr_inodes=1024," in mount


def test_names_instead_of_numbers(store: Store) -> None:
    said = complaint(store, "--ulimit", "nofile=99999999999")
    assert "cannot set ulimit nofile to 99999999999:99999999999: " in said
    assert 'hint: did you mean "--name"?\n' in complaint(store, "--nmae", "x")


def test_a_score_that_only_root_may_set(small_tree: Path) -> None:
    with somebody(small_tree) as user:
        said = complaint(user, "--oom-score-adj", "-500")
    file = "/proc/self/oom_score_adj"
    assert f"{file}: cannot write -500: only root on the host may lower" in said
    assert "hint: ask for " in said


def test_sources_of_mounts_have_docker_s_names(store: Store) -> None:
    lines = store.says(*RUN, SMALL, "cat", "/proc/mounts").splitlines()
    found = {line.split()[1]: line.split()[0] for line in lines}
    # as seen in a container of Docker 20.10
    wanted = {
        "/proc": "proc", "/dev": "tmpfs", "/dev/pts": "devpts", "/sys": "sysfs",
        "/dev/mqueue": "mqueue", "/dev/shm": "shm",
    }  # fmt: skip
    assert {place: found[place] for place in wanted} == wanted
