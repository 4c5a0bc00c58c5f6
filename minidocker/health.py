# From book/446-health.md. Edit there and tangle, or here and tangle --back.

# %% Health: does it still answer?
"""Ask a container how it is, in intervals; keep its last five answers."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from minidocker.calls import SysError
from minidocker.cgroups import Group
from minidocker.containers import Container, timestamp
from minidocker.durable import write_whole
from minidocker.errors import MinidockerError, UsageError
from minidocker.go_words import go_duration
from minidocker.joining import exec_in
from minidocker.linux import pidfd_send_signal
from minidocker.program import ProcessSpec, ulimits_of
from minidocker.pump import Pump, read_some
from minidocker.records import Record, json_text
from minidocker.runtime import Process


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
USUAL = {"Interval": 30.0, "Timeout": 30.0, "StartPeriod": 0.0}  # seconds
SECOND = 10**9
MOST_OUTPUT = 4096  # bytes of an answer that are kept
MOST_ANSWERS = 5


class Check(Record):
    """The question, how often it is asked, and with how much patience; in seconds."""

    argv: tuple[str, ...]
    interval: float
    timeout: float
    start_period: float
    retries: int


def check_of(container: Container) -> Check | None:
    """Return the health check of a container, or None where there is none."""
    found = container.config.healthcheck or {}
    kind, *words = found.get("Test") or ("NONE",)
    if kind == "NONE":
        return None
    if kind == "CMD-SHELL":
        words = [*(container.config.shell or ("/bin/sh", "-c")), *words]
    interval, timeout, period = (
        (found.get(key) or 0) / SECOND or usual for key, usual in USUAL.items()
    )
    return Check(tuple(words), interval, timeout, period, found.get("Retries") or 3)


class Answer(Record):
    """One answer: when it was asked for and came, the exit status, the output."""

    start: str
    end: str
    code: int
    output: str

    def to_dict(self) -> dict[str, Any]:
        """Return Docker's fields."""
        names = ("Start", "End", "ExitCode", "Output")
        values = (self.start, self.end, self.code, self.output)
        return dict(zip(names, values, strict=True))


# %% The nouns
class Health(Record):
    """How a container is: its status, its failures in a row, its last answers."""

    status: str = "starting"
    streak: int = 0
    answers: tuple[Answer, ...] = ()

    def after(self, answer: Answer, check: Check, age: float) -> Health:
        """Return the health after one more answer; ``age`` is since the start."""
        answers = (*self.answers, answer)[-MOST_ANSWERS:]
        if answer.code == 0:
            return Health("healthy", 0, answers)
        if self.status == "starting" and age < check.start_period:
            return self.replace(answers=answers)
        streak = self.streak + 1
        status = "unhealthy" if streak >= check.retries else self.status
        return Health(status, streak, answers)

    def to_dict(self) -> dict[str, Any]:
        """Return Docker's fields, as `inspect` shows them."""
        return {
            "Status": self.status,
            "FailingStreak": self.streak,
            "Log": [answer.to_dict() for answer in self.answers],
        }


