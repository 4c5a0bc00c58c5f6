"""The same words to Docker 20.10 and to us: the same status, the same text.

What differs is named in WHY. Ids, times, ages and the order of what is equally old are
put aside.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import docker
from cli.store import Store


pytestmark = pytest.mark.root

DOCKERFILE = """\
FROM small:v1
ENV A=1 B="two words"
COPY note /srv/
RUN echo built > /built
WORKDIR /srv
USER www
EXPOSE 80 53/udp
LABEL a=b c="d e"
VOLUME /data
STOPSIGNAL SIGUSR1
ENTRYPOINT ["cat"]
CMD ["note"]
"""
SCRIPT = "touch /new; rm /bin/plain; echo x > /etc/x; exec sleep 600"
ALL_OF_PS = "{{.ID}}|{{.Image}}|{{.Command}}|{{.RunningFor}}|{{.Status}}|{{.Names}}|{{.State}}|{{.Ports}}|{{.Labels}}|{{.Mounts}}|{{.Networks}}|{{.Size}}|{{.LocalVolumes}}"
CONFIG = "{{.Config.Env}} {{.Config.Cmd}} {{.Config.Labels}} {{.Config.ExposedPorts}} {{.Config.User}} {{.Config.StopSignal}} {{.Config.Volumes}}"
STATE = "{{.State.ExitCode}} {{.State.Status}} {{.State.Running}} {{.Name}} {{.Path}} {{.Args}}"

# A dialogue: every line leads to the next. TAR is the image's tree on the input, TEXT a line.
DIALOGUE = [
    ("import", "-", "small:v1", "TAR"),
    ("import", "-c", "CMD echo hi", "-m", "by me", "-", "other", "TAR"),
    ("images",), ("images", "-q"), ("images", "-a"), ("images", "small"),
    ("images", "--format", "{{.Repository}}|{{.Tag}}|{{.ID}}|{{.Size}}|{{.CreatedSince}}"),
    ("images", "--format", r"table {{.Repository}}\t{{.Size}}\t{{.ID}}"),
    ("images", "--no-trunc"),
    ("history", "small:v1"),
    ("build", "-t", "env:v1", "CONTEXT"), ("build", "-t", "env:v1", "CONTEXT"),
    ("build", "-q", "CONTEXT"), ("build", "-t", "UPPER", "CONTEXT"), ("build", "/no/such"),
    ("images",), ("images", "-a"),
    ("history", "env:v1"), ("history", "--no-trunc", "env:v1"), ("history", "-q", "env:v1"),
    ("history", "--format", "{{.ID}} {{.Size}} {{.CreatedBy}}", "env:v1"),
    ("history", "--format", r"table {{.Size}}\t{{.CreatedBy}}", "env:v1"),
    ("history", "-H=false", "--format", r"table {{.CreatedBy}}\t{{.CreatedSince}}", "env:v1"),
    ("inspect", "-f", CONFIG, "env:v1"), ("inspect", "-f", CONFIG, "small:v1"),
    ("inspect", "-f", "{{json .Config}}", "env:v1"),
    ("inspect", "-f", "{{.Id}} {{.Os}}/{{.Architecture}} {{.RepoTags}}", "env:v1"),
    ("inspect", "nothing"), ("history", "nothing"),
    ("ps",), ("ps", "-a"),
    ("run", "--network", "none", "--rm", "env:v1"),
    ("run", "--network", "none", "--name", "one", "small:v1", "sh", "-c", "echo out; exit 3"),
    ("ps",), ("ps", "-a"), ("ps", "-q"), ("ps", "-aq"), ("ps", "-aq", "--no-trunc"),
    ("ps", "-a", "--no-trunc"), ("ps", "-as"), ("ps", "-l"), ("ps", "-n", "1"),
    ("ps", "-a", "--format", ALL_OF_PS),
    ("ps", "-a", "--format", r"table {{.Names}}\t{{.Status}}\t{{.Image}}\t{{.RunningFor}}"),
    ("logs", "one"), ("logs", "-t", "one"), ("logs", "--tail", "0", "one"), ("diff", "one"),
    ("wait", "one"), ("inspect", "-f", STATE, "one"), ("stop", "one"), ("kill", "one"),
    ("exec", "one", "true"), ("rm", "one"), ("rm", "one"), ("logs", "one"), ("wait", "one"),
    ("rmi", "nothing"),
    ("run", "--network", "none", "-d", "--name", "web", "-e", "A=1", "-w", "/tmp",
     "--hostname", "box", "-l", "k=v",  "small:v1", "sh", "-c", SCRIPT),
    ("ps",), ("ps", "--format", "{{.Command}} {{.Labels}} {{.State}}"), ("ps", "--no-trunc"),
    ("inspect", "-f", STATE, "web"),
    ("exec", "web", "sh", "-c", "echo $A; pwd; hostname; exit 4"),
    ("exec", "-i", "web", "cat", "TEXT"),
    ("exec", "-u", "www", "-w", "/etc", "-e", "Q=2", "web", "sh", "-c", "id -u; pwd; echo $Q"),
    ("exec", "web", "/etc"), ("exec", "nobody", "true"),
    ("diff", "web"),
    ("commit", "-m", "msg", "-a", "me", "-c", "ENV Z=1", "web", "com:v1"), ("history", "com:v1"),
    ("inspect", "-f", "{{.Config.Env}} {{.Author}} {{.Comment}}", "com:v1"),
    ("tag", "com:v1", "127.0.0.1:5000/x/y:z"), ("images",),
    ("rmi", "com"), ("rmi", "com:v1"), ("rmi", "127.0.0.1:5000/x/y:z"),
    ("rm", "web"), ("rmi", "small:v1"),
    ("run", "--network", "none", "--name", "web", "small:v1", "true"),
    ("inspect", "-f", "{{json .Config.Labels}} {{json .Config.Env}}", "web"),
    ("stop", "-t", "0", "web"), ("ps",), ("ps", "-a"), ("wait", "web"),
    ("rm", "-f", "web"), ("rm", "-f", "web"), ("kill", "web"), ("stop", "web"),
    ("run", "--network", "none", "--rm", "small:v1", "nope"),
    ("run", "--network", "none", "--rm", "small:v1", "/bin/plain"),
    ("run", "--network", "none", "--rm", "small:v1", "sh", "-c", "kill -9 $$"),
    ("run", "--network", "none", "--rm", "small:v1"), ("run", "--network", "none", "UPPER"),
    ("run", "--nmae", "x", "small:v1"), ("run",), ("ps", "extra"), ("nonsense",),
    ("tag", "nothing", "x"), ("tag", "small:v1", "UPPER"), ("rmi", "UPPER"), ("inspect",),
    ("rmi", "env:v1"), ("rmi", "other"), ("images", "-a"), ("rmi", "small:v1"), ("images",),
]  # fmt: skip

# Each difference, and why there is one.
WHY = {
    (
        "exec",
        "web",
        "/etc",
    ): "runc's complaint comes on the output, as if the command spoke",
}


def normal(text: str) -> list[str]:
    """Lines without what may differ, those of equal age in one order."""
    text = re.sub(r"^Sending build context to Docker daemon.*\n\n?", "", text)
    for pattern, name in (
        (r"sha256:[0-9a-f]{64}", "ID"),
        (r"\b[0-9a-f]{64}\b", "ID"),
        (r"file:[0-9a-f]+(?=…| )", "file:ID"),
        (r"\b[0-9a-f]{12}\b", "ID"),
        (r"(Less than a second|About a minute|\d+ (second|minute)s?) ago", "AGO"),
        (r"Up (Less than a second|About a minute|\d+ (second|minute)s?)", "UP"),
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)?", "TIME"),
        (r"  +", "  "),
    ):
        text = re.sub(pattern, name, text)
    return text.splitlines()


def same_age(words: tuple[str, ...]) -> bool:
    """Whether Docker gives the lines of this command in no order."""
    return words[0] in ("images", "diff")


@pytest.fixture(scope="module")
def peers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[list[str], list[str]]]:
    """The beginnings of Docker's command line and of ours."""
    where = tmp_path_factory.mktemp("dockerd")
    with docker(where) as client:
        yield client, Store(where / "ours").argv()


