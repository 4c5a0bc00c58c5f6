# From book/634-progress.md. Edit there and tangle, or here and tangle --back.

# %% Progress: what a build shows
"""What a build shows while it runs: lines, objects, or a display that moves."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from minidocker.errors import UsageError, did_you_mean
from minidocker.flags import Given
from minidocker.oci import go_json


TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.console import Console, RenderableType


# %% Lines
class Progress:
    """Shows the lines of a build and, through ``output``, what its commands print."""

    output = -1  # the descriptor that commands write to; -1 is our own output

    def __call__(self, line: str) -> None:
        print(line, flush=True)

    def end(self, *, failed: bool = False) -> None:
        """Finish: nothing more comes."""


class Quiet(Progress):
    """Keeps everything, and shows it when the build has failed."""

    def __init__(self) -> None:
        self.output = os.memfd_create("build", os.MFD_CLOEXEC)

    def __call__(self, line: str) -> None:
        os.write(self.output, os.fsencode(f"{line}\n"))

    def end(self, *, failed: bool = False) -> None:
        """Show what was kept, if that is wanted."""
        at = 0
        while failed and (data := os.pread(self.output, 1 << 16, at)):
            os.write(2, data)
            at += len(data)
        os.close(self.output)


class Json(Progress):
    """Prints each line as an object, as Docker's daemon sends them."""

    def __init__(self) -> None:
        import threading

        source, self.output = os.pipe2(os.O_CLOEXEC)
        self.reader = threading.Thread(target=self.wrap, args=(source,), daemon=True)
        self.reader.start()

    def __call__(self, line: str) -> None:
        os.write(self.output, os.fsencode(f"{line}\n"))

    def wrap(self, source: int) -> None:
        """Wrap what comes until there is no more."""
        with open(source, "rb") as lines:
            for line in lines:
                print(
                    go_json({"stream": line.decode(errors="replace")}).decode(),
                    flush=True,
                )

    def end(self, *, failed: bool = False) -> None:
        """Wait until all is printed."""
        os.close(self.output)
        self.reader.join()


# %% A display that moves
TAIL = 6  # lines of a command that are shown while it runs
KEPT = 200  # lines that are shown of one that has failed


class Step:
    """A step that runs: its heading, since when, what it said, and what of it."""

    def __init__(self, heading: str, since: float) -> None:
        self.heading, self.since = heading, since
        self.state, self.notes = "", list[str]()
        self.said: deque[str] = deque(maxlen=KEPT)


HEADING = r"(?s)Step (\d+/\d+) : (.*)"  # compiled for who is shown lines
REASON = " ---> Not cached: "
UNSEEN = r" ---> (?:Running in )?[0-9a-f]{12}$|Removing intermediate"
CONTROL = r"\x1b\[[0-9;?]*[A-Za-z]|\x1b.|[\x00-\x08\x0b-\x1f\x7f]"


def plain_line(line: str) -> str:
    """Return what a terminal would show of a line that a command prints.

    >>> plain_line("10%\\r\\x1b[1m20%\\x1b[0m")
    '20%'
    """
    return re.sub(CONTROL, "", line.rstrip("\r").rpartition("\r")[2].expandtabs())


