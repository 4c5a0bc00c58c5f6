"""Builds with files and processes, on every driver: images, cache, traps, leavings."""

import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from scenery import tar_of, write
from workbench import Chroot, Recorder, Workbench, normal_json, normal_lines

from minidocker.drivers import DRIVERS, StorageDriver
from minidocker.errors import BuildError, MinidockerError
from minidocker.oci import parse_image
from minidocker.overlayfs import supported


pytestmark = pytest.mark.root
GOLDEN = Path(__file__).parents[1] / "golden" / "classic-build"
BASE: dict[str, bytes | str | None] = {
    "etc": None,
    "etc/passwd": b"root:x:0:0::/:/bin/sh\nwww:x:33:34::/srv:/bin/sh\n",
    "etc/group": b"root:x:0:\nstaff:x:50:www\n",
    "srv": None,
    "tmp": None,
    "trap": "../../../../../../../../etc",
}


def overlays_work(root: Path) -> bool:
    (root / "scratch").mkdir()
    try:
        supported(str(root / "scratch"))
    except (MinidockerError, OSError):
        return False
    return True


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> type[StorageDriver]:
    if request.param == "overlay2" and not overlays_work(tmp_path):
        pytest.skip("the kernel or this user's rights allow no overlay mounts")
    return DRIVERS[request.param]


@pytest.fixture
def bench(driver: type[StorageDriver], tmp_path: Path) -> Workbench:
    bench = Workbench(tmp_path, driver)
    bench.base("base", BASE)
    write(bench.context, {"a": "a", "b": "b", "d/c": "c", "d/e/f": "f"})
    return bench


@pytest.fixture
def many_ids() -> None:
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        pytest.skip("this user namespace has one user id")


# The recorded build


def recorded() -> list[tuple[str, str]]:
    """The ids and JSONs that Docker wrote, the base's first."""
    from minidocker.oci import sha256_text

    texts = [path.read_text() for path in sorted(GOLDEN.glob("config-*.json"))]
    return [(sha256_text(text.encode()), text) for text in texts]


def replay(bench: Workbench) -> list[tuple[str, str]]:
    """Build the source text's Dockerfile on Docker's base JSON."""
    base = parse_image(recorded()[0][1].encode())
    id = bench.images.add(base.replace(diff_ids=bench.add_layer(BASE)), None)
    from minidocker.oci import parse_reference

    bench.images.tag(parse_reference("kb-centos:v11"), id)
    write(bench.context, {"supervisord.conf": "#" * 8866})
    return bench.family(
        bench.build((GOLDEN / "Dockerfile").read_text(), tags=("kb:v1",))
    )


def test_the_recorded_build_gives_dockers_jsons_to_the_byte(bench: Workbench):
    """Ids, times and the digests of contents apart: those are named by their place."""
    assert normal_json(replay(bench)) == normal_json(recorded())


def test_the_recorded_build_tells_dockers_lines(bench: Workbench):
    family = replay(bench)
    log = (GOLDEN / "build.log").read_text()
    theirs = log[log.index("Step 1/6") :].splitlines()
    assert normal_lines(bench.said, family) == normal_lines(theirs, recorded())


def test_the_recorded_build_has_one_layer_of_the_files_size(bench: Workbench):
    from minidocker.images import history

    rows = history(bench.images, bench.layers, replay(bench)[-1][0])
    assert [row.size for row in rows[:5]] == [0, 0, 0, 8866, 0]


# Files


def test_copy_add_and_workdir_make_the_tree(bench: Workbench):
    (bench.context / "t.tar").write_bytes(tar_of({"in": None, "in/x": b"packed"}))
    id = bench.build("""FROM base
WORKDIR /w
WORKDIR sub/../s
COPY a ./
COPY a b d /many/
COPY ?/e* /wild/
ADD t.tar /tar
COPY t.tar /plain.tar
COPY --chmod=0640 a /srv/
""")
    found = bench.tree(id)
    kept = {n: e[2] for n, e in found.items() if e[0] == "file" and n not in BASE}
    assert kept.pop("plain.tar")
    assert kept == {
        "w/s/a": "a", "many/a": "a", "many/b": "b", "many/c": "c", "many/e/f": "f",
        "wild/f": "f", "tar/in/x": "packed", "srv/a": "a",
    }  # fmt: skip
    assert found["srv/a"][1] == 0o640
    assert bench.config(id).working_dir == "/w/s"


