"""A user without root, with ids set aside or not, for whom the checkout is at /mnt."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.store import Store


NAME, NUMBER = "ann", 4242
HERE = Path(__file__).parents[2]
FIRST = 300000  # of the ids that are set aside
SET_ASIDE = f"{NAME}:{FIRST}:65536\n"


class User(Store):
    """A store of that user, whose programs are on ``path``; ``before`` runs first."""

    path = "/usr/bin:/bin"
    before: tuple[str, ...] = ()

    def as_user(self, *argv: str) -> list[str]:
        """The words that run a program as this user."""
        ids = [f"--reuid={NUMBER}", f"--regid={NUMBER}", "--clear-groups"]
        env = ["/usr/bin/env", f"PATH={self.path}", f"HOME={self.root}"]
        return [*self.before, "/usr/bin/setpriv", *ids, *env, *argv]

    def argv(self, *words: str) -> list[str]:
        python, *rest = super().argv(*words)
        # this user cannot reach HERE
        return self.as_user(python.replace(str(HERE), "/mnt"), *rest)


@contextmanager
def shown(sources: dict[Path, str]) -> Iterator[None]:
    """Bind files over others in our own mounts, for a ``with`` block."""
    for source, target in sources.items():
        subprocess.run(["mount", "--bind", source, target], check=True)
    before = os.getcwd()
    os.chdir("/mnt")
    try:
        yield
    finally:
        os.chdir("/")
        for target in sources.values():
            subprocess.run(["umount", "-l", target], check=True)
        os.chdir(before)


@contextmanager
def somebody(tree: Path | None, set_aside: str = "") -> Iterator[User]:
    """Give the store of a user, with the image `small`; it and all of it are removed."""
    root = Path(tempfile.mkdtemp(prefix="minidocker-user-"))
    root.chmod(0o755)
    os.chown(root, NUMBER, NUMBER)
    (root / "passwd").write_text(f"{NAME}:x:{NUMBER}:{NUMBER}::/:/bin/sh\n")
    files = {HERE: "/mnt", root / "passwd": "/etc/passwd"}
    for minor, path in ((200, "/dev/net/tun"), (229, "/dev/fuse")):
        node = root / f"device-{minor}"
        os.mknod(node, 0o20666, os.makedev(10, minor))
        node.chmod(0o666)
        files[node] = path
    for name in ("subuid", "subgid"):
        Path("/etc", name).touch()
        (root / name).write_text(set_aside)
        files[root / name] = f"/etc/{name}"
    found = User(root / "store")
    try:
        with shown(files):
            if tree:
                found.says("import", "-", "small:v1", stdin=tree.read_bytes())
            try:
                yield found
            finally:
                if tree and (ids := found.says("ps", "-aq").split()):
                    found("rm", "-f", *ids)
    finally:
        shutil.rmtree(root)