# %% A display that moves
class Drawing:
    """What the reader of the pipe knows: the step that runs, and how to draw it.

    ``mark`` comes before each of the builder's own lines.
    """

    def __init__(self, console: Console, mark: str, clock: Callable[[], float]) -> None:
        self.console, self.mark, self.clock = console, mark, clock
        self.step: Step | None = None

    def hear(self, line: str) -> None:
        """Take one line of the pipe."""
        said, mark, told = line.partition(self.mark)
        if self.step and (said or not mark):
            self.step.said.append(plain_line(said))
        if mark:
            self.told(told)

    def told(self, line: str) -> None:
        """Take a line of the builder."""
        if found := re.fullmatch(HEADING, line):
            self.finish()
            heading = f"{found[1]:>5}  {plain_line(found[2])}"
            self.step = Step(heading, self.clock())
        elif self.step and line.startswith(" ---> Using cache"):
            self.step.state = "cached"
        elif self.step and line.startswith(REASON):
            self.step.notes.append(f"not cached: {line.removeprefix(REASON)}")
        elif line.startswith("Successfully"):
            self.finish()
            self.console.print(line, style="green", markup=False, highlight=False)
        elif self.step and not re.match(UNSEEN, line):
            self.step.notes.append(line)

    def finish(self, *, failed: bool = False) -> None:
        """Print a step that is done, once and for all."""
        step, self.step = self.step, None
        if step:
            step.state = "failed" if failed else step.state
            self.console.print(self.drawn(step, KEPT if failed else 0))

    def __rich__(self) -> RenderableType:
        """Draw the step that runs; the library asks for it, several times a second."""
        return self.drawn(self.step, TAIL) if self.step else ""

    def drawn(self, step: Step, most: int) -> RenderableType:
        """Draw a step with the last lines of what it printed."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        seconds = f"{self.clock() - step.since:6.1f} s"
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        head.add_column(no_wrap=True, justify="right")
        style = {"cached": "cyan", "failed": "bold red"}.get(step.state, "bold")
        right = Text(f"{step.state} {seconds}", style="dim")
        head.add_row(Text(step.heading.split("\n")[0], style=style), right)
        tail = list(step.said)[-most:] if most else []
        lines = [
            *(f"       {note}" for note in step.notes),
            *(f"     | {t}" for t in tail),
        ]
        text = Text("\n".join(lines), style="dim", no_wrap=True, overflow="ellipsis")
        return Group(head, text) if lines else head


# %% A display that moves
def draw(source: int, mark: str) -> None:
    """Read the pipe to its end, and draw; a last line says how the build ended."""
    from time import monotonic

    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    drawing = Drawing(console, mark, monotonic)
    ended = ""
    with (
        open(source, encoding="utf-8", errors="replace", newline="\n") as lines,
        Live(drawing, console=console, refresh_per_second=10, transient=True),
    ):
        for line in lines:
            said, _, ended = line.removesuffix("\n").partition(mark)
            if ended not in {DONE, FAILED}:
                drawing.hear(line.removesuffix("\n"))
            elif said:
                drawing.hear(said)
        drawing.finish(failed=ended == FAILED)


DONE, FAILED = "done", "failed"


class Display(Progress):
    """Draws the step that runs, in a process of its own."""

    def __init__(self) -> None:
        source, self.output = os.pipe2(os.O_CLOEXEC)
        self.mark = f"\x00{os.urandom(8).hex()} "
        self.process = os.fork()
        if not self.process:
            self.be_the_process(source)
        os.close(source)

    def be_the_process(self, source: int) -> None:
        """Draw until there is nothing more, and end; the keyboard is not ours."""
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.close(self.output)
        status = 1
        try:
            draw(source, self.mark)
            status = 0
        finally:
            os._exit(status)

    def __call__(self, line: str) -> None:
        with suppress(BrokenPipeError):
            text = line.replace("\n", "\\n")
            os.write(self.output, os.fsencode(f"{self.mark}{text}\n"))

    def end(self, *, failed: bool = False) -> None:
        """Say how the build ended, and wait until that is drawn."""
        self(FAILED if failed else DONE)
        os.close(self.output)
        os.waitpid(self.process, 0)


# %% Which of them
PROGRESS: dict[str, Callable[[], Progress]] = {
    "plain": Progress, "rich": Display, "tty": Display, "json": Json,
}  # fmt: skip


def progress_of(given: Given) -> Progress:
    """Return how progress is shown: as asked for, and drawn only on a terminal."""
    name = given.text("progress")
    if given.on("quiet"):
        return Quiet()
    if name == "auto":
        name = "plain" if "NO_COLOR" in os.environ else "rich"
    if name not in PROGRESS:
        hint = did_you_mean(name, PROGRESS, other=f"there are {', '.join(PROGRESS)}")
        raise UsageError(f'no progress "{name}"', where="--progress", hint=hint)
    if PROGRESS[name] is Display and (not os.isatty(1) or given.on("shell-on-error")):
        name = "plain"
    return PROGRESS[name]()
