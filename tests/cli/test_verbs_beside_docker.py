"""A container's life: the same command lines to Docker 20.10 and to us.

The same status, the same output, and the same first line of complaint, put aside ids,
times, quotes and who speaks. What differs is named in WHY, and in OTHER_WORDS where
only the words of a complaint do.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import docker
from cli.store import Store


pytestmark = pytest.mark.root

LOOP = "trap 'exit 7' TERM; while true; do sleep 0.1; done"
RUN, MAKE = ("run", "--network", "none"), ("create", "--network", "none")
SMALL = "small:v1"
BOXES = "{{.Names}} {{.Status}} {{.State}}"
LATE = "trap 'exit 9' 37; trap 'exit 8' 62; while true; do sleep 0.1; done"
SELF = "hostname; echo $HOSTNAME; cat /etc/hostname"
TOLD = "{{.Status}} {{.From}} {{.Scope}} {{.Type}} {{.Action}} {{.Actor.Attributes.exitCode}} {{.Actor.Attributes.none}}"
COMMITTED = "{{.Author}} {{.Comment}} {{json .Config.Cmd}} {{.Config.User}} {{.Config.Env}}"  # fmt: skip

DIALOGUE = [
    (*MAKE, "--name", "c1", SMALL, "sh", "-c", "echo hello; exit 3"),
    (*MAKE, "--name", "c1", SMALL, "true"), (*MAKE, "--name", "_bad", SMALL, "true"),
    (*MAKE, "--name", "x", SMALL, "true"), (*MAKE, "--pull", "never", "nothing", "true"),
    (*MAKE, SMALL), (*MAKE, "--no-such", SMALL, "true"), (*MAKE, "-m", "1m", SMALL, "true"),
    ("start", "c1"), ("wait", "c1"), ("start", "-a", "c1"), ("start", "nobody"),
    ("start", "c1", "nobody"), ("start",), ("start", "-a", "c1", "nobody"), ("start", "-ai", "c1"),
    ("logs", "nobody"), ("logs", "--tail", "1", "c1"), ("logs", "--tail", "x", "c1"),
    ("logs", "--since", "x", "c1"), ("logs", "-n", "-1", "c1"), ("logs",), ("logs", "a", "b"),
    ("stop", "c1"), ("stop", "nobody"), ("stop",), ("stop", "-t", "x", "c1"),
    (*RUN, "-d", "--name", "s1", SMALL, "sh", "-c", LOOP), ("stop", "-t", "5", "s1"),
    ("wait", "s1"), ("restart", "s1"), ("ps", "--format", BOXES), ("restart", "s1", "nobody"),
    ("kill", "-s", "NOPE", "s1"), ("kill", "-s", "0", "s1"), ("kill", "nobody"), ("kill",),
    ("kill", "-s", "TERM", "s1"), ("wait", "s1"), ("kill", "s1"), ("wait", "nobody"),
    ("wait", "s1", "c1"), ("wait", "s1", "nobody"), ("pause", "s1"), ("pause", "nobody"),
    ("start", "s1"), ("pause", "s1"), ("pause", "s1"), ("ps", "--format", BOXES),
    ("exec", "s1", "true"), ("start", "s1"), ("attach", "s1"), ("rm", "s1"),
    ("stop", "-t", "0", "s1"), ("unpause", "s1"), ("start", "s1"), ("unpause", "s1"),
    ("unpause", "nobody"), ("kill", "s1"), ("ps", "-a", "--format", BOXES),
    ("rename", "s1", "s2"), ("rename", "nobody", "x1"), ("rename", "s2", "c1"),
    ("rename", "s2", "s2"), ("rename", "s2", "_x"), ("rename", "s2"), ("rename", "s2", ""),
    ("start", "s2"), ("rm", "s2"), ("rm", "nobody"), ("rm", "-f", "nobody"), ("rm",),
    ("rm", "-f", "nobody", "s2"), ("rm", "-v", "c1"), ("rm", "c1", "c2"),
    (*RUN, "-d", "--name", "e1", SMALL, "sh", "-c", LOOP), ("exec", "e1"),
    ("exec", "nobody", "true"), ("exec", "-d", "e1", "true"), ("exec", "-d", "e1", "nope"),
    ("exec", "-e", "=x", "e1", "env"), ("exec", "-it", "e1", "sh"), ("exec", "-t", "e1", "true"),
    ("exec", "e1", "nope"), ("exec", "-w", "/nodir", "e1", "pwd"), ("exec", "-u", "nobody", "e1", "true"),
    ("exec", "--detach-keys", "zz", "e1", "true"), ("exec", "-u", "www:99", "e1", "id"),
    ("top", "e1", "-o", "args"), ("top", "nobody"), ("top",), ("top", "e1", "-o", "foo"),
    ("port", "e1"), ("port", "nobody"), ("port", "e1", "80"), ("port",), ("diff", "nobody"), ("diff", "e1"),
    ("commit", "nobody"), ("commit", "e1", "Upper"), ("commit", "-c", "FOO bar", "e1"), ("commit",),
    ("commit", "e1", "a", "b"), ("commit", "--pause=false", "e1", "cm:1"), ("commit", "-p", "e1", "cm:2"),
    ("commit", "-a", "x y", "-m", "m n", "-c", "CMD a b", "-c", "USER www", "-c", "ENV A=1 B=2", "e1", "cm:3"),
    ("inspect", "-f", COMMITTED, "cm:3"), ("attach", "nobody"), ("attach",), ("attach", "e1", "x"),
    ("update",), ("update", "nobody"), ("update", "-m", "10m", "nobody"),
    ("update", "--restart", "sometimes", "e1"), ("update", "--restart", "on-failure:3", "e1"),
    ("inspect", "-f", "{{.HostConfig.RestartPolicy}}", "e1"), ("stop", "-t", "5", "e1"), ("attach", "e1"),
    ("top", "e1"), ("exec", "e1", "true"), ("stats", "--no-stream", "nobody"),
    ("inspect", "--type", "image", "e1"), ("inspect", "--type", "volume", "zz"), ("inspect", "--type", "nope", "zz"),
    ("inspect", "zz"), ("inspect", "-f", "{{.SizeRw}}", "e1"), ("inspect", "-s", "-f", "{{.SizeRw}}", "e1"),
    ("container", "ps", "-a", "--format", "{{.Names}}"), ("container", "list", "-aq"), ("container", "inspect", "zz"),
    ("ps", "-a", "-f", "name=[", "-q"), ("ps", "-a", "-f", "is-task=true", "-q"), ("ps", "-a", "-f", "nope=1"),
    ("ps", "-f", "noeq"), ("ps", "-a", "-f", "exited=7", "--format", "{{.Names}}"), ("ps", "-a", "-f", "health=nope"),
    ("volume", "create", "Bad/name"), ("volume", "create", "-d", "nope", "vx"), ("volume", "create", "--opt", "nope=x", "vo"),
    ("volume", "create", "--opt", "type=none", "vq"), ("volume", "create", "--opt", "device=/x", "vq"), ("volume", "create", "a", "b"),
    (*RUN, "-v", "/tmp:/", SMALL, "true"), (*RUN, "-v", "/etc:/x", "-v", "/usr:/x", SMALL, "true"),
    (*RUN, "--rm", "-v", "/etc:/x:ro,z", SMALL, "true"), (*RUN, "-v", "/etc:/x:z,Z", SMALL, "true"),
    (*RUN, "--rm", "--cpu-quota", "5", SMALL, "true"), (*RUN, "--cpus", "1", "--cpu-quota", "9000", SMALL, "true"),
    (*RUN, "--isolation", "x", SMALL, "true"), (*RUN, "--gpus", "all", SMALL, "true"), (*RUN, "-l", "=x", SMALL, "true"),
    (*RUN, "--log-opt", "compress=true", SMALL, "true"), (*RUN, "--log-opt", "mode=x", SMALL, "true"), ("rm", "e1"),
    (*RUN, "-dit", "--name", "t1", "-l", "a.my-key=v", "-v", "named:/n", "--log-opt", "max-size=1m", SMALL, "sh", "-c", LATE), ("top", "t1", "-o", "args"),
    ("ps", "--format", '{{.Names}} {{.Label "a.my-key"}} {{.Label "b"}}'), ("ps", "--format", 'table {{.Names}}\t{{.Label "a.my-key"}}'),
    ("volume", "ls", "--format", '{{.Name}} {{.Label "b"}}', "-f", "name=named"), ("network", "ls", "-f", "name=none", "--format", '{{.Label "b"}}x'),
    ("inspect", "-f", "{{.HostConfig.LogConfig}} {{.HostConfig.Mounts}} {{.HostConfig.Sysctls}} {{.HostConfig.Init}}", "t1"),
    ("inspect", "-f", "{{range .Mounts}}{{.Name}} {{.Driver}} {{.Propagation}} {{.RW}};{{end}}", "t1"),
    ("inspect", "-f", "{{.NetworkSettings.Networks.mm.IPAddress}}|{{json .Config.Labels.a.b}}|{{printf `%s` .Config.Labels.no}}", "t1"),
    ("kill", "-s", "RTMIN+3", "t1"), ("wait", "t1"), ("start", "t1"), ("kill", "-s", "sigrtmax-2", "t1"), ("wait", "t1"), ("kill", "-s", "RTMAX-40", "t1"),
    ("events", "--since", "1h", "--until", "-1s", "-f", "container=t1", "-f", "event=die", "--format", TOLD), ("rm", "t1"),
    (*RUN, "--rm", "-u", ":5", SMALL, "id"), (*RUN, "--rm", "-e", "", SMALL, "true"),
    (*RUN, "--rm", "--ipc", "none", SMALL, "sh", "-c", "ls -d /dev/shm /dev/mqueue"),
    (*RUN, "--name", "i1", "--ipc", "none", SMALL, "true"), ("inspect", "-f", "{{.HostConfig.IpcMode}}", "i1"), ("start", "-a", "i1"),
    ("run", "--rm", "--network", "container:i1", SMALL, "true"), (*RUN, "--rm", "--ipc", "container:i1", SMALL, "true"),
    (*RUN, "--rm", "--pid", "container:i1", SMALL, "true"), (*RUN, "--name", "i2", "--pid", "container:i1", SMALL, "true"),
    ("inspect", "-f", "{{.State.Status}} {{.State.Running}} {{.State.StartedAt}} {{.State.FinishedAt}}", "i2"), ("start", "i2"), ("rm", "i2"),
    ("commit", "-c", "WORKDIR /made", "-c", "WORKDIR too", "-c", "VOLUME /v", "-c", "ONBUILD RUN x", "-c", "EXPOSE 90", "i1", "cm:4"),
    ("inspect", "-f", "{{.Config.WorkingDir}} {{.Config.Volumes}} {{.Config.OnBuild}} {{.Config.ExposedPorts}}", "cm:4"),
    (*RUN, "--rm", "cm:4", "pwd"), ("commit", "-c", "RUN x", "i1"), ("commit", "-c", "ARG x", "i1"), ("rm", "i1"),
    ("run", "--rm", "--network", "name=none", SMALL, "ls", "/sys/class/net"), ("run", "--network", "name=none,x=y", SMALL, "true"),
    ("run", "--network", "alias=x", SMALL, "true"), ("run", "--network", "name=none,alias=x", "--network-alias", "y", SMALL, "true"),
    ("run", "--rm", "--network", "host", SMALL, "sh", "-c", SELF), ("run", "--rm", "--network", "host", "-h", "me", SMALL, "sh", "-c", SELF),
    (*RUN, "-d", "--name", "n1", "-h", "boss", SMALL, "sh", "-c", LOOP), ("run", "--rm", "--network", "container:n1", SMALL, "sh", "-c", SELF),
    ("create", "--name", "n2", "--network", "container:n1", SMALL, "true"), ("rm", "n2"), ("stop", "-t", "5", "n1"), ("rm", "n1"),
    (*RUN, "-d", "--name", "f1", "--read-only", "-v", "/vol", "-v", "/etc:/ro:ro", "--tmpfs", "/t", SMALL, "sh", "-c", LOOP),
    ("cp", "/etc/hostname", "f1:/vol/h"), ("cp", "/etc/hostname", "f1:/ro/h"), ("cp", "/etc/hostname", "f1:/t/h"), ("cp", "/etc/hostname", "f1:/h"),
    ("exec", "f1", "ls", "/vol"), ("stop", "-t", "0", "f1"), ("cp", "/etc/hostname", "f1:/vol/i"), ("cp", "/etc/hostname", "f1:/ro/h"),
    ("cp", "/etc/hostname", "f1:/nowhere/"), ("cp", "/etc/hostname", "f1:/nowhere/x"), ("cp", "f1:/vol/h", "/nowhere/x"), ("rm", "-v", "f1"),
]  # fmt: skip

# Each difference in status or output, and why there is one.
WHY = {
    ("logs", "--tail", "x", "c1"): "Docker takes what is no number for all",
    ("exec", "e1", "nope"): "Docker 20.10 says 126 and 127 since; on the output",
    ("exec", "-w", "/nodir", "e1", "pwd"): "runc's complaint comes on the output",
    ("exec", "-u", "nobody", "e1", "true"): "as above",
}

# Only the words differ: ours have a hint below, or name what is wrong more closely.
OTHER_WORDS = """
commit -c FOO bar e1
commit e1 Upper
create --network none --name _bad small:v1 true
create --network none --name c1 small:v1 true
create --network none --name x small:v1 true
create --network none --pull never nothing true
exec --detach-keys zz e1 true
exec -d e1 nope
exec -e =x e1 env
logs --since x c1
ps -a -f health=nope
ps -f noeq
rename s2 _x
rename s2 c1
rm s1
rm s2
run --network none --gpus all small:v1 true
run --network none --log-opt compress=true small:v1 true
run --network none --log-opt mode=x small:v1 true
run --network none -l =x small:v1 true
run --network none -v /tmp:/ small:v1 true
stop -t x c1
top e1 -o foo
cp /etc/hostname f1:/nowhere/
cp /etc/hostname f1:/nowhere/x
cp f1:/vol/h /nowhere/x
run --network none --name i2 --pid container:i1 small:v1 true
start i2
run --network none --rm --ipc container:i1 small:v1 true
run --network none --rm --pid container:i1 small:v1 true
run --network none --rm -e  small:v1 true
run --rm --network container:i1 small:v1 true
volume create --opt device=/x vq
volume create --opt nope=x vo
volume create --opt type=none vq
volume create -d nope vx
volume create Bad/name
"""


def normal(text: str) -> list[str]:
    for pattern, name in (
        (r"sha256:[0-9a-f]{64}|\b[0-9a-f]{64}\b|\b[0-9a-f]{12}\b", "ID"),
        (r"(Less than a second|About a minute|\d+ (second|minute)s?) ago", "AGO"),
        (r"Up (Less than a second|About a minute|\d+ (second|minute)s?)", "UP"),
        (r"  +", "  "),
    ):
        text = re.sub(pattern, name, text)
    return text.splitlines()


def gist(text: str) -> str:
    """The first line of a complaint without who speaks, quotes and whom it names."""
    lines = [line for line in normal(text) if line.strip()]
    line = lines[0].lower() if lines else ""
    line = re.sub(r"^(docker|minidocker): ", "", line)
    line = re.sub(r"^error response from daemon: |^error: ", "", line)
    line = re.sub(r"^cannot kill container: \w+: ", "", line)
    line = re.sub(r"container \S+ is (already |not )", r"container it is \1", line)
    return re.sub(r"[\"'.]|mini(?=docker)", "", line)


def say(peer: list[str], *words: str) -> tuple[int, list[str], str]:
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(
        [*peer, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=env,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, normal(done.stdout), gist(done.stderr)


@pytest.fixture
def peers(
    tmp_path_factory: pytest.TempPathFactory, small_tree: Path
) -> Iterator[list[list[str]]]:
    """The beginnings of Docker's command line and of ours; both with an image."""
    where = tmp_path_factory.mktemp("dockerd")  # short: a socket is in it
    with docker(where) as client:
        found = [client, Store(where / "ours").argv()]
        for peer in found:
            with small_tree.open("rb") as tree:
                subprocess.run([*peer, "import", "-", SMALL], stdin=tree, check=True)
        yield found


def test_the_same_words_have_the_same_answer(peers: list[list[str]]) -> None:
    wrong, words = [], set()
    for line in DIALOGUE:
        theirs, ours = (say(peer, *line) for peer in peers)
        if (theirs[:2] == ours[:2]) is (line in WHY):
            wrong.append((line, theirs, ours))
        elif line not in WHY and theirs[2] != ours[2]:
            words.add(" ".join(line))
    assert not wrong, "\n".join(map(str, wrong))
    known = set(OTHER_WORDS.strip().splitlines())
    assert words == known, "\n".join(sorted(words ^ known))