# %% The monitor
class Monitor:
    """Asks a running container, within its supervisor's pump.

    ``note`` is called with the new health whenever there is one.
    """

    def __init__(
        self,
        pump: Pump,
        container: Container,
        check: Check,
        spec: tuple[int, Group | None, str],
        note: Callable[[Health], None],
    ) -> None:
        self.pump, self.container, self.check, self.note = pump, container, check, note
        self.pid, self.group, self.paused = spec
        self.health, self.born = Health(), time.monotonic()
        self.due, self.asked = self.born + check.interval, ""
        self.probe: Process | None = None
        self.pipe, self.output = -1, b""
        pump.clock = self.tick
        note(self.health)

    def tick(self) -> float:
        """Do what is due; return the milliseconds until something else is."""
        now = time.monotonic()
        if now >= self.due:
            if self.probe:
                self.give_up()
            else:
                self.ask()
        return max((self.due - time.monotonic()) * 1000, 0)

    def ask(self) -> None:
        """Start a probe, unless the container stands still."""
        self.due = time.monotonic() + self.check.timeout
        if os.path.exists(self.paused):
            self.due = time.monotonic() + self.check.interval
            return
        self.asked, self.output = timestamp(), b""
        self.pipe, theirs = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.probe = exec_in(self.pid, self.spec(null, theirs))
        except (MinidockerError, OSError) as why:
            self.answer(-1, str(why))
            return
        finally:
            os.close(null)
            os.close(theirs)
        os.set_blocking(self.pipe, False)
        self.pump.watch(self.pipe, select.POLLIN, self.read)
        self.pump.watch(self.probe.pidfd, select.POLLIN, self.end)

    def spec(self, null: int, out: int) -> ProcessSpec:
        """Return how a probe is started: as the container's own program."""
        config, host = self.container.config, self.container.host
        return ProcessSpec(
            self.check.argv,
            env=config.env or (),
            cwd=config.working_dir or "/",
            user=config.user,
            hostname=config.hostname,
            group=self.group,
            security=host.security,
            ulimits=ulimits_of(host.ulimits),
            groups=host.group_add,
            stdin=null,
            stdout=out,
            stderr=out,
        )

    def read(self) -> None:
        """Take what the probe says; keep the beginning."""
        data = read_some(self.pipe)
        if data:
            self.output = (self.output + data)[: MOST_OUTPUT + 1]
        elif data is not None:
            self.pump.drop(self.pipe)

    def end(self) -> None:
        """The probe has ended: that is an answer."""
        while self.pipe in self.pump.handlers and (data := read_some(self.pipe)):
            self.output = (self.output + data)[: MOST_OUTPUT + 1]
        self.answer(self.leave(), kept_of(self.output))

    def give_up(self) -> None:
        """The probe takes too long: that is an answer, too."""
        if self.probe:
            with suppress(SysError):
                pidfd_send_signal(self.probe.pidfd, signal.SIGKILL)
        self.leave()
        took = go_duration(round(self.check.timeout * 1e9))
        self.answer(-1, f"Health check exceeded timeout ({took})")

    def leave(self) -> int:
        """Reap the probe, and watch it no more; return its exit status."""
        code = -1
        if self.probe:
            code = self.probe.wait()
            self.pump.drop(self.probe.pidfd)
            os.close(self.probe.pidfd)
        self.probe = None
        return code

    def answer(self, code: int, output: str) -> None:
        """Count an answer, and wait for the next time to ask."""
        self.pump.drop(self.pipe)
        os.close(self.pipe)
        now = time.monotonic()
        answer = Answer(self.asked, timestamp(), code, output)
        self.health = self.health.after(answer, self.check, now - self.born)
        self.due = now + self.check.interval
        self.note(self.health)


def kept_of(output: bytes) -> str:
    """Return what is kept of an answer: three dots stand for the rest."""
    text = output[:MOST_OUTPUT].decode(errors="replace")
    return text + "..." if len(output) > MOST_OUTPUT else text


def write_health(path: str, health: Health) -> None:
    """Write down how a container is, for `inspect`."""
    write_whole(path, json_text(health.to_dict()))


# %% The flags of `run`
def health_flags(words: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the health check of ``--health-*`` and ``--no-healthcheck``, checked.

    Raises UsageError in Docker's words.
    """
    times = {
        "Interval": nanoseconds(words, "health-interval"),
        "Timeout": nanoseconds(words, "health-timeout"),
        "StartPeriod": nanoseconds(words, "health-start-period"),
    }
    retries = int(words.get("health-retries") or 0)
    if retries < 0:
        raise UsageError("--health-retries cannot be negative")
    command = words.get("health-cmd") or ""
    asked = bool(command or retries or any(times.values()))
    if words.get("no-healthcheck"):
        if asked:
            what = "--no-healthcheck conflicts with --health-* options"
            raise UsageError(what)
        return {"Test": ["NONE"]}
    if not asked:
        return None
    test = ["CMD-SHELL", command] if command else None
    return {"Test": test, **times, "Retries": retries}


def nanoseconds(words: Mapping[str, Any], flag: str) -> int:
    """Return the nanoseconds of a flag such as ``1m30s``; 0 when it was not given."""
    import re

    text = str(words.get(flag) or "")
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)", text)
    if text in ("", "0"):
        return 0
    if text.startswith("-"):
        raise UsageError(f"--{flag} cannot be negative")
    if "".join(number + unit for number, unit in parts) != text:
        what = f'invalid argument "{text}" for "--{flag}" flag'
        raise UsageError(what, hint="a number and ms, s, m or h, such as 1m30s")
    found = round(sum(float(number) * units[unit] for number, unit in parts) * SECOND)
    if 0 < found < SECOND // 1000:
        raise UsageError(f"--{flag} cannot be less than 1ms")
    return found
