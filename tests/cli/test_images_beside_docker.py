"""Names, removal, filters, prunes and templates: the same words to Docker 20.10 and to us.

Ids are named by what they are the id of, on each side; the order in which Docker prints
what a prune removes is left out. What differs by design is said in WHY.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenery import tar_of

from bench.peers import docker
from cli.store import Store


pytestmark = pytest.mark.root

DOCKERFILES = {
    "web:v1": "FROM base:v1\nENV A=1 B=<2>\nCOPY note /\nUSER 33\n",
    "tool:v1": "FROM base:v1\nENV A=1 B=<2>\nLABEL stage=test owner=kb\n",
    "top:v1": 'FROM web:v1\nEXPOSE 80 53/udp\nVOLUME /data\nCMD ["/bin/busybox", "sleep", "600"]\n',
}
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "DOCKER_BUILDKIT": "0",
    "TZ": "UTC",
}
RUN = ("run", "--network", "none")
BOX = "/bin/busybox"


class Peer:
    """A command line, and names for the ids that it has printed."""

    def __init__(self, argv: list[str]) -> None:
        self.argv, self.names, self.ids = argv, dict[str, str](), dict[str, str]()

    def say(self, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
        words = tuple(self.placed(word) for word in words)
        done = subprocess.run(
            [*self.argv, *words],
            input=given,
            capture_output=True,
            check=False,
            timeout=60,
            env=ENVIRONMENT,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(words, done.returncode, out, err)

    def placed(self, word: str) -> str:
        """`{web}` is the id of web, `{web:6}` its first six digits."""

        def one(match: re.Match[str]) -> str:
            id = self.ids[match[1]]
            return id[7 : 7 + int(match[2])] if match[2] else id

        return (
            re.sub(r"\{([a-z0-9_]+)(?::(\d+))?\}(?!\})", one, word)
            if word[:2] != "{{"
            else word
        )

    def learn(self, name: str, image: str) -> None:
        id = self.say("inspect", "-f", "{{.Id}}", image).stdout.strip()
        self.ids[name] = id
        self.names[id.removeprefix("sha256:")] = name

    def told(self, text: str) -> list[str]:
        """Lines with ids by name; unknown digests are layers or containers."""
        for id, name in self.names.items():
            text = text.replace(f"sha256:{id}", f"<{name}>").replace(id, f"<{name}>")
            text = text.replace(id[:12], f"<{name}>")
        for pattern, word in (
            (r"file:[0-9a-f]+", "file:ID"), (r"sha256:[0-9a-f]{64}", "LAYER"), (r"\b[0-9a-f]{64}\b", "BOX"), (r"\b[0-9a-f]{12}\b", "BOX"),
            (r"(Less than a second|About a minute|\d+ (second|minute)s?) ago", "AGO"),
            (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)?", "TIME"), ("  +", "  "),
        ):  # fmt: skip
            text = re.sub(pattern, word, text)
        return text.splitlines()


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Peer]]:
    """Docker and us, each with a base and three images built on it."""
    where = tmp_path_factory.mktemp("dockerd")
    with docker(where) as client:
        both = [Peer(client), Peer(Store(where / "ours").argv())]
        fill(both, where)
        yield both


def fill(peers: list[Peer], where: Path) -> None:
    """Remove everything; make the base and what is built on it."""
    tree = tar_of({"bin": None, "bin/busybox": Path("/bin/busybox").read_bytes()})
    for peer in peers:
        peer.say("container", "prune", "-f")
        peer.say("image", "prune", "-af")
        assert peer.say("import", "-", "base:v1", given=tree).returncode == 0
        peer.learn("base", "base:v1")
        for tag, text in DOCKERFILES.items():
            build(peer, tag, text, where)


def build(peer: Peer, tag: str, text: str, where: Path) -> None:
    (where / "context").mkdir(exist_ok=True)
    (where / "context/note").write_text("a note\n")
    (where / "context/Dockerfile").write_text(text)
    done = peer.say("build", "-q", "-t", tag, str(where / "context"))
    assert done.returncode == 0, done.stderr
    name = tag.partition(":")[0]
    peer.learn(name, tag)
    parent, number = peer.ids[name], 0
    while parent := peer.say("inspect", "-f", "{{.Parent}}", parent).stdout.strip():
        if parent.removeprefix("sha256:") in peer.names:
            break
        number += 1
        peer.learn(f"{name}_{number}", parent)


def conflicts(text: str) -> list[str]:
    """What is said of conflicts, without who says it."""
    found = (re.search(r"conflict: .*", line) for line in text.splitlines())
    return [match[0] for match in found if match]


def differences(
    peers: list[Peer], script: list[tuple[str, ...]], why: dict[tuple[str, ...], str]
) -> list[object]:
    wrong: list[object] = []
    for line in script:
        done = [peer.say(*line) for peer in peers]
        outs = [peer.told(one.stdout) for peer, one in zip(peers, done, strict=True)]
        errs = [
            conflicts("\n".join(peer.told(one.stderr)))
            for peer, one in zip(peers, done, strict=True)
        ]
        if line[0] in ("images",) or "prune" in line:
            outs = [sorted(out) for out in outs]
        same = (
            outs[0] == outs[1]
            and errs[0] == errs[1]
            and done[0].returncode == done[1].returncode
        )
        if same is (line in why):
            wrong.append(
                (
                    line,
                    [one.returncode for one in done],
                    *outs,
                    *errs,
                    done[0].stderr,
                    done[1].stderr,
                )
            )
    return wrong


FORMATS = [
    "{{.Config}}", "{{.Config.Env}} {{.Config.Cmd}} {{.Config.Labels}} {{.Config.ExposedPorts}}", "{{json .Config}}",
    "{{.RootFS.Type}} {{len .RootFS.Layers}}", "{{.Config.Volumes}} {{.Config.OnBuild}} {{.Config.Entrypoint}}|{{.Config.Shell}}|",
    "{{range .Config.Env}}{{println .}}{{end}}", '{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$i}}={{$e}}{{end}}',
    '{{join .Config.Env ";"}}', '{{index .Config.Env 0}} {{index .RepoTags 0 | printf "%q"}}', "{{json .Config.Env}}",
    '{{if .Config.User}}user {{.Config.User}}{{else}}root{{end}}', "{{with .Config}}{{.User}}{{end}}", "{{.Os}}/{{.Architecture}}",
    '{{range $k, $v := .Config.ExposedPorts}}{{$k}} {{end}}', "{{upper .Os}} {{title .Os}} {{len .Id}} {{truncate .Os 2}}",
    "{{.Config.Labels.nobody}}", '{{index .Config.Labels "nobody"}}|', '{{printf "%5d|%-5s|%05d|%v|%x" 7 .Os 42 .RepoTags .Os}}',
    "{{eq .Os \"linux\"}} {{ne .Os \"linux\"}} {{and .Os .Id | len}} {{or .Author .Os}} {{not .Author}} {{lt 1 2}}",
    "{{- .Os -}}  x", "{{/* no */}}{{.Os}}", r"{{.Os}}\t{{.Os}}", '{{print "a" 1 2 "b"}}', "{{$x := .Os}}{{$x}}{{with $x}}{{.}}{{end}}",
    "{{split .Os \"n\"}}", "{{lower \"ABC\"}}{{pad .Os 1 2}}|", "{{html \"<a href='x'>&\"}}", "{{slice .Id 0 6}}", "{{.Config.Healthcheck}}",
    "{{range .RootFS.Layers}}{{slice . 0 7}}{{else}}none{{end}}", "{{range .Config.Cmd}}{{.}} {{else}}none{{end}}", "plain", "{{.Size}}",
    "{{.Nope}}", "{{.Config.Nope}}", "{{index .RepoTags 9}}", "{{", "{{.Os", "{{range .RepoTags}}", "{{nope .Os}}", "{{end}}",
    "{{json .RepoDigests}} {{.RepoDigests}} {{json .Config.Cmd}} {{json .Config.Labels}}", "{{.ContainerConfig.User}}", "{{.Comment}}|{{.Parent}}",
]  # fmt: skip


@pytest.mark.parametrize("image", ["top:v1", "tool:v1", "base:v1"])
def test_templates_of_inspect(peers: list[Peer], image: str) -> None:
    unreadable = (
        "{{",
        "{{.Os",
        "{{range .RepoTags}}",
        "{{nope .Os}}",
        "{{end}}",
    )
    wrong = []
    for form in FORMATS:
        done = [peer.say("inspect", "-f", form, image) for peer in peers]
        texts = [peer.told(one.stdout) for peer, one in zip(peers, done, strict=True)]
        statuses = [one.returncode for one in done]
        wanted = [64, 125] if form in unreadable else [statuses[0]] * 2
        if form in ("{{json .Config}}", "{{json .Config.Env}}"):
            # Docker's import writes "Env":null, which the OCI's schema refuses
            plain = [text[0].replace('"Env":[]', '"Env":null') for text in texts]
            texts = [[json.loads("null" if t == "[]" else t)] for t in plain]
        if statuses != wanted or (statuses == [0, 0] and texts[0] != texts[1]):
            wrong.append((form, statuses, *texts, done[0].stderr, done[1].stderr))
    assert not wrong, "\n".join(map(str, wrong))


LISTS = [
    ("images",), ("images", "-q"), ("images", "-aq"), ("images", "-a"), ("images", "--no-trunc"), ("images", "--digests"),
    ("images", "web"), ("images", "web:v1"), ("images", "web:nope"), ("images", "w*"), ("images", "*:v1"), ("images", "*/*"),
    ("images", "[tw]*"), ("images", "[^tw]*"), ("images", "no/such*"), ("images", "UPPER"),
    ("images", "--filter", "reference=t*", "--filter", "reference=b*"), ("images", "--filter", "reference=t*:v2"),
    ("images", "--filter", "label=stage"), ("images", "--filter", "label=stage=test"), ("images", "--filter", "label=stage=x"),
    ("images", "--filter", "label=stage", "--filter", "label=owner=kb"), ("images", "--filter", "dangling=true"),
    ("images", "--filter", "dangling=false"), ("images", "-f", "before=web:v1"), ("images", "-f", "since=web:v1"),
    ("images", "-f", "since=base:v1", "-f", "before=top:v1"), ("images", "-f", "since=nope"), ("images", "-f", "nope=1"),
    ("images", "-f", "dangling=perhaps"), ("images", "-f", "nothing"), ("images", "a", "b"), ("images", "["),
    ("images", "--format", r"table {{.Repository}}\t{{.Tag}}\t{{.ID}}"), ("images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}} {{.Digest}}"),
    ("images", "--format", r"table {{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.VirtualSize}}\t{{.Digest}}"), ("images", "--format", "{{.Nope}}"),
    ("images", "--format", "{{if eq .Tag \"v1\"}}{{.Repository}}{{end}}", "web"), ("images", "--format", "{{json .Repository}}", "web"),
    ("images", "--format", r"table {{upper .Repository}}\t{{json .Tag}}", "web"), ("images", "--format", "table", "web"),
    ("images", "--format", "{{.Containers}} {{.SharedSize}} {{.UniqueSize}} {{.CreatedAt}}", "web"), ("images", "--format", "{{"),
    ("image", "ls", "web"), ("history", "--format", "{{.ID}} {{.CreatedSince}} {{.Size}}|{{.Comment}}|", "top:v1"),
    ("history", "--format", r"table {{.CreatedBy}}\t{{.CreatedAt}}", "tool:v1"), ("history", "-H=false", "top:v1"),
    ("history", "--no-trunc", "-q", "top:v1"), ("image", "history", "web:v1"), ("history", "--format", "{{json .CreatedBy}}", "tool:v1"),
    ("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"),
]  # fmt: skip
WHY_LISTS = {
    ("images", "--format", "{{"): "a template that cannot be read is bad usage: 125 for 64",
}  # fmt: skip


def test_lists(peers: list[Peer]) -> None:
    wrong = differences(peers, LISTS, WHY_LISTS)
    assert not wrong, "\n".join(map(str, wrong))


REMOVAL = [
    ("tag", "web:v1", "web:v2"), ("tag", "{web:12}", "other/web"), ("tag", "{web}", "127.0.0.1:5000/web:x"), ("tag", "nope", "x"),
    ("tag", "web:v1", "web:v1"), ("tag", "web", "x"), ("images",), ("images", "-q"), ("inspect", "-f", "{{.RepoTags}}", "{web}"),
    ("rmi", "web:v2"), ("rmi", "web:v2"), ("rmi", "-f", "web:v2"), ("rmi", "{web}"), ("rmi", "-f", "{web}"), ("rmi", "{web:9}"),
    ("rmi", "base:v1"), ("images",), ("tag", "{base}", "base:v1"), ("rmi", "{base}"), ("rmi", "-f", "{base}"), ("rmi", "-f", "base:v1"),
    ("tag", "{base:4}", "base:v1"), ("rmi", "{web_1}"), ("rmi", "-f", "{web_2}"), ("rmi", "127.0.0.1:5000/web:x", "other/web", "nope"),
    ("rmi", "{tool:5}"), ("images", "-a"), ("rmi", "{tool}"),
    # a stopped container
    (*RUN, "--name", "box", "top:v1", BOX, "true"), ("rmi", "top:v1"), ("rmi", "{top}"), ("rmi", "web:v1"), ("tag", "{web}", "web:v1"),
    ("tag", "top:v1", "top:v2"), ("rmi", "top:v1"), ("rmi", "top:v2"), ("rmi", "{top}"), ("image", "prune", "-f"), ("image", "prune", "-af"),
    ("images", "-a"), ("rmi", "-f", "top:v2"), ("images", "-a"), ("ps", "-a", "--format", "{{.Names}}"), ("rm", "box"), ("images",),
]  # fmt: skip
RUNNING = [
    (*RUN, "-d", "--name", "busy", "web:v1", BOX, "sleep", "600"), ("rmi", "web:v1"), ("rmi", "{web}"), ("rmi", "-f", "{web}"),
    ("tag", "web:v1", "web:v2"), ("rmi", "-f", "{web}"), ("rmi", "web:v2"), ("rmi", "-f", "web:v1"), ("images",), ("rmi", "{web}"),
    ("rmi", "-f", "{web}"), ("image", "prune", "-f"), ("image", "prune", "-af"), ("images", "-a"), ("rm", "-f", "busy"), ("tag", "{web}", "web:v1"),
    ("rmi", "--no-prune", "web:v1"), ("images", "-a"), ("images", "-f", "dangling=true"), ("rmi", "--no-prune", "{web_1}"), ("images", "-a"),
    ("builder", "prune"), ("builder", "prune", "-f"), ("builder", "prune", "-a"),
    ("image", "prune", "-f", "--filter", "until=1h"), ("image", "prune", "-f", "--filter", "nope=1"), ("image", "prune"), ("image", "prune", "-f"),
    ("images", "-a"),
]  # fmt: skip
PRUNING = [
    ("image", "prune", "-af", "--filter", "label=stage=nope"), ("image", "prune", "-af", "--filter", "label=stage"), ("images",),
    (*RUN, "--name", "old", "base:v1", BOX, "sh", "-c", "echo 0123456789 > /x"), ("container", "prune"), ("container", "prune", "-f"),
    ("container", "prune", "-f"), ("image", "prune", "-a"), ("image", "prune", "-af", "--filter", "label!=x"), ("images", "-a"),
]  # fmt: skip


@pytest.mark.parametrize(
    "script", [REMOVAL, RUNNING, PRUNING], ids=["stopped", "running", "pruning"]
)
def test_names_and_removal(
    peers: list[Peer], script: list[tuple[str, ...]], tmp_path: Path
) -> None:
    fill(peers, tmp_path)
    if script is not REMOVAL:
        for peer in peers:
            peer.say("rmi", "top:v1")
    wrong = differences(peers, script, {})
    assert not wrong, "\n".join(map(str, wrong))