def test_the_same_words_have_the_same_answer(
    peers: tuple[list[str], list[str]], small_tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "note").write_text("a note\n")
    inputs = {"TAR": small_tree.read_bytes(), "TEXT": b"some text\n"}
    wrong = []
    for line in DIALOGUE:
        given = b"".join(inputs.get(word, b"") for word in line)
        words = [word for word in line if word not in inputs]
        words = [word.replace("CONTEXT", str(tmp_path)) for word in words]
        answers = [
            subprocess.run(
                [*peer, *words],
                input=given,
                capture_output=True,
                check=False,
                timeout=60,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DOCKER_BUILDKIT": "0"},
            )
            for peer in peers
        ]
        texts = [normal(answer.stdout.decode()) for answer in answers]
        if same_age(line):
            texts = [sorted(text) for text in texts]
        statuses = [answer.returncode for answer in answers]
        same = texts[0] == texts[1] and statuses[0] == statuses[1]
        if same is (line in WHY):
            wrong.append((line, statuses, *texts, answers[1].stderr))
    assert not wrong, "\n".join(map(str, wrong))


# What a program sees, a fact a line; every applet is named by busybox, which is static.
LOOK_AROUND = r"""
b=busybox
$b awk '{for (i = 7; i <= NF; i++) if ($i == "-") t = $(i + 1); print "mount", $5, t, $6}' /proc/self/mountinfo
$b find /dev | while read f; do echo dev $($b stat -c '%n %A %u:%g %t,%T' $f) $($b readlink $f); done
$b grep -E 'Cap|NoNew|Seccomp:|Groups|Uid|Gid' /proc/self/status | $b sed 's/^/status /'
for n in 0 1 2 5 6 7 8 9 10; do [ -e /proc/self/fd/$n ] && echo descriptor $n; done
$b tail -n +3 /proc/net/dev | $b cut -d: -f1 | $b sed 's/^/link /'
for f in acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list timer_stats; do
  echo masked $f $(cat /proc/$f 2>&1 | $b head -c 9 | $b wc -c) $(ls /proc/$f 2>&1 | $b wc -l)
done
for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/x /proc/bus/x /proc/fs/x /sys/kernel/x; do
  echo written $( (echo x > $f) 2>&1)
done
env | $b grep -v HOSTNAME | $b sed 's/^/env /'
echo session $($b awk '{print $1, $4, $5, $6, $7}' /proc/1/stat) umask $(umask) name $(hostname | $b wc -c)
$b sed 's/^/limit /' /proc/self/limits
echo ids $(cat /proc/self/uid_map) $(cat /proc/self/setgroups) $(cat /proc/self/oom_score_adj)
echo mounting $(mount -t tmpfs x /tmp 2>&1)
$b mknod /tmp/b b 8 0; echo disk $(cat /tmp/b 2>&1)
for d in / /etc; do ls -a $d | $b sed "s#^#in $d #"; done
$b sed 's/^/hosts /' /etc/hosts | $b grep -v "$(hostname)"
"""

