"""The options of `build`, and `context ls`, as a user types them."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from peers import docker_registry
from scenery import tar_of

from cli.store import Store


Context = Callable[..., str]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    def write(dockerfile: str, **files: str) -> str:
        home = tmp_path / "context"
        home.mkdir(exist_ok=True)
        (home / "Dockerfile").write_text(dockerfile)
        for name, text in files.items():
            (home / name).write_text(text)
        return str(home)

    return write


TEXT = "FROM small:v1\nCOPY note /note\n"


def test_a_dockerfile_may_come_from_the_input(store: Store, context: Context) -> None:
    store.says("build", "-t", "in", "-", stdin=b"FROM small:v1\nRUN echo x > /x\n")
    assert store.says("run", "--rm", "in", "cat", "/x") == "x\n"
    path = context("FROM gone", note="n")
    store.says("build", "-t", "in", "-f", "-", path, stdin=TEXT.encode())
    assert store.says("run", "--rm", "in", "cat", "/note") == "n"
    done = store("build", "-f", "-", "-", stdin=b"FROM small:v1")
    assert done.returncode == 125


@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd"])
def test_a_context_may_come_from_the_input(store: Store, pack: str) -> None:
    raw = tar_of({
        "Dockerfile": b"FROM small:v1\nCOPY . /all\n", "a": b"a", "b": b"b",
        ".dockerignore": b"b\n", "Other": b"FROM small:v1\nCOPY b /other\n",
        "Other.dockerignore": b"a\n",
    })  # fmt: skip
    packers = {
        "plain": bytes, "gzip": gzip.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }  # fmt: skip
    tar = packers[pack](raw)
    store.says("build", "-t", "sent", "-", stdin=tar)
    found = store.says("run", "--rm", "sent", "ls", "/all").split()
    assert found == ["Dockerfile", "Other", "Other.dockerignore", "a"]
    store.says("build", "-t", "other", "-f", "Other", "-", stdin=tar)
    assert store.says("run", "--rm", "other", "cat", "/other") == "b"
    assert not list((store.root / "tmp").glob("*"))


@pytest.mark.parametrize(
    "rubbish",
    [b"", b"\x00" * 2000, gzip.compress(tar_of({"x": b"x"}))[:60], b"\xff\xfe"],
)
def test_rubbish_on_the_input_is_refused(store: Store, rubbish: bytes) -> None:
    done = store("build", "-", stdin=rubbish)
    assert done.returncode != 0
    assert done.stderr.startswith("minidocker: ")
    assert not list((store.root / "tmp").glob("*"))


def test_a_tar_that_climbs_out_is_refused(store: Store, tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name in ("Dockerfile", "../../escaped"):
            tar.addfile(tarfile.TarInfo(name))
    assert store("build", "-", stdin=sink.getvalue()).returncode == 1
    assert not list(store.root.rglob("escaped"))


def test_a_secret_is_seen_by_its_step_alone(
    store: Store, context: Context, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("from a file\n")
    path = context(
        "FROM small:v1\n"
        "RUN --mount=type=secret,id=key cat /run/secrets/key > /said\n"
        "RUN --mount=type=secret,id=word,env=WORD echo $WORD >> /said\n"
        "RUN ls /run >> /said 2>/dev/null; true\n"
    )
    words = ("--secret", f"id=key,src={tmp_path / 'key'}", "--secret")
    words = (*words, "type=env,id=word,src=W")
    store.says("build", "-q", "-t", "hush", *words, path, W="from outside")
    said = store.says("run", "--rm", "hush", "cat", "/said")
    assert said == "from a file\nfrom outside\n"
    raw = store.says("inspect", "hush")
    assert "from outside" not in raw


def test_the_result_may_be_a_directory_or_a_tar(
    store: Store, context: Context, tmp_path: Path
) -> None:
    path = context("FROM scratch\nCOPY note /d/note\n", note="given out")
    out = tmp_path / "out"
    ids = tmp_path / "id"
    id = store.says(
        "build", "-q", "-o", str(out), "--output", f"type=tar,dest={tmp_path}/o.tar",
        "--iidfile", str(ids), path,
    )  # fmt: skip
    assert (out / "d/note").read_text() == "given out"
    with tarfile.open(tmp_path / "o.tar") as tar:
        assert tar.getnames() == ["d", "d/note"]
    assert ids.read_text() == id.strip()
    done = subprocess.run(
        store.argv("build", "-q", "-o", "-", path), capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(done.stdout), ignore_zeros=False) as tar:
        assert "d/note" in tar.getnames()


def test_progress_may_be_json(store: Store, context: Context) -> None:
    path = context("FROM small:v1\nRUN echo said by the step\n")
    out = store.says("build", "--no-cache", "--progress", "json", path)
    lines = [json.loads(line)["stream"] for line in out.splitlines()]
    assert lines[0] == "Step 1/2 : FROM small:v1\n"
    assert "said by the step\n" in lines
    assert lines[-1].startswith("Successfully built ")
    rich = store.says("build", "--progress", "rich", path)
    assert "Using cache" in rich
    assert "said" not in store.says("build", "--no-cache", "-q", path)


def test_what_a_quiet_build_kept_back_is_shown_when_it_fails(
    store: Store, context: Context
) -> None:
    done = store("build", "-q", context("FROM small:v1\nRUN echo why; exit 4\n"))
    assert (done.returncode, done.stdout) == (4, "")
    assert "why\n" in done.stderr


def test_labels_contexts_and_until(
    store: Store, context: Context, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/m").write_text("m")
    path = context("FROM small:v1\nCOPY --from=more m /m\nUSER 1\n")
    more = ("--build-context", f"more={tmp_path / 'more'}", "--label", "a=b=c")
    store.says("build", "-q", "-t", "opts", *more, "--until", "2", path)
    assert store.says("run", "--rm", "opts", "cat", "/m") == "m"
    found = json.loads(store.says("inspect", "opts"))[0]["Config"]
    assert (found["Labels"], found["User"]) == (None, "")
    store.says("build", "-q", "-t", "opts", *more, path)
    found = json.loads(store.says("inspect", "opts"))[0]["Config"]
    assert (found["Labels"], found["User"]) == ({"a": "b=c"}, "1")


def test_hosts_and_limits_are_for_every_run(store: Store, context: Context) -> None:
    text = (
        "FROM small:v1\nRUN --network=host cat /etc/hosts > /n\nRUN ulimit -n >> /n\n"
    )
    text += "RUN df -k /dev/shm >> /n\nRUN cat /etc/hosts >> /n\n"
    words = ("--add-host", "db:10.1.2.3", "--ulimit", "nofile=99:120", "--compress")
    words += ("--shm-size", "8m", "-q", "-t", "bound", context(text))
    store.says("build", *words)
    said = store.says("run", "--rm", "--network", "none", "bound", "cat", "/n")
    lines = [line.split() for line in said.splitlines()]
    assert ["10.1.2.3", "db"] in lines
    assert ["99"] in lines
    assert [line[1] for line in lines if line[:1] == ["shm"]] == ["8192"]


@pytest.mark.root
def test_a_network_and_a_platform_are_for_those_that_say_none(
    store: Store, context: Context
) -> None:
    text = "FROM small:v1\nRUN cat /proc/net/dev > /n\n"
    text += "RUN --network=none cat /proc/net/dev > /m\nCMD cat /{}\n"
    here = Path("/proc/net/dev").read_text().count(":")
    for words, seen in (
        ((), 2),
        (("--network", "none"), 1),
        (("--network", "host"), here),
    ):
        for name, count in (("n", seen), ("m", 1)):
            flags = ("-q", "--rm", "--force-rm", "--load", *words, "-t", "netted")
            store.says("build", "--no-cache", *flags, context(text.format(name)))
            said = store.says("run", "--rm", "--network", "none", "netted")
            assert said.count(":") == count
    done = store("build", "--platform", "linux/vax", context("FROM small:v1\n"))
    assert (done.returncode, "linux/vax was asked for" in done.stderr) == (1, True)
    here_too = f"{os.uname().sysname.lower()}/{os.uname().machine}"
    store.says("build", "-q", "--platform", here_too, context("FROM small:v1\n"))


def test_a_command_on_the_hosts_network_knows_whom_to_ask(
    store: Store, context: Context
) -> None:
    text = "FROM small:v1\nRUN --network=host cat /etc/resolv.conf /etc/hosts > /said\n"
    store.says("build", "--no-cache", "-q", "-t", "asked", context(text))
    said = store.says("run", "--rm", "--network", "none", "asked", "cat", "/said")
    known = [Path(f"/etc/{name}").read_text() for name in ("resolv.conf", "hosts")]
    assert all(text in said for text in known)
    layers = json.loads(store.says("inspect", "asked"))[0]["RootFS"]["Layers"]
    saved = subprocess.run(store.argv("save", "asked"), capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(saved.stdout)) as tar:
        top = tar.extractfile(f"blobs/sha256/{layers[-1][7:]}")
        assert top
        with tarfile.open(fileobj=top) as layer:
            assert layer.getnames() == ["said"]


def test_an_image_may_be_pushed_when_it_is_built(
    store: Store, context: Context, tmp_path: Path
) -> None:
    with docker_registry(tmp_path) as host:
        name = f"{host}/built:v1"
        said = store.says("build", "--push", "-t", name, context("FROM small:v1\n"))
        assert said.splitlines()[-1].startswith(f"{name}: digest: sha256:")
        id = store.says("images", "-q", "--no-trunc", name)
        store.says("rmi", name)
        store.says("pull", "-q", name)
        assert store.says("images", "-q", "--no-trunc", name) == id


def test_an_id_that_cannot_be_written_is_one_line(
    store: Store, context: Context
) -> None:
    done = store("build", "--iidfile", "/no/such/id", context("FROM small:v1\n"))
    assert done.stderr.endswith(
        "minidocker: /no/such/id: cannot be written: No such file or directory\n"
    )


def test_a_context_may_be_an_image_of_an_oci_layout(
    store: Store, context: Context, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        path = context("FROM scratch\nCOPY note /note\n", note=name)
        store.says("build", "-t", f"kept:{name}", path)
    layout = tmp_path / "layout"
    for name in ("one", "two"):
        image = f"docker-archive:{tmp_path}/{name}.tar"
        store.says("save", "-o", f"{tmp_path}/{name}.tar", f"kept:{name}")
        argv = ["skopeo", "--insecure-policy", "copy", image, f"oci:{layout}:{name}"]
        subprocess.run(argv, check=True, capture_output=True)
    index = json.loads((layout / "index.json").read_text())
    [digest] = [
        line["digest"] for line in index["manifests"]
        if line["annotations"]["org.opencontainers.image.ref.name"] == "two"
    ]  # fmt: skip
    store.says("rmi", "kept:one", "kept:two")
    path = context(
        "FROM some AS base\nFROM small:v1\nCOPY --from=base /note /copied\n"
        "RUN --mount=from=some,target=/m cat /m/note > /read\n"
    )
    for place in (f"{layout}:two", f"{layout}@{digest}"):
        given = f"some=oci-layout://{place}"
        store.says("build", "-t", "got", "--build-context", given, path)
        said = store.says("run", "--rm", "got", "cat", "/copied", "/read")
        assert said == "twotwo"
    done = store("build", "--build-context", f"some=oci-layout://{layout}:tow", path)
    assert done.returncode == 1
    assert 'hint: did you mean "two"?' in done.stderr
    done = store("build", "--build-context", "some=oci-layout:///gone", path)
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--squash",), "an image here keeps the layer of each step"),
        (("--output", "type=zip,dest=x"), 'no type "zip"'),
        (("--progress", "loud"), 'no progress "loud"'),
        (("--secret", "src=/gone"), "no such file"),
        (("--secret", "id=x"), "bad secret"),
        (("--secret", "id=x,type=ssh"), 'no type "ssh"'),
        (("--add-host", "db"), "bad format for add-host"),
        (("--add-host", "db:x"), "invalid IP address in add-host"),
        (("--ulimit", "nofiles=1"), 'did you mean "nofile"?'),
        (("--shm-size", "much"), "invalid size"),
        (("--platform", "linux/amd64,linux/arm64"), "one at a time"),
        (("--label", "x"), "not of the form NAME=VALUE"),
        (("--until", "0"), "counted from 1"),
        (("-t", "Bad"), "lowercase"),
    ],
)
def test_what_flags_cannot_mean_is_said(
    store: Store, context: Context, words: tuple[str, ...], said: str
) -> None:
    done = store("build", *words, context(TEXT, note=""))
    assert done.returncode in (1, 125)
    assert said in done.stderr


def test_verify_proves_that_two_builds_agree(store: Store, context: Context) -> None:
    path = context(TEXT + "RUN echo x > /x; mkdir /d\n", note="n")
    out = store.says("build", "--verify", path)
    assert "Verified: two builds gave sha256:" in out
    path = context("FROM small:v1\nRUN cat /proc/sys/kernel/random/uuid > /x\n")
    done = store("build", "--verify", path)
    assert done.returncode == 1
    told = r"two builds differ: layer 2 of 2: byte 5\d\d of the layer's tar"
    assert re.search(told, done.stderr)
    assert 'in "x"' in done.stderr


def test_a_shell_may_look_at_a_failed_step(store: Store, context: Context) -> None:
    path = context("FROM small:v1\nRUN echo half > /half; false\n")
    done = store("build", "--shell-on-error", path, stdin=b"cat /half; exit\n")
    assert done.returncode == 1
    assert "half\n" in done.stdout
    assert "returned a non-zero code: 1" in done.stderr


def test_context_ls_tells_which_rule_decided(
    store: Store, context: Context, tmp_path: Path
) -> None:
    path = context("FROM small:v1", a="", b="", c="")
    (Path(path) / "d").mkdir()
    (Path(path) / "d/x").write_text("")
    (Path(path) / ".dockerignore").write_text("# c\n?\n!b\nd\n")
    assert store.says("context", "ls", path).split() == [
        ".dockerignore",
        "Dockerfile",
        "b",
    ]
    rows = [
        line.split() for line in store.says("context", "ls", "--why", path).splitlines()
    ]
    assert rows == [
        ["sent", ".dockerignore", "-"], ["sent", "Dockerfile", "-"],
        ["ignored", "a", ".dockerignore:2:", "?"], ["sent", "b", ".dockerignore:3:", "!b"],
        ["ignored", "c", ".dockerignore:2:", "?"], ["ignored", "d", ".dockerignore:4:", "d"],
        ["ignored", "d/x", ".dockerignore:4:", "d"],
    ]  # fmt: skip
    (Path(path) / "Dockerfile.dockerignore").write_text("c")
    assert "a" in store.says("context", "ls", path).split()


def test_eight_builds_at_once_give_one_image(store: Store, context: Context) -> None:
    path = context(TEXT + "RUN echo x > /x\nENV A=1\n", note="n")
    words = store.argv("build", "-q", path)
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1500000000"}
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, env=env) for _ in range(8)
    ]
    ids = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * 8
    assert len(ids) == 1


def test_the_result_may_be_an_oci_layout_that_others_read(
    store: Store, context: Context, tmp_path: Path
) -> None:
    out = tmp_path / "image.tar"
    path = context(TEXT, note="n")
    words = ("-t", "given:v1", "-o", f"type=oci,dest={out}")
    id = store.says("build", "-q", *words, path).strip()
    with tarfile.open(out) as tar:
        assert {"oci-layout", f"blobs/sha256/{id[7:]}"} <= set(tar.getnames())
    done = subprocess.run(
        ["skopeo", "--tmpdir", str(tmp_path), "inspect", "--config", "--raw",
         f"oci-archive:{out}:v1"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert hashlib.sha256(done.stdout).hexdigest() == id[7:]
    again = tmp_path / "again.tar"
    store.says("build", "-q", "-o", f"type=oci,dest={again}", path)
    assert again.read_bytes() == out.read_bytes()
