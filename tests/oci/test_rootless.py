"""A bundle run by an unprivileged user: many ids by newuidmap, one id without it."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from oci.conftest import make_tree


pytestmark = pytest.mark.root
USER = 4242
LOOK = "id; cat /proc/self/uid_map /proc/self/gid_map; touch /new && stat -c %u:%g /new"
# in a mount namespace of its own: a user with a name, with ids set aside, and a way to the checkout
SCRIPT = """
set -e
mount --bind {home}/passwd /etc/passwd
touch /etc/subuid /etc/subgid
mount --bind {home}/subid /etc/subuid
mount --bind {home}/subid /etc/subgid
mount --bind {checkout} /mnt
cd /mnt
exec setpriv --reuid {user} --regid {user} --clear-groups env HOME=/tmp XDG_RUNTIME_DIR={home} \\
  .venv/bin/python -c 'from minidocker.runtime_verbs import script; script()' run -b {home}/bundle box
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        home = Path(place)
        make_tree(home / "bundle/rootfs")
        own = f"ann:x:{USER}:{USER}::/tmp:/bin/sh\n"
        (home / "passwd").write_text(own + Path("/etc/passwd").read_text())
        subprocess.run(["runc", "spec", "--rootless"], cwd=home / "bundle", check=True)
        yield home


def run_as_user(
    home: Path, user: dict[str, object], count: int, set_aside: str
) -> subprocess.CompletedProcess[str]:
    """Run the bundle with ``count`` ids more than one's own."""
    (home / "subid").write_text(set_aside)
    config = json.loads((home / "bundle/config.json").read_text())
    more = [{"containerID": 1, "hostID": 100000, "size": count}] if count else []
    maps = [{"containerID": 0, "hostID": USER, "size": 1}, *more]
    config["linux"] |= {"uidMappings": maps, "gidMappings": maps}
    config["process"] |= {"terminal": False, "args": ["sh", "-c", LOOK], "user": user}
    config["root"]["readonly"] = False
    (home / "bundle/config.json").write_text(json.dumps(config))
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(home)], check=True)
    os.chmod(home / "bundle/rootfs", 0o777)
    checkout = Path(__file__).parents[2]
    script = SCRIPT.format(home=home, checkout=checkout, user=USER)
    argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


def test_ids_that_are_set_aside(home: Path) -> None:
    who = {"uid": 5, "gid": 6, "additionalGids": [7]}
    done = run_as_user(home, who, 1000, "ann:100000:65536\n")
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:3] == ["uid=5", "gid=6", "groups=7"]
    assert words[3:-1] == ["0", str(USER), "1", "1", "100000", "1000"] * 2
    assert words[-1] == "5:6"
    made = os.stat(home / "bundle/rootfs/new")
    assert (made.st_uid, made.st_gid) == (100004, 100005)


def test_one_id_needs_no_help(home: Path) -> None:
    done = run_as_user(home, {"uid": 0, "gid": 0}, 0, "")
    assert done.returncode == 0, done.stderr
    assert "0:0" in done.stdout
    assert os.stat(home / "bundle/rootfs/new").st_uid == USER


def test_what_is_not_set_aside_is_refused_with_a_hint(home: Path) -> None:
    done = run_as_user(home, {"uid": 5, "gid": 6}, 1000, "ann:200000:10\n")
    assert done.returncode == 1
    assert "set ids aside in /etc/subuid" in done.stderr
    assert not os.path.exists(home / "minidocker-runtime/box")
