# From book/710-the-example.md. Edit there and tangle, or here and tangle --back.

# %% The example, line by line
"""Replay the worked example of the source text: import, build, history, run.

    python -m minidocker.the_example

makes a temporary store, prints each command and what it says, and removes the store.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from minidocker.archive import pack
from minidocker.base import add_python, make_base
from minidocker.errors import MinidockerError, NotFoundError
from minidocker.records import Record


# %% The Dockerfile, as it stands
DOCKERFILE = """\
FROM kb-centos:v11
ENV PATH="/home/work/.jumbo/bin:${PATH}:\
/home/work/kb_install/gearman-instal/gperf-install/bin/" \\
LD_LIBRARY_PATH="${LD_LIBRARY_PATH}:\
/home/work/kb_install/gearman-instal/boost-install/lib:\
/home/work/kb_install/gearman-instal/libevent-install/lib:\
/home/work/kb_install/gearman-instal/libuuid-install/lib"
COPY supervisord.conf /home/work/kb_install/
USER 1001
EXPOSE 8011
CMD ["/home/work/.jumbo/bin/supervisord","-c",\
"/home/work/kb_install/supervisord.conf"]
"""


# %% The Dockerfile, as it stands
CONF_SIZE = 8866
CONFIGURATION = """\
[supervisord]
nodaemon=true
logfile=/tmp/supervisord.log
pidfile=/tmp/supervisord.pid

[unix_http_server]
file=/tmp/supervisor.sock

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix:///tmp/supervisor.sock

[program:search]
command=/home/work/.jumbo/bin/python3 -m http.server 8011 --bind 127.0.0.1
directory=/home/work/kb_install
"""


def supervisord_conf() -> bytes:
    """Return the configuration, padded with comments to the size of the original."""
    text = CONFIGURATION.encode()
    line = b"; " + b"." * 76 + b"\n"
    room = CONF_SIZE - len(text)
    rest = room % len(line)
    return text + line * (room // len(line)) + b";" * (rest - 1) + b"\n" * bool(rest)


def write_context(target: Path) -> None:
    """Write the example's build context, a Dockerfile and one file, to ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    (target / "Dockerfile").write_text(DOCKERFILE)
    (target / "supervisord.conf").write_bytes(supervisord_conf())
    (target / "supervisord.conf").chmod(0o644)


# %% A base with the right paths
PREFIX = "/home/work/.jumbo"
STARTER = """\
#!{prefix}/bin/python3
import sys

from supervisor.{module} import main

sys.exit(main())
"""


def supervisor_package() -> Path:
    """Return the directory of the installed supervisor package.

    Raises NotFoundError where it is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("supervisor")
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            "no supervisor", hint="pip install supervisor, or `make demo`"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def make_tree(tree: Path) -> None:
    """Make the example's base below ``tree``: programs, a Python, and supervisor."""
    package = supervisor_package()
    make_base(str(tree))
    add_python(str(tree), prefix=PREFIX, packages=[str(package)])
    for name in ("supervisord", "supervisorctl"):
        starter = tree / PREFIX.lstrip("/") / "bin" / name
        starter.write_text(STARTER.format(prefix=PREFIX, module=name))
        starter.chmod(0o755)


# %% Saying it to minidocker
class Answer(Record):
    """What a command wrote, and its exit status."""

    command: str
    text: str
    status: int

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.text}".rstrip()


