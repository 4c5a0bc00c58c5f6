"""A host of the tests' own: a network namespace, and another one outside of it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minidocker.rtnetlink import inside, new_netns
from minidocker.wiring import prepare_namespace


HOST, OUTSIDE = "192.0.2.2", "192.0.2.1"


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


class Stage:
    """We are in the host; ``outside`` is reached by its only cable."""

    def __init__(self, outside: int) -> None:
        self.fd = outside

    def outside(self, *argv: str, **more: object) -> subprocess.CompletedProcess[str]:
        """Run a program outside."""
        words = ["nsenter", f"--net=/proc/self/fd/{self.fd}", *argv]
        return subprocess.run(
            words,
            pass_fds=[self.fd],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )

    @contextmanager
    def serving(self, code: str) -> Iterator[None]:
        """Run a server in Python outside, which prints a line when it is ready."""
        words = [
            "nsenter",
            f"--net=/proc/self/fd/{self.fd}",
            sys.executable,
            "-c",
            code,
        ]
        with subprocess.Popen(
            words, pass_fds=[self.fd], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout
                assert server.stdout.readline() == "ready\n"
                yield
            finally:
                server.kill()


def left() -> tuple[list[str], list[str]]:
    """What a network leaves: links and tables of rules."""
    links = [name for _, name in socket.if_nameindex() if name not in ("lo", "up0")]
    return links, run("nft", "list", "tables").splitlines()


def wait_until(found: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, found()
        time.sleep(0.02)


@contextmanager
def stage() -> Iterator[Stage]:
    """Be in a network namespace of our own for a ``with`` block; nothing may be left."""
    host, outside = new_netns(), new_netns()
    with inside(outside):
        prepare_namespace()
    with inside(host):
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "up0", "type", "veth", "peer", "up1")
        argv = ("nsenter", f"--net=/proc/self/fd/{outside}", "ip")
        subprocess.run(
            ["ip", "link", "set", "up1", "netns", f"/proc/{os.getpid()}/fd/{outside}"],
            check=True,
        )
        for words in ("addr add 192.0.2.1/24 dev up1", "link set up1 up"):
            subprocess.run([*argv, *words.split()], pass_fds=[outside], check=True)
        for words in (
            "addr add 192.0.2.2/24 dev up0",
            "link set up0 up",
            "route add default via 192.0.2.1",
        ):
            run("ip", *words.split())
        yield Stage(outside)
        wait_until(lambda: left() == ([], []))
    os.close(host)
    os.close(outside)


def fetch(host: str, port: int, family: int = socket.AF_INET) -> str:
    """What a server at a TCP port says; nothing where there is none."""
    with suppress(OSError), socket.socket(family) as one:
        one.settimeout(3)
        one.connect((host, port))
        data = b""
        while more := one.recv(1000):
            data += more
        return data.decode()
    return ""


def said_by(path: Path) -> str:
    with suppress(FileNotFoundError):
        return path.read_text()
    return ""