def test_owners_are_the_images_names_or_numbers(bench: Workbench, many_ids: None):
    id = bench.build("""FROM base
COPY --chown=www:staff a /one
COPY --chown=7 a /two
COPY --chown=www:8 d /three/
COPY a /four
COPY --chown=www a /five
COPY --chown=root a /six
COPY --chown=:staff a /seven
""")
    names = ("one", "two", "three", "three/e/f", "four", "five", "six", "seven")
    with bench.shown(id) as root:
        found = {name: (root / name).lstat() for name in names}
    assert {name: (info.st_uid, info.st_gid) for name, info in found.items()} == {
        "one": (33, 50), "two": (7, 7), "three": (33, 8), "three/e/f": (33, 8),
        "four": (0, 0), "five": (33, 34), "six": (0, 0), "seven": (0, 50),
    }  # fmt: skip


def test_an_archive_of_another_user_is_unpacked(bench: Workbench):
    (bench.context / "t.tar").write_bytes(tar_of({"x": b"x"}, uid=1000))
    assert bench.tree(bench.build("FROM base\nADD t.tar /"))["x"][2] == "x"


@pytest.mark.parametrize("who", ["nobody", "www:nobody", ":nobody"])
def test_an_owner_that_the_image_does_not_know_is_refused(bench: Workbench, who: str):
    with pytest.raises(BuildError, match="is not in the image's /etc/") as caught:
        bench.build(f"FROM base\nCOPY --chown={who} a /")
    assert caught.value.where == "Dockerfile:2"


def test_copy_from_takes_files_of_a_stage_or_an_image(bench: Workbench):
    text = """FROM base AS first
COPY d /d
FROM base
COPY --from=first /d/e /one
COPY --from=0 /d/c /two
COPY --from=base /etc/passwd /three
"""
    found = bench.tree(bench.build(text))
    assert (found["one/f"][2], found["two"][2]) == ("f", "c")
    assert found["three"][2].startswith("root:")
    assert "d" not in found


CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def a_program_with_rights(root: Path) -> int:
    """Make a file with a capability and two names, and a pipe."""
    (root / "bin").mkdir()
    (root / "bin/ping").write_text("a program")
    (root / "bin/ping").chmod(0o755)
    os.setxattr(root / "bin/ping", "security.capability", CAPABILITY)
    os.link(root / "bin/ping", root / "bin/ping4")
    os.mkfifo(root / "bin/pipe", 0o600)
    return 0


def test_copy_from_keeps_rights_names_and_pipes(bench: Workbench):
    bench.runner = Recorder(a_program_with_rights)
    text = "FROM base AS one\nRUN make\nFROM scratch\n"
    text += "COPY --from=one /bin /to\nCOPY --from=one /bin/ping /alone"
    image = bench.build(text)
    for name in ("to/ping", "to/ping4", "alone"):
        with bench.shown(image) as root:
            assert os.getxattr(root / name, "security.capability") == CAPABILITY
            assert stat.S_IMODE((root / name).stat().st_mode) == 0o755
    with bench.shown(image) as root:
        assert (root / "to/ping").samefile(root / "to/ping4")
        assert stat.S_ISFIFO((root / "to/pipe").stat().st_mode)
    sizes = [one.size for one in bench.layers.stack(bench.images.get(image).diff_ids)]
    assert sizes == [len("a program")] * 2
    bench.build(text)
    assert bench.said.count(" ---> Using cache") == 3


def test_rights_of_a_file_count_for_the_cache(bench: Workbench):
    text = "FROM base AS one\nRUN make\nFROM scratch\nCOPY --from=one /bin/ping /p"
    bench.runner = Recorder(a_program_with_rights)
    bench.build(text)

    def without(root: Path) -> int:
        a_program_with_rights(root)
        os.removexattr(root / "bin/ping", "security.capability")
        return 0

    bench.runner = Recorder(without)
    bench.build(text.replace("RUN make", "RUN make another"))
    [why] = [line for line in bench.said if 'of "bin/ping"' in line]
    assert re.search(r'attributes of "bin/ping" was [0-9a-f]{12}, now none', why)


def test_devices_are_copied_where_a_user_may_make_them(bench: Workbench):
    null = bench.context / "null"
    try:
        os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this user may make no devices")
    null.chmod(0o666)
    with bench.shown(bench.build("FROM scratch\nCOPY . /dev/")) as root:
        made = (root / "dev/null").stat()
    assert (stat.S_ISCHR(made.st_mode), made.st_rdev) == (True, os.makedev(1, 3))
    assert stat.S_IMODE(made.st_mode) == 0o666


def test_copy_from_cannot_climb_out_of_the_other_image(bench: Workbench):
    text = "FROM base AS b\nFROM base\nCOPY --from=b /trap/group /x"
    assert bench.tree(bench.build(text))["x"][2] == str(BASE["etc/group"], "ascii")  # type: ignore[call-overload]


def test_scratch_begins_with_nothing(bench: Workbench):
    id = bench.build("FROM scratch\nCOPY d /\nCMD x")
    assert sorted(bench.tree(id)) == ["c", "e", "e/f"]
    assert len(bench.images.get(id).diff_ids) == 1
    assert bench.images.parent(bench.family(id)[0][0]) is None


def test_what_changes_nothing_is_an_empty_layer(bench: Workbench):
    id = bench.build("FROM base\nCOPY a /x\nCOPY a /x\nWORKDIR /etc")
    entries = bench.images.get(id).history[1:]
    assert [entry.empty_layer for entry in entries] == [False, True, True]
    assert len(bench.images.get(id).diff_ids) == 2


def test_a_link_in_the_image_does_not_lead_to_the_host(bench: Workbench):
    before = sorted(os.listdir("/etc"))
    text = "FROM base\nCOPY a /trap/minidocker-trap\nWORKDIR /trap/minidocker-dir"
    found = bench.tree(bench.build(text))
    assert {"etc/minidocker-trap", "etc/minidocker-dir"} <= set(found)
    assert sorted(os.listdir("/etc")) == before


def test_a_link_in_the_context_does_not_lead_out(bench: Workbench):
    (bench.context / "out").symlink_to("/etc/passwd")
    (bench.context / "up").symlink_to("../store")
    for name in ("out", "up", "up/lock"):
        with pytest.raises(BuildError, match="file not found in build context"):
            bench.build(f"FROM base\nCOPY {name} /x")


# The cache


def test_a_second_build_finds_everything(bench: Workbench):
    text = "FROM base\nWORKDIR /w\nCOPY d .\nRUN x\nADD a b /y/\nCMD z"
    first = bench.build(text)
    assert bench.hits() == [False] * 5
    before = bench.leavings()
    assert bench.build(text) == first
    assert bench.hits() == [True] * 5
    assert bench.leavings() == before


def touch(bench: Workbench) -> None:
    for path in bench.context.rglob("*"):
        os.utime(path, (5, 5), follow_symlinks=False)


def relink(to: str) -> Callable[[Workbench], None]:
    def act(bench: Workbench) -> None:
        (bench.context / "d/link").unlink()
        (bench.context / "d/link").symlink_to(to)

    return act


@pytest.mark.parametrize(
    ("act", "hit"),
    [
        (lambda bench: None, True),
        (touch, True),
        (lambda bench: write(bench.context, {"other": "x"}), True),
        (lambda bench: write(bench.context, {"d/e/f": "g"}), False),
        (lambda bench: write(bench.context, {"d/new": ""}), False),
        (lambda bench: (bench.context / "d/c").rename(bench.context / "d/C"), False),
        (lambda bench: (bench.context / "d/e/f").unlink(), False),
        (lambda bench: (bench.context / "d/c").chmod(0o600), False),
        (lambda bench: (bench.context / "d/e").chmod(0o700), False),
        (lambda bench: write(bench.context, {".dockerignore": "d/e"}), False),
        (lambda bench: write(bench.context, {".dockerignore": "other"}), True),
        (relink("nowhere-else"), False),
    ],
)
def test_a_change_of_the_context_counts_or_not(
    bench: Workbench, act: Callable[[Workbench], None], hit: bool
):
    (bench.context / "d/link").symlink_to("nowhere")
    bench.build("FROM base\nCOPY d /d\nUSER 1")
    act(bench)
    bench.build("FROM base\nCOPY d /d\nUSER 1")
    assert bench.hits() == [hit, hit]


def test_owners_in_the_context_do_not_count(bench: Workbench, many_ids: None):
    bench.build("FROM base\nCOPY d /d")
    os.chown(bench.context / "d/c", 7, 8)
    bench.build("FROM base\nCOPY d /d")
    assert bench.hits() == [True]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("COPY a /x", "COPY a /y"),
        ("COPY a /x", "ADD a /x"),
        ("COPY a /x", "COPY --chown=0 a /x"),
        ("COPY a /x", "COPY --chmod=600 a /x"),
        ("RUN x", "RUN  x y"),
        ("RUN x", 'RUN ["x"]'),
        ("WORKDIR /x", "WORKDIR /y"),
    ],
)
def test_another_instruction_is_another_step(bench: Workbench, one: str, other: str):
    bench.build(f"FROM base\n{one}")
    bench.build(f"FROM base\n{other}")
    assert bench.hits() == [False]


def test_spaces_after_the_word_do_not_count(bench: Workbench):
    bench.build("FROM base\nRUN x")
    bench.build("FROM base\nrun   x  ")
    assert bench.hits() == [True]


def test_another_base_is_another_build(bench: Workbench):
    bench.build("FROM base\nRUN x")
    bench.base("base", {**BASE, "new": b""})
    bench.build("FROM base\nRUN x")
    assert bench.hits() == [False]


def test_a_build_argument_counts_from_the_first_run_after_its_arg(bench: Workbench):
    text = "FROM base\nRUN x\nARG A=1\nUSER 1\nRUN y"
    bench.build(text, build_args={"A": "2"})
    bench.build(text, build_args={"A": "3"})
    assert bench.hits() == [True, True, True, False]


def test_another_value_of_a_proxy_is_the_same_step(bench: Workbench):
    for proxy in ("one", "other"):
        bench.build("FROM base\nRUN x", build_args={"http_proxy": proxy})
    assert bench.hits() == [True]


def test_the_proxies_reach_a_run_and_not_the_history(bench: Workbench):
    bench.runner = runner = Recorder()
    id = bench.build(
        "FROM base\nARG A1=1 A=2\nRUN x", build_args={"http_proxy": "secret"}
    )
    assert bench.images.get(id).history[-1].created_by == "|2 A1=1 A=2 /bin/sh -c x"
    env = set(runner.asked[0][1].env or ())
    assert {"A=2", "A1=1", "http_proxy=secret"} < env
    assert b"secret" not in bench.images.raw(id)


def test_copy_from_counts_what_is_in_the_other_stage(bench: Workbench):
    text = "FROM base AS b\nCOPY d /d\nFROM base\nCOPY --from=b /d /x\nCOPY a /a"
    bench.build(text)
    write(bench.context, {"d/c": "changed"})
    bench.build(text)
    assert bench.hits()[-2:] == [False, False]
    write(bench.context, {"d/c": "c"})
    bench.build(text)
    assert bench.hits()[-2:] == [True, True]


# Processes


def test_a_run_gets_environment_directory_user_and_name(bench: Workbench):
    bench.runner = runner = Recorder()
    id = bench.build('FROM base\nENV A=a\nUSER www\nWORKDIR /w\nRUN echo $A\nRUN ["b"]')
    (first, config), (second, _) = runner.asked
    assert (first, second) == (("/bin/sh", "-c", "echo $A"), ("b",))
    assert (config.user, config.working_dir) == ("www", "/w")
    assert "A=a" in (config.env or ())
    image = bench.images.get(id)
    assert image.container_config == bench.config(id).replace(
        cmd=("b",), entrypoint=None
    )
    assert image.container


def test_what_a_run_writes_is_its_layer(bench: Workbench):
    def act(root: Path) -> int:
        (root / "new").write_text("new")
        (root / "etc/group").unlink()
        return 0

    bench.runner = Recorder(act)
    found = bench.tree(bench.build("FROM base\nRUN x"))
    assert found["new"][2] == "new"
    assert "etc/group" not in found
    assert "etc/passwd" in found


def test_a_run_that_fails_is_a_build_error_with_its_status(bench: Workbench):
    def act(root: Path) -> int:
        (root / "half").write_text("half")
        return 7

    base = bench.images.resolve("base")
    bench.runner = Recorder(act)
    before = bench.leavings()
    with pytest.raises(BuildError) as caught:
        bench.build("FROM base\nRUN make \\\n  all")
    assert caught.value.status == 7
    assert str(caught.value) == (
        "Dockerfile:2: The command '/bin/sh -c make   all' returned a non-zero code: 7"
    )
    assert bench.leavings() == before
    assert bench.images.ids() == [base]
    assert "half" not in bench.tree(base)


def explode(root: Path) -> int:
    raise KeyboardInterrupt


def test_an_interrupted_step_leaves_nothing(bench: Workbench):
    bench.runner = Recorder(explode)
    before = bench.leavings()
    with pytest.raises(KeyboardInterrupt):
        bench.build("FROM base\nRUN x")
    assert bench.leavings() == before


@pytest.mark.parametrize(
    "step",
    [
        "COPY gone /x",
        "COPY a d/whiteout /x/",
        "COPY a b /x",
        "COPY a /etc/passwd/x",
        "COPY --from=base /gone /x",
        "COPY --from=gone a /x",
        "COPY --chown=gone a /x",
        "ADD evil /x/",
        "ADD broken.gz /x/",
        "WORKDIR /etc/passwd",
        "ADD git://x/y /x",
    ],
)
def test_a_failed_step_leaves_nothing_and_the_steps_before_it(
    bench: Workbench, step: str
):
    import gzip

    os.mknod(bench.context / "d/whiteout", stat.S_IFCHR)
    (bench.context / "evil").write_bytes(tar_of({"ok": b"x", "../../evil": b"x"}))
    packed = gzip.compress(tar_of({"x": os.urandom(100_000)}))
    (bench.context / "broken.gz").write_bytes(packed[: len(packed) // 2])
    bench.build("FROM base\nCOPY a /before")
    before = bench.leavings(), bench.images.ids()
    with pytest.raises(MinidockerError) as caught:
        bench.build(f"FROM base\nCOPY a /before\n{step}")
    assert str(caught.value).startswith("Dockerfile:3: ")
    assert (bench.leavings(), bench.images.ids()) == before


def test_steps_after_the_first_may_reuse_a_failed_builds_work(bench: Workbench):
    bench.runner = Recorder(lambda root: 1)
    with pytest.raises(BuildError):
        bench.build("FROM base\nCOPY d /d\nRUN x")
    bench.runner = Recorder()
    bench.build("FROM base\nCOPY d /d\nRUN x")
    assert bench.hits() == [True, False]


def test_an_epoch_gives_the_same_image_twice_and_on_each_driver(
    bench: Workbench, tmp_path: Path
):
    text = "FROM base\nENV A=a\nWORKDIR /w/x\nCOPY d .\nRUN make\nADD a b /y/\nCMD z"
    clock = itertools.count(2_000_000_000)

    def act(root: Path) -> int:
        (root / "made").write_text("made")
        os.utime(root / "made", (next(clock), next(clock)))
        return 0

    ids = set()
    for name in sorted(DRIVERS):
        if name != bench.driver.name and type(bench.driver).__name__ == "Vfs":
            continue  # no overlays may be possible here
        other = Workbench(tmp_path / name, DRIVERS[name])
        other.base("base", BASE)
        shutil.copytree(bench.context, other.context, dirs_exist_ok=True)
        other.runner = Recorder(act)
        ids.add(other.build(text, epoch=1_500_000_000))
        ids.add(other.build(text, epoch=1_500_000_000, no_cache=True))
    assert len(ids) == 1


def busybox() -> bytes:
    found = shutil.which("busybox")
    if not found:
        pytest.skip("no busybox on this machine")
    return Path(found).read_bytes()


def test_a_real_program_is_built_and_run_step_by_step(bench: Workbench):
    names = ("sh", "cat", "mkdir", "test", "rm", "ln", "env")
    links: dict[str, bytes | str | None] = {f"bin/{name}": "busybox" for name in names}
    bench.base("real", {**BASE, "bin": None, "bin/busybox": busybox(), **links})
    bench.runner = Chroot()
    id = bench.build(
        """FROM real AS build
ARG WHO=nobody
ENV GREETING=hello
WORKDIR /src
COPY d .
RUN cat c e/f > cf \\
    # both of them
    && echo "$GREETING $WHO" >> cf
RUN ["/bin/sh", "-c", "test -s cf && mkdir out && ln -s ../cf out/link"]
RUN rm -r e /etc/group
FROM real
COPY --from=build /src/ /app/
RUN cat /app/out/link > /result
""",
        build_args={"WHO": "world"},
    )
    found = bench.tree(id)
    assert found["result"][2] == "cfhello world\n"
    assert found["app/out/link"] == ("link", 0o777, "../cf")
    assert "app/e" not in found
    assert "etc/group" in found


def test_a_real_program_that_fails_gives_its_status(bench: Workbench):
    base: dict[str, bytes | str | None] = {"bin": None, "bin/busybox": busybox()}
    bench.base("real", {**base, "bin/sh": "busybox"})
    bench.runner = Chroot()
    with pytest.raises(BuildError) as caught:
        bench.build("FROM real\nRUN exit 42")
    assert caught.value.status == 42


def test_a_file_that_an_archive_replaces_is_in_the_layer_as_it_became(
    bench: Workbench,
):
    """The contents that are kept in memory must not outlive the file."""
    (bench.context / "t.tar").write_bytes(tar_of({"a": b"A"}))
    id = bench.build("FROM base\nADD a t.tar /x/")
    layer = bench.layers.stack(bench.images.get(id).diff_ids)[-1]
    bench.layers.tar_of(layer.chain_id, lambda data: None)  # checks the digest
    assert bench.tree(id)["x/a"][2] == "A"