# Each difference from what Docker 20.10 shows, as a pattern, and why there is one.
OTHERWISE = {
    r"dev /dev/core .*": "runc makes the link only where the kernel has a /proc/kcore",
    r"mount (/|/dev|/dev/\w+|/etc/\w+(\.conf)?) .*": "nodev, and the six nodes bound: Docker asks the device control group instead",
    r"mount /proc/\w+ .*": "a mask is the host's /dev/null here, and the container's own there",
    r"disk .*": "for the same reason it is EACCES here and EPERM there",
    r"masked interrupts .*": "Docker masks it since 25",
    r"mount /sys/fs/cgroup.*": "Docker shows the host's groups of version 1, we show none, or our own",
    r"in /etc mtab": "Docker makes a link to /proc/mounts for old programs",
    r"in / \.dockerenv": "the file says that this is Docker, which it is not",
    r"status Seccomp:.*": "a filter",
}  # fmt: skip


def test_a_container_sees_what_docker_s_sees(
    peers: tuple[list[str], list[str]], small_tree: Path
) -> None:
    seen = []
    for peer in peers:
        tree = small_tree.read_bytes()
        subprocess.run([*peer, "import", "-", "look"], input=tree, check=True)
        words = [
            *peer,
            "run",
            "--rm",
            "--network",
            "none",
            "look",
            "sh",
            "-c",
            LOOK_AROUND,
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        seen.append({re.sub(r"\s+", " ", line) for line in done.stdout.splitlines()})
    assert min(map(len, seen)) > 100
    unexplained = [
        line
        for line in sorted(seen[0] ^ seen[1])
        if not any(re.fullmatch(pattern, line) for pattern in OTHERWISE)
    ]
    assert not unexplained, "\n".join(unexplained)
