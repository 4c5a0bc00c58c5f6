"""`minidocker` said to a store as a user would."""

import os
import subprocess
import sys
from pathlib import Path


class Store:
    """A store below ``root``; call it with the words of a command line."""

    def __init__(self, root: Path, driver: str = "overlay2") -> None:
        self.root, self.driver = root, driver

    def argv(self, *words: str) -> list[str]:
        where = ["--root", str(self.root), "--driver", self.driver]
        return [sys.executable, "-m", "minidocker", *where, *words]

    def __call__(
        self, *words: str, stdin: bytes = b"", **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(*words),
            input=stdin,
            capture_output=True,
            check=False,
            env={**os.environ, **env},
            timeout=120,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def says(self, *words: str, stdin: bytes = b"", **env: str) -> str:
        """What a command that must succeed prints."""
        done = self(*words, stdin=stdin, **env)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout
