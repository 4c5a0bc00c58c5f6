"""`build` and what looks after images, as a user types them."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.store import Store


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., str]:
    """Write a build context: a Dockerfile and files by name."""

    def write(dockerfile: str, **files: str) -> str:
        (tmp_path / "Dockerfile").write_text(dockerfile)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return str(tmp_path)

    return write


Context = Callable[..., str]


def trees(store: Store) -> set[str]:
    """The directories of the driver's layers."""
    home = store.root / store.driver
    return set(os.listdir(home / "dir" if store.driver == "vfs" else home))


def test_a_dockerfile_becomes_an_image_that_runs(
    store: Store, context: Context
) -> None:
    text = """\
# escape=\\
FROM small:v1
ARG greeting=hello
ENV WHO=world \\
    # a comment in the middle
    PLACE="the ${greeting:+whole} earth"
LABEL made=here
WORKDIR /srv/app
COPY note ./
ADD note /srv/second
RUN echo "$greeting, $WHO" > said && id -u > who
RUN ["sh", "-c", "cat note >> said"]
USER www
EXPOSE 80 53/udp
VOLUME /data
STOPSIGNAL SIGUSR1
SHELL ["/bin/sh", "-ec"]
ENTRYPOINT ["cat"]
CMD ["said"]
"""
    path = context(text, note="from the context\n")
    out = store.says("build", "--build-arg", "greeting=good day", "-t", "said:v1", path)
    assert "Step 1/16 : FROM small:v1" in out
    assert out.endswith("Successfully tagged said:v1\n")
    config = json.loads(store.says("inspect", "-f", "{{json .Config}}", "said:v1"))
    assert config["Env"][-2:] == ["WHO=world", "PLACE=the whole earth"]
    assert (config["User"], config["WorkingDir"]) == ("www", "/srv/app")
    assert sorted(config["ExposedPorts"]) == ["53/udp", "80/tcp"]
    assert (config["Entrypoint"], config["Cmd"]) == (["cat"], ["said"])
    assert (config["Labels"], config["Volumes"]) == ({"made": "here"}, {"/data": {}})
    assert (config["StopSignal"], config["Shell"]) == ("SIGUSR1", ["/bin/sh", "-ec"])
    words = ("run", "--rm", "-u", "0", "said:v1")
    assert store.says(*words) == "good day, world\nfrom the context\n"
    assert store.says(*words, "../second") == "from the context\n"
    assert store.says(*words, "who") == "0\n"


def test_a_second_build_comes_from_the_cache(store: Store, context: Context) -> None:
    path = context("FROM small:v1\nCOPY note /\nRUN echo x > /x\n", note="one")
    first = store.says("build", "-q", path)
    again = store.says("build", path)
    assert again.count("Using cache") == 2
    assert store.says("build", "-q", path) == first
    assert "Using cache" not in store.says("build", "--no-cache", path)
    context("FROM small:v1\nCOPY note /\nRUN echo x > /x\n", note="two")
    changed = store.says("build", path)
    assert "Using cache" not in changed
    assert store.says("build", "-q", path) != first


def test_the_same_epoch_gives_the_same_image(store: Store, context: Context) -> None:
    path = context("FROM small:v1\nCOPY note /\nRUN echo x > /x\nENV A=1\n", note="one")
    words = ("build", "-q", "--no-cache", path)
    first = store.says(*words, SOURCE_DATE_EPOCH="1500000000")
    time.sleep(1.1)
    assert store.says(*words, SOURCE_DATE_EPOCH="1500000000") == first


@pytest.mark.parametrize(
    ("dockerfile", "said", "hint"),
    [
        ("FROM small:v1\nCOPPY a b\n", "Dockerfile:2: ", '"COPY"'),
        ("FROM small:v1\n\nCOPY missing /\n", 'Dockerfile:3: ', ""),
        ("FROM small:v7\n", 'Dockerfile:1: no such image: "small:v7"', "small:v1"),
        ("FROM Bad:Ref:x\n", "Dockerfile:1: ", ""),
        ("RUN true\n", "Dockerfile:1: ", "FROM"),
        ("FROM small:v1\nRUN nope\n", "Dockerfile:2: ", ""),
        ("FROM small:v1\nRUN [\"nope\"]\n", "Dockerfile:2: ", ""),
        ("FROM small:v1\nRUN [\"/bin/plain\"]\n", "Dockerfile:2: ", ""),
        ("FROM small:v1\nUSER nobodyx\nRUN true\n", "Dockerfile:3: ", ""),
        ("", "Dockerfile", ""),
        ("FROM small:v1\nENV A=${\n", "Dockerfile:2: ", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_built_names_its_line_and_leaves_nothing(
    store: Store, context: Context, dockerfile: str, said: str, hint: str
) -> None:
    before, path = trees(store), context(dockerfile)
    done = store("build", path)
    assert done.returncode != 0
    last = [
        line for line in done.stderr.splitlines() if line.startswith("minidocker: ")
    ]
    assert len(last) == 1
    assert said in last[0]
    assert hint in done.stderr
    assert done.returncode == (127 if dockerfile.endswith("RUN nope\n") else 1)
    assert trees(store) == before


def test_a_failing_run_has_its_status(store: Store, context: Context) -> None:
    done = store("build", context("FROM small:v1\nRUN echo out && exit 9\n"))
    assert (done.returncode, "out\n" in done.stdout) == (9, True)
    assert "returned a non-zero code: 9" in done.stderr


def test_a_missing_context_or_dockerfile_is_one_line(
    store: Store, tmp_path: Path
) -> None:
    assert "no such directory" in store("build", str(tmp_path / "none")).stderr
    done = store("build", str(tmp_path))
    assert done.returncode == 1
    assert "Dockerfile" in done.stderr


@pytest.mark.parametrize(
    "name", ["Dockerfile", "Dockerfile.dockerignore", ".dockerignore"]
)
def test_a_link_out_of_the_context_is_not_read(
    store: Store,
    context: Context,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
) -> None:
    away = tmp_path_factory.mktemp("away") / "secret"
    away.write_text("FROM hidden word\n")
    path = Path(context("FROM small:v1\n"))
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(away)
    done = store("build", str(path))
    assert done.returncode == 1
    assert f"{name}: a link that leads out" in done.stderr
    assert "hidden" not in done.stderr
    (path / name).unlink()
    (path / "inside").write_text("FROM small:v1\n")
    (path / name).symlink_to("inside")
    store.says("build", "-q", str(path))


def test_a_store_in_the_context_is_refused_or_ignored(
    small_tree: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    store.says("import", str(small_tree), "small:v1")
    (tmp_path / "Dockerfile").write_text("FROM small:v1\nCOPY . /all/\n")
    done = store("build", str(tmp_path))
    assert (done.returncode, "in the context" in done.stderr) == (125, True)
    (tmp_path / ".dockerignore").write_text("store\n")
    store.says("build", "-q", "-t", "all", str(tmp_path))
    assert store.says("run", "--rm", "all", "ls", "/all") == "Dockerfile\n"


def test_an_ignored_file_is_not_there(store: Store, context: Context) -> None:
    path = context("FROM small:v1\nCOPY . /all/\n", note="a", secret="b")
    (Path(path) / ".dockerignore").write_text("*\n!note\n")
    store.says("build", "-q", "-t", "ignoring", path)
    assert store.says("run", "--rm", "ignoring", "ls", "/all") == "note\n"


def test_a_killed_build_leaves_a_store_that_works(
    store: Store, context: Context
) -> None:
    before = trees(store)
    sleep = f"sleep {600_000 + os.getpid()}"  # nobody else's, whatever else runs here
    path = context(f"FROM small:v1\nRUN echo one > /one\nRUN echo started; {sleep}\n")
    process = subprocess.Popen(store.argv("build", path), stdout=subprocess.PIPE)
    assert process.stdout
    while process.stdout.readline() != b"started\n":
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_dead(store)
    assert store.says("run", "--rm", "small:v1", "echo", "fine") == "fine\n"
    context("FROM small:v1\nCMD true\n")
    store.says("build", "-q", path)
    left = trees(store) - before
    assert len(left) <= 1, "the layer of the first RUN may be cached, nothing else"
    assert not os.listdir(store.root / "tmp") if (store.root / "tmp").exists() else True
    assert not [
        p
        for p in Path("/proc").glob("[0-9]*/cmdline")
        if sleep.replace(" ", "\0").encode() in read(p)
    ]


def contents(store: Store) -> set[str]:
    """Every path in a store, but for the catalog and what the build cache knows of
    files, which are caches, half-written texts that the next text replaces, and who
    is in the user namespace, which the next to come corrects.
    """
    found = (str(path.relative_to(store.root)) for path in store.root.rglob("*"))
    kept = {path for path in found if not path.endswith((".new", "/catalog"))}
    return {path for path in kept if not path.startswith(("buildcache", "userns/"))}


def wait_until_dead(store: Store) -> None:
    """Wait for what a killed command had started and dies with it: a process that is
    waiting for the disk dies after that, and holds the store's lock until then, so
    that nobody sweeps what it may still write.
    """
    until = time.monotonic() + 10
    with open(store.root / "lock", "rb") as lock:
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < until, "who holds the lock of a dead build?"
                time.sleep(0.01)


def test_a_build_killed_anywhere_is_cleaned_up_by_the_next_command(
    small_tree: Path, tmp_path_factory: pytest.TempPathFactory, context: Context
) -> None:
    store = Store(tmp_path_factory.mktemp("killed"))
    store.says("import", str(small_tree), "small:v1")
    store.says("run", "--rm", "small:v1", "true")
    lines = "FROM small:v1\nCOPY . /all/\nRUN echo a > /a; rm /all/note\nENV A=1\n"
    path = context(
        f"{lines}RUN mkdir /d; echo b > /d/b\nWORKDIR /w\n", note="x" * 10**6
    )
    words = store.argv("build", "--no-cache", "-q", "-t", "killed", path)
    started = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - started
    store.says("rmi", "killed")
    before = contents(store)
    for part in range(1, 11):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        time.sleep(took * part / 10)
        process.kill()
        if process.wait() == 0:
            store.says("rmi", "killed")
        wait_until_dead(store)
        assert store("ps", "-a").returncode == 0
        for id in store.says("images", "-aq").split():
            if id not in store.says("images", "-q", "small"):
                store("rmi", id)  # steps that were whole
        assert contents(store) <= before
        assert str(store.root) not in Path("/proc/mounts").read_text()
    assert store.says("run", "--rm", "small:v1", "echo", "fine") == "fine\n"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_store_is_docker_s(store: Store) -> None:
    home = store.root / "image" / store.driver
    id = store.says("images", "-q", "--no-trunc", "small").strip()
    text = (home / "imagedb/content/sha256" / id[7:]).read_bytes()
    assert hashlib.sha256(text).hexdigest() == id[7:]
    names = json.loads((home / "repositories.json").read_text())
    assert names["Repositories"]["small"] == {"small:v1": id}
    diff_id = json.loads(text)["rootfs"]["diff_ids"][0]
    layer = home / "layerdb/sha256" / diff_id[7:]
    assert {"diff", "cache-id", "size"} <= set(os.listdir(layer))
    assert (layer / "diff").read_text() == diff_id


def test_a_layer_s_tar_has_its_diff_id_and_others_can_read_it(
    store: Store, context: Context, tmp_path: Path
) -> None:
    from minidocker.engine import Engine

    path = context("FROM small:v1\nRUN rm /bin/plain; mkdir /d; echo x >/d/x\n")
    id = store.says("build", "-q", path).strip()
    if os.geteuid() != 0:
        return  # the engine itself needs the namespaces that the command enters
    engine = Engine(str(store.root), store.driver)
    layer = engine.layers.stack(engine.images.get(id).diff_ids)[-1]
    with (tmp_path / "layer.tar").open("wb") as file:
        engine.layers.tar_of(layer.chain_id, file.write)
    raw = (tmp_path / "layer.tar").read_bytes()
    assert "sha256:" + hashlib.sha256(raw).hexdigest() == layer.diff_id
    with tarfile.open(tmp_path / "layer.tar") as tar:
        assert tar.getnames() == ["bin", "bin/.wh.plain", "d", "d/x"]


def test_images_tag_rmi_and_history(store: Store, context: Context) -> None:
    path = context("FROM small:v1\nENV A=1\nENV B=2\n")
    shown = store.says("images").count("<none>")
    id = store.says("build", "-q", "-t", "env", path).strip()
    store.says("tag", "env", "127.0.0.1:5000/team/env:v2")
    rows = [
        json.loads(line)
        for line in store.says("images", "--format", "json").splitlines()
    ]
    names = {(row["Repository"], row["Tag"]) for row in rows}
    assert {
        ("env", "latest"),
        ("127.0.0.1:5000/team/env", "v2"),
        ("small", "v1"),
    } <= names
    assert store.says("images").count("<none>") == shown, "steps are hidden"
    assert store.says("images", "-a").count("<none>") > shown
    table = store.says("history", "env").splitlines()
    assert table[0].split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert len(table) == 4
    assert store.says("history", "-q", "--no-trunc", "env").split()[0] == id
    assert store("rmi", id[7:19]).returncode == 1
    assert store.says("rmi", "env") == "Untagged: env:latest\n"
    told = store.says("rmi", "127.0.0.1:5000/team/env:v2")
    assert told.count("Deleted: ") == 2, "two images without a layer of their own"
    assert store("history", "env").returncode == 1


def test_an_image_in_use_is_not_removed(store: Store, context: Context) -> None:
    store.says("build", "-q", "-t", "used", context("FROM small:v1\nENV USED=1\n"))
    store.says("run", "--name", "user", "used", "true")
    done = store("rmi", "used")
    assert done.returncode == 1
    assert "container" in done.stderr
    store.says("rm", "user")
    store.says("rmi", "used")


def test_lineage_and_inspect(store: Store, context: Context) -> None:
    store.says("build", "-q", "-t", "drawn", context("FROM small:v1\nENV DRAWN=1\n"))
    assert "small:v1" in store.says("lineage", "drawn")
    assert (
        store.says("lineage", "--format", "svg", "drawn").lstrip().startswith("<?xml")
    )
    assert "DRAWN=1" in store.says("lineage", "--diff", "drawn")
    found = json.loads(store.says("inspect", "drawn", "small:v1"))
    assert [one["RepoTags"] for one in found] == [["drawn:latest"], ["small:v1"]]
    done = store("inspect", "drawn", "nothing")
    assert (done.returncode, len(json.loads(done.stdout))) == (1, 1)


def test_import_takes_compressed_tars_and_refuses_rubbish(
    store: Store, small_tree: Path, tmp_path: Path
) -> None:
    import bz2
    import gzip
    import lzma

    raw = small_tree.read_bytes()
    ids = {
        store.says(
            "import", "-", "-c", "CMD echo hi", stdin=pack(raw), SOURCE_DATE_EPOCH="0"
        )
        for pack in (bytes, gzip.compress, bz2.compress, lzma.compress)
    }
    assert len(ids) == 1
    before = trees(store)
    for rubbish in (b"", b"x" * 600, raw[:100_000], gzip.compress(raw)[:1000]):
        done = store("import", "-", "bad", stdin=rubbish)
        assert (done.returncode, done.stdout) == (1, ""), rubbish[:10]
        assert done.stderr.startswith("minidocker: ")
    assert trees(store) == before
    assert store("import", str(tmp_path / "none")).returncode == 1


def test_concurrent_builds_do_not_disturb_each_other(
    store: Store, context: Context
) -> None:
    path = context("FROM small:v1\nRUN echo x > /x\nRUN echo y > /y\nENV A=1\n")
    words = store.argv("build", "--no-cache", "-q", path)
    running = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(4)]
    ids = [process.communicate()[0].decode().strip() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    for id in ids:
        assert store.says("run", "--rm", id, "cat", "/x", "/y") == "x\ny\n"
