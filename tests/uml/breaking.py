"""Inside a guest: break a command at its calls to device-mapper and to loop devices.

    python breaking.py SCENE STEP FIRST

The command of a scene is killed at every STEP-th of those calls and right after it, and
each is failed with EIO. Prints what is wrong afterwards, and how many were done.
"""

import errno
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.scenes import SCENES, Stage, import_all
from faults.tracer import Decide, Outcome, fail_at, go_on, kill_at, traced


def breaks(calls: list[str]) -> list[tuple[str, Decide]]:
    """Return each way to break a command that makes these calls."""
    found = []
    for number, call in enumerate(calls, 1):
        if call.startswith("ioctl"):
            found.append((f"killed at {number}, {call}", kill_at(number)))
            found.append((f"killed after {number}, {call}", kill_at(number + 1)))
            found.append((f"EIO at {number}, {call}", fail_at(number, errno.EIO)))
    return found


def main(name: str, step: int, first: int) -> int:
    """Break it; return how many times it went wrong."""
    import_all()
    stage = Stage(Path(tempfile.mkdtemp()), "devicemapper")
    scene, said, wrong = SCENES[name], str(stage.place / "out"), 0
    stage.begin()
    ways = breaks(traced(stage.command(scene.words), go_on, said, 120).calls)
    for what, decide in ways[first % step :: step]:
        stage.begin()
        try:
            outcome = traced(stage.command(scene.words), decide, said, 30)
        except TimeoutError:  # who watches the pool waits for the next command
            outcome = Outcome(said, status=-9)
        for one in stage.broken(scene, outcome.status, outcome.said):
            print(f"{name}, {what}: {one}", flush=True)
            wrong += 1
    print(f"{name}: {len(ways[first % step :: step])} of {len(ways)} done", flush=True)
    stage.end()
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) else 0)