class Session(Record):
    """A store below ``root``, and the commands said to it."""

    root: str

    def argv(self, *words: str) -> list[str]:
        """Return the command line of ``minidocker words`` on this store."""
        return [sys.executable, "-m", "minidocker", "--root", self.root, *words]

    def say(self, *words: str, stdin: int | None = None) -> Answer:
        """Run ``minidocker words`` to its end; errors are part of the answer."""
        done = subprocess.run(
            self.argv(*words),
            check=False,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Answer(f"minidocker {' '.join(words)}", done.stdout, done.returncode)

    def image(self, reference: str) -> dict[str, object]:
        """Return the image JSON of ``reference``, as the store keeps it."""
        found = json.loads(self.say("inspect", reference).text)[0]
        digest = found["Id"].removeprefix("sha256:")
        content = Path(self.root).glob(f"image/*/imagedb/content/sha256/{digest}")
        image: dict[str, object] = json.loads(next(content).read_text())
        return image


# %% Saying it to minidocker
def import_tree(session: Session, tree: Path, reference: str) -> Answer:
    """Run ``minidocker import - reference`` with the tar of ``tree`` on its input."""
    read, write = os.pipe()
    packer = os.fork()
    if packer == 0:
        os.close(read)
        os._exit(write_tar(tree, write))
    os.close(write)
    try:
        return session.say("import", "-", reference, stdin=read)
    finally:
        os.close(read)
        os.waitpid(packer, 0)


def write_tar(tree: Path, descriptor: int) -> int:
    """Write the tar of ``tree`` to a descriptor; return an exit status."""
    try:
        with os.fdopen(descriptor, "wb", buffering=1 << 20) as pipe:
            pack(str(tree), pipe.write)
    except BrokenPipeError:
        return 1
    return 0


@contextmanager
def example() -> Iterator[tuple[Session, Path]]:
    """Make a store with the base and a build context; remove both at the end.

    Raises MinidockerError with what the import said when it failed.
    """
    with tempfile.TemporaryDirectory(prefix="minidocker-") as name:
        work = Path(name)
        session = Session(str(work / "store"))
        make_tree(work / "tree")
        write_context(work / "context")
        done = import_tree(session, work / "tree", "kb-centos:v11")
        if done.status:
            raise MinidockerError(done.text.strip().removeprefix("minidocker: "))
        shutil.rmtree(work / "tree")
        yield session, work / "context"


# %% docker build: five instructions, five images
def history_rows(session: Session, reference: str) -> list[tuple[str, str, str]]:
    """Return created-by, size and comment of each row of history, newest first."""
    listed = session.say("history", "--no-trunc", "--format", "json", reference).text
    rows = [json.loads(line) for line in listed.splitlines()]
    return [(row["CreatedBy"], row["Size"], row["Comment"]) for row in rows]


# %% The JSON grows
def lineage_of(session: Session, reference: str) -> list[dict[str, object]]:
    """Return the image JSONs from the base up to ``reference``."""
    rows = session.say("history", "-q", "--no-trunc", reference).text.split()
    return [session.image(row) for row in reversed(rows)]


def growth(older: dict[str, object], newer: dict[str, object]) -> list[str]:
    """Return the lines that say how ``config`` and ``rootfs`` changed."""
    lines = []
    for part in ("config", "rootfs"):
        before, after = older[part], newer[part]
        if not isinstance(before, dict) or not isinstance(after, dict):
            continue
        for key in sorted(after):
            if key != "Image" and before.get(key) != after[key]:
                lines.append(
                    f"{part}.{key}: {shown(before.get(key))} -> {shown(after[key])}"
                )
    return lines


def shown(value: object) -> str:
    """Return ``value`` as JSON, with digests cut to twelve digits."""
    if isinstance(value, list):
        return json.dumps(
            [str(v)[:19] if str(v).startswith("sha256:") else v for v in value]
        )
    return json.dumps(value)


# %% docker run: from image to process
def eventually(ask: Callable[[], Answer], wanted: str, seconds: float = 20) -> Answer:
    """Ask until the answer contains ``wanted``, or time is up; return the last one."""
    end = time.monotonic() + seconds
    while wanted not in (answer := ask()).text and time.monotonic() < end:
        time.sleep(0.2)
    return answer


FETCH = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8011').status)"
CONTROL = (
    f"{PREFIX}/bin/supervisorctl",
    "-c",
    "/home/work/kb_install/supervisord.conf",
)


# %% All of it, as one command
def replay(session: Session, context: Path) -> Iterator[Answer]:
    """Yield each command of the example and what it said."""
    yield session.say("build", "-t", "ss-test-mount", str(context))
    yield session.say("history", "ss-test-mount")
    yield session.say("lineage", "ss-test-mount")
    yield session.say("run", "-d", "--name", "search", "ss-test-mount")
    yield eventually(
        lambda: session.say("exec", "search", *CONTROL, "status"), "RUNNING"
    )
    fetch = (f"{PREFIX}/bin/python3", "-c", FETCH)
    yield eventually(lambda: session.say("exec", "search", *fetch), "200")
    yield session.say("ps")
    yield session.say("logs", "search")
    yield session.say("diff", "search")
    yield session.say("stop", "search")
    yield session.say("rm", "search")


def main() -> int:
    """Print the replay; return the status of the first command that failed, or 0."""
    print("making the base from this machine, with a Python and supervisor ...")
    try:
        with example() as (session, context):
            for answer in replay(session, context):
                print(f"\n{answer}", flush=True)
                if answer.status:
                    return answer.status
    except MinidockerError as why:
        print(f"minidocker: {why}", file=sys.stderr)
        return why.status
    return 0


if __name__ == "__main__" and __spec__ is not None:
    raise SystemExit(main())
