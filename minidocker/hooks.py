# From book/468-hooks.md. Edit there and tangle, or here and tangle --back.

# %% Hooks: others have something to do meanwhile
"""Run the hooks of a bundle, each with the container's state."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping

from minidocker.documents import Part
from minidocker.errors import RuntimeFault
from minidocker.linux import pidfd_open
from minidocker.records import Record, json_text


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% In the document
class Hook(Record):
    """A program that is run at some moment; ``timeout`` in seconds, 0 for none."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int = 0


def hooks_of(config: Part, moment: str) -> tuple[Hook, ...]:
    """Return a document's hooks of a moment: ``prestart``, ``poststop``, ..."""
    return tuple(map(hook_of, config.get("hooks").get(moment).each()))


def annotations_of(config: Part) -> dict[str, str]:
    """Return a document's annotations."""
    return dict(config.get("annotations").pairs())


def hook_of(found: Part) -> Hook:
    """Return a hook; its path must be absolute, and its time more than none."""
    path, limit = found.get("path").text(), found.get("timeout")
    if not path.startswith("/"):
        raise found.get("path").wrong("is no absolute path")
    if limit.value is not None and limit.number() <= 0:
        raise limit.wrong("is not more than 0")
    args, env = found.get("args").texts(), found.get("env").texts()
    return Hook(path, args or (path,), env, limit.number())


HOOKS = (
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
    "poststop",
)  # fmt: skip


# %% To run one
def hook_state(
    id: str, pid: int, status: str, bundle: str, config: Part
) -> dict[str, Any]:
    """Return the state that a hook reads, as the specification has it."""
    found: dict[str, Any] = {"ociVersion": OCI_VERSION, "id": id, "status": status}
    if pid:
        found["pid"] = pid
    found["bundle"] = bundle
    if annotations := annotations_of(config):
        found["annotations"] = annotations
    return found


OCI_VERSION = "1.2.0"


def run_hook(hook: Hook, state: Mapping[str, Any]) -> None:
    """Run a hook to its end. Raises RuntimeFault for one that fails or takes too long.

    It has only the variables that it names itself, and what it says on standard
    error is the error's text.
    """
    read_in, write_in = os.pipe()
    read_err, write_err = os.pipe()
    pid = os.fork()
    if pid == 0:
        be_hook(hook, read_in, write_err)
    os.close(read_in)
    os.close(write_err)
    try:
        feed(write_in, json_text(state).encode())
        said = wait_for(pid, hook, read_err)
    finally:
        os.close(read_err)
    if said:
        raise RuntimeFault(f"error running hook: {said}", where=hook.path)


# %% To run one
def be_hook(hook: Hook, stdin: int, stderr: int) -> None:
    """Become the hook's program; never return."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.dup2(stdin, 0)
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        env = dict(line.partition("=")[::2] for line in hook.env)
        os.execve(hook.path, hook.args, env)  # noqa: S606
    except OSError as why:
        os.write(2, os.fsencode(f"{why.strerror}: {hook.path}"))
    finally:
        os._exit(127)


def feed(pipe: int, data: bytes) -> None:
    """Write a hook's input and close the pipe; a hook need not read it."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        os.write(pipe, data)
    except BrokenPipeError:
        pass
    finally:
        signal.signal(signal.SIGPIPE, before)
        os.close(pipe)


# %% To run one
def wait_for(pid: int, hook: Hook, stderr: int) -> str:
    """Wait for a hook; return what is wrong, or nothing. Kills one that is too slow."""
    pidfd = pidfd_open(pid)
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    limit = hook.timeout * 1000 if hook.timeout else None
    too_slow = not waiting.poll(limit)
    if too_slow:
        os.kill(pid, signal.SIGKILL)
    os.close(pidfd)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if too_slow:
        return f"it did not end within {hook.timeout} seconds"
    if code == 0:
        return ""
    os.set_blocking(stderr, False)
    try:
        text = os.fsdecode(os.read(stderr, 4096)).strip()
    except BlockingIOError:
        text = ""
    how = f"exit status {code}" if code > 0 else f"signal {-code}"
    return f"{how}, stderr: {text}"


def run_hooks(config: Part, moment: str, state: Mapping[str, Any]) -> None:
    """Run the hooks of a moment in order; the first that fails ends it."""
    for hook in hooks_of(config, moment):
        run_hook(hook, state)
