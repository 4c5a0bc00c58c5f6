"""Many processes build, run, tag and remove at random in one store.

    python -m faults.stress [SECONDS] [WORKERS]     (from tests/)

What a command may say no to is what a person would understand: there is no such image
any more, the name is taken. Everything else is a fault, and so is a store that a check
does not find clean afterwards.
"""

import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults.scenes import CHECK, Stage


IMAGES = ("one", "two", "three", "base:new")
BOXES = ("b1", "b2", "b3", "b4")
MAY_BE = re.compile(
    r"no such image|no such container|conflict: |is already in use by container|is running"
    r"|begins the ids|is not running"
)
DOCKERFILES = (
    "FROM base\nCOPY f /f\nRUN echo {n} > /n\nLABEL n={n}\n",
    "FROM {image}\nRUN echo {n} >> /more\n",
    "FROM {image}\nCOPY f /copy{n}\nLABEL m={n}\n",
    "FROM base AS first\nRUN echo x > /x{n}\nFROM {image}\nCOPY --from=first /x{n} /y\n",
)


class Worker:
    """One of them, with dice of its own."""

    def __init__(self, stage: Stage, number: int, seed: int) -> None:
        self.stage, self.dice = stage, random.Random(seed * 1000 + number)
        self.file = str(stage.place / f"Dockerfile{number}")
        self.done: Counter[str] = Counter()
        stage.said = str(stage.place / f"said{number}")

    def step(self) -> list[str]:
        """Do something; return what is wrong with how it went."""
        words = self.words()
        began = time.monotonic()
        [(status, said)] = self.stage.do(words)
        self.done[f"{words[0]} {'done' if status == 0 else 'refused'}"] += 1
        listing = words[0] in ("images", "ps", "system", "image", "import")
        if status and listing:
            return [f"{' '.join(words)}: {status}: {said}"]
        if (
            "Traceback" in said
            or "Errno" in said
            or (status and not MAY_BE.search(said))
        ):
            return [
                f"{' '.join(words)}: {status} after {time.monotonic() - began:.2f} s: {said}"
            ]
        return []

    def words(self) -> tuple[str, ...]:
        """Return a command line."""
        dice = self.dice
        image, other, box = dice.choice(IMAGES), dice.choice(IMAGES), dice.choice(BOXES)
        kind = dice.randrange(20)
        if kind < 6:
            text = dice.choice(DOCKERFILES).format(image=other, n=dice.randrange(4))
            Path(self.file).write_text(text)
            return ("build", "-q", "-t", image, "-f", self.file, "{context}")
        if kind < 9:
            script = f"echo {dice.randrange(9)} > /r"
            head = ("--rm",) if dice.random() < 0.5 else ("--name", box)
            return ("run", "--pull", "never", *head, image, "sh", "-c", script)
        return {
            9: ("tag", image, other),
            10: ("rmi", image),
            11: ("rmi", "-f", image),
            12: ("rm", box),
            13: ("rm", "-f", box),
            14: ("commit", box, image),
            15: ("image", "prune", "-f"),
            16: ("system", "prune", "-f"),
            17: ("images", "-a"),
            18: ("ps", "-as"),
            19: ("import", str(self.stage.place / "base.tar"), image),
        }[kind]


def work(stage: Stage, number: int, seed: int, until: float) -> None:
    """Be a worker; write what went wrong, and what was done, into a file."""
    worker, wrong = Worker(stage, number, seed), list[str]()
    while time.time() < until and not wrong:
        wrong = worker.step()
    text = "\n".join([repr(dict(worker.done)), *wrong])
    (stage.place / f"report{number}").write_text(text)


def stress(
    place: Path, seconds: float, workers: int = 8, seed: int = 0
) -> tuple[str, list[str]]:
    """Let them work; return what was done in words, and what was wrong."""
    stage = Stage(place, "overlay2")
    stage.begin()
    stage.do(("rmi", "other", "top"), *(("tag", "base", one) for one in IMAGES))
    until, children = time.time() + seconds, []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            try:
                work(stage, number, seed, until)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    done: Counter[str] = Counter()
    wrong = []
    for number in range(workers):
        first, *rest = (place / f"report{number}").read_text().split("\n")
        found = re.findall(r"'([^']+)': (\d+)", first)
        done.update({what: int(n) for what, n in found})
        wrong += ["\n".join(rest)] if rest else []
    looked, checked = stage.do(("images",), CHECK)
    wrong += [f"afterwards: {one}" for one in (looked, checked) if one[0]]
    wrong += stage.not_given_back([])
    stage.end()
    return ", ".join(f"{n} {what}" for what, n in sorted(done.items())), wrong


def main() -> int:
    seconds, workers = (float(one) for one in [*sys.argv[1:], "60", "8"][:2])
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    done, wrong = stress(place, seconds, int(workers), int(time.time()))
    print(done)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
