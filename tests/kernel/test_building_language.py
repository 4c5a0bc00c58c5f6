"""What Dockerfiles of today say: here-documents, flags, stages, triggers, mounts."""

import http.server
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
from digests import digest
from scenery import tar_of, write
from workbench import Recorder, Workbench

from minidocker.drivers import Vfs
from minidocker.errors import (
    BuildError,
    DockerfileError,
    MinidockerError,
    NotFoundError,
    UnsupportedError,
)
from minidocker.manifests import Platform, host_platform
from minidocker.moves import LARGE
from minidocker.oci import ImageConfig, parse_reference
from minidocker.stage import Fresh, Secret, Shown, Written


pytestmark = pytest.mark.root
BASE: dict[str, bytes | str | None] = {
    "etc": None,
    "etc/passwd": b"root:x:0:0::/:/bin/sh\n",
    "etc/group": b"root:x:0:\n",
    "srv": None,
    "trap": "../../../../etc",
}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    bench = Workbench(tmp_path, Vfs)
    bench.base("base", BASE)
    write(bench.context, {"a": "a", "b": "b", "d/c": "c", "d/e/f": "f"})
    return bench


def files(bench: Workbench, id: str) -> dict[str, str]:
    """The files that are not the base's."""
    found = bench.tree(id)
    return {n: e[2] for n, e in found.items() if e[0] == "file" and n not in BASE}


# Here-documents


def test_a_heredoc_is_a_file_with_its_variables(bench: Workbench):
    id = bench.build("""FROM base
ENV WHO=world
COPY <<EOF /one
it's "$WHO" \\$WHO
EOF
COPY <<'RAW' <<-TABS a /many/
$WHO
RAW
\t\ttabs $WHO
TABS
""")
    assert files(bench, id) == {
        "one": 'it\'s "world" $WHO\n', "many/RAW": "$WHO\n",
        "many/TABS": "tabs world\n", "many/a": "a",
    }  # fmt: skip
    assert bench.tree(id)["one"][1] == 0o644


def test_a_heredoc_counts_for_the_cache(bench: Workbench):
    for text, hit in [("x", False), ("x", True), ("y", False)]:
        bench.build(f"FROM base\nCOPY <<E /x\n{text}\nE")
        assert bench.hits() == [hit]


def test_a_run_of_a_heredoc_is_a_script(bench: Workbench):
    bench.runner = runner = Recorder()
    bench.build("FROM base\nRUN <<E\necho $A\necho b\nE\n")
    assert runner.asked[-1][0] == ("/bin/sh", "-c", "echo $A\necho b\n")


def test_a_heredoc_with_an_interpreter_is_a_file_in_memory(bench: Workbench):
    bench.runner = runner = Recorder()
    id = bench.build("FROM base\nRUN <<E\n#!/usr/bin/env python3\nprint(1)\nE\n")
    assert runner.asked[-1][0] == ("/bin/sh", "-c", "/dev/pipes/E")
    [script] = runner.around.mounts
    text = b"#!/usr/bin/env python3\nprint(1)\n"
    assert script == Written("/dev/pipes/E", text, 0o755)
    assert "print(1)" in bench.images.get(id).history[-1].created_by


def test_a_heredoc_for_a_program_goes_to_the_shell(bench: Workbench):
    bench.runner = runner = Recorder()
    bench.build("FROM base\nRUN python3 <<A && cat <<B\n1\nA\n2\nB\n")
    assert runner.asked[-1][0][2] == "python3 <<A && cat <<B\n1\nA\n2\nB"


# Flags of COPY and ADD


def test_exclude_and_parents(bench: Workbench):
    id = bench.build("""FROM base
COPY --exclude=e d /x/
COPY --exclude=**/f --exclude=c d /y/
COPY --exclude=b ? /z/
COPY --parents d/e/f ./a /p/
COPY --parents d/./e/* /q/
COPY --parents d/e /r/
""")
    assert sorted(files(bench, id)) == [
        "p/a", "p/d/e/f", "q/e/f", "r/d/e/f", "x/c", "z/a", "z/c", "z/e/f",
    ]  # fmt: skip
    assert bench.tree(id)["y/e"][0] == "dir"


def test_parents_have_the_modes_of_the_sources(bench: Workbench):
    (bench.context / "d").chmod(0o711)
    found = bench.tree(bench.build("FROM base\nCOPY --parents d/e/f /p/"))
    assert (found["p/d"][1], found["p/d/e"][1]) == (0o711, 0o755)


def test_a_mode_may_be_said_in_words(bench: Workbench):
    (bench.context / "a").chmod(0o700)
    found = bench.tree(bench.build("FROM base\nCOPY --chmod=u=rwX,go=rX a b d /x/"))
    modes = {name: found[f"x/{name}"][1] for name in ("a", "b", "c", "e")}
    assert modes == {"a": 0o755, "b": 0o644, "c": 0o644, "e": 0o755}
    with pytest.raises(DockerfileError, match="bad mode"):
        bench.build("FROM base\nCOPY --chmod=u=rwz a /x")


def test_a_linked_copy_reads_nothing_of_the_image(bench: Workbench):
    found = bench.tree(bench.build("FROM base\nCOPY --link a /trap/x\nCOPY a /trap2"))
    assert found["trap"][0] == "dir"
    assert found["trap/x"][2] == "a"
    assert "etc/x" not in found
    found = bench.tree(bench.build("FROM base\nCOPY --link a /srv"))
    assert found["srv"] == ("file", 0o644, "a")


def test_copy_takes_from_a_named_context_or_image(bench: Workbench, tmp_path: Path):
    write(tmp_path / "more", {"m": "m", "n": "n", ".dockerignore": "n"})
    text = "FROM base AS x\nCOPY a /a\nFROM base\nCOPY --from=x / /got/"
    given = MappingProxyType({"x": str(tmp_path / "more")})
    assert sorted(files(bench, bench.build(text, contexts=given))) == [
        "got/.dockerignore", "got/m",
    ]  # fmt: skip
    bench.base("other", {"o": b"o"})
    given = MappingProxyType({"base": "docker-image://other"})
    assert files(bench, bench.build("FROM base", contexts=given)) == {"o": "o"}
    given = MappingProxyType({"alpine": "docker-image://other"})
    for name in ("alpine", "alpine:latest", "docker.io/library/alpine"):
        assert files(bench, bench.build(f"FROM {name}", contexts=given)) == {"o": "o"}


def test_a_stage_may_begin_with_a_named_context(bench: Workbench, tmp_path: Path):
    write(tmp_path / "tree", {"etc/m": "m", "n": "n", ".dockerignore": "n"})
    given = MappingProxyType({"mine": str(tmp_path / "tree")})
    text = "FROM mine AS x\nUSER 1\nFROM base\nCOPY --from=x /etc /got\n"
    id = bench.build(text, contexts=given, target="x")
    assert files(bench, id) == {".dockerignore": "n", "etc/m": "m"}
    assert bench.config(id).user == "1"
    assert "got/m" in files(bench, bench.build(text, contexts=given))
    assert bench.build(text, contexts=given, target="x") == id
    (tmp_path / "tree/etc/m").write_text("new")
    id = bench.build(text, contexts=given, target="x")
    assert files(bench, id)["etc/m"] == "new"


def test_a_stage_that_a_context_replaces_is_not_built(bench: Workbench, tmp_path: Path):
    write(tmp_path / "more", {"m": "m"})
    text = "FROM base AS x\nCOPY gone /\nFROM base\nCOPY --from=x m /m\n"
    given = MappingProxyType({"x": str(tmp_path / "more")})
    assert "m" in files(bench, bench.build(text, contexts=given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("https://example.org/x.git", "is not supported"),
        ("git@example.org:x", "is not supported"),
        ("/no/such/place", "is no directory"),
    ],
)
def test_a_context_that_cannot_be_is_refused_before_the_first_step(
    bench: Workbench, given: str, said: str
):
    contexts = MappingProxyType({"x": given})
    for line in (
        "FROM x",
        "FROM base\nCOPY --from=x a /",
        "FROM base\nRUN --mount=from=x,target=/m true",
    ):
        with pytest.raises(MinidockerError, match=said):
            bench.build(line, contexts=contexts)
        assert bench.said == []


@pytest.mark.parametrize("pack", ["gzip", "bz2", "lzma", "zstd", "plain"])
def test_add_unpacks_what_is_an_archive_unless_told_not_to(bench: Workbench, pack: str):
    import bz2
    import gzip
    import lzma

    import zstandard

    packers = {
        "gzip": gzip.compress, "bz2": bz2.compress, "lzma": lzma.compress,
        "zstd": zstandard.ZstdCompressor().compress, "plain": bytes,
    }  # fmt: skip
    (bench.context / "t").write_bytes(packers[pack](tar_of({"x": b"x"})))
    id = bench.build("FROM base\nADD t /in/\nADD --unpack=false t /as/")
    assert sorted(files(bench, id)) == ["as/t", "in/x"]


# ADD of addresses


class Server(http.server.BaseHTTPRequestHandler):
    tar = tar_of({"x": b"x"})

    def do_GET(self) -> None:
        away = {"/loop": "/loop", "/away": "file:///etc/passwd", "/moved": "/t.tar"}
        if self.path in away:
            self.send_response(302)
            self.send_header("Location", away[self.path])
        else:
            self.send_response(200 if self.path.startswith("/t.tar") else 404)
            self.send_header("Last-Modified", "Mon, 05 Feb 2018 14:22:15 GMT")
            short = self.path.endswith("short")
            self.send_header("Content-Length", str(len(self.tar) + short))
        self.end_headers()
        if self.path.startswith("/t.tar"):
            self.wfile.write(self.tar)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_add_fetches_an_address(bench: Workbench, address: str):
    from hashlib import sha256

    digest = f"sha256:{sha256(Server.tar).hexdigest()}"
    id = bench.build(f"""FROM base
ADD {address}/t.tar /plain/
ARG SUM={digest[7:]}
ADD --checksum=sha256:$SUM {address}/moved /named
ADD --unpack=true {address}/t.tar?q=/r /in/
""")
    found = files(bench, id)
    assert sorted(found) == ["in/x", "named", "plain/t.tar"]
    assert bench.tree(id)["plain/t.tar"][1] == 0o600
    bench.build(f"FROM base\nADD {address}/t.tar /plain/")
    assert bench.hits() == [True]


@pytest.mark.parametrize(
    ("add", "what"),
    [
        ("ADD {0}/gone /x", "answers 404"),
        ("ADD {0}/loop /x", "failed: too many redirects\n"),
        ("ADD {0}/away /x", "failed"),
        ("ADD {0}/t.tar/short /x", "failed"),
        ("ADD {0}/ /x/", "has no file name"),
        ("ADD http://127.0.0.1:1/x /x", "failed: Connection refused\n"),
        ("ADD --checksum=sha256:" + "0" * 64 + " {0}/t.tar /x", "it is sha256:"),
        ("ADD --checksum=md5:0 {0}/t.tar /x", "bad checksum"),
        ("ADD --checksum=$SUM {0}/t.tar /x", 'bad checksum ""'),
        ("ADD ftp://127.0.0.1/x /x", "ADD of ftp is not supported"),
        ("COPY {0}/t.tar /x", "COPY fetches nothing"),
    ],
)
def test_what_cannot_be_fetched_leaves_nothing(
    bench: Workbench, address: str, add: str, what: str
):
    before = bench.leavings()
    with pytest.raises(MinidockerError, match=what) as caught:
        bench.build("FROM base\n" + add.format(address))
    assert caught.value.where == "Dockerfile:2"
    assert bench.leavings() == before


# Wildcards


def test_one_pattern_that_matches_is_enough(bench: Workbench):
    id = bench.build("FROM base\nCOPY a lock* *.lock other* /x/\nADD no* a /y/")
    assert sorted(files(bench, id)) == ["x/a", "y/a"]
    with pytest.raises(BuildError) as caught:
        bench.build("FROM base\nCOPY lock* *.lock /x/")
    why = str(caught.value)
    assert 'no source files were specified: nothing matches "lock*", "*.lock"' in why
    assert why.splitlines()[1:3] == [
        "   2 | COPY lock* *.lock /x/",
        "     |      ^~~~~",
    ]


# Stages


def test_only_the_stages_that_are_needed_are_built(bench: Workbench):
    text = """FROM base AS one
COPY a /one
FROM nosuch AS unneeded
RUN false
FROM one AS two
COPY b /two
FROM base AS three
COPY d/c /three
FROM base
COPY --from=two /two /got
RUN --mount=from=3,target=/m x
"""
    bench.build(text)
    steps = [line for line in bench.said if line.startswith("Step ")]
    assert len(steps) == 9
    assert not any("nosuch" in line for line in steps)
    bench.build(text, target="two")
    assert [line.split(" : ")[1] for line in bench.said if line.startswith("Step ")] == [
        "FROM base AS one", "COPY a /one", "FROM one AS two", "COPY b /two",
    ]  # fmt: skip
    with pytest.raises(NotFoundError):
        bench.build(text, target="unneeded")


def test_platforms(bench: Workbench):
    system, arch, _ = host_platform().parts()
    id = bench.build(f"""ARG TARGETARCH
FROM --platform=$BUILDPLATFORM base AS x
FROM --platform={system}/{arch} x
ARG TARGETPLATFORM TARGETOS=plan9 TARGETARCH
LABEL p=$TARGETPLATFORM o=$TARGETOS a=$TARGETARCH b=$BUILDARCH
""")
    labels = bench.config(id).labels
    assert labels == {"a": arch, "b": "", "o": "plan9", "p": f"{system}/{arch}"}
    with pytest.raises(UnsupportedError, match='"base" is for linux/'):
        bench.build("FROM --platform=linux/s390x base")


def test_an_image_of_another_platform_may_be_built_on(bench: Workbench):
    image = bench.images.get(bench.images.resolve("base"))
    id = bench.images.add(image.replace(architecture="s390x"), None)
    bench.images.tag(parse_reference("far"), id)
    made = bench.build("FROM --platform=linux/s390x far\nCOPY a /a")
    assert bench.images.get(made).architecture == "s390x"


CROSS = """FROM --platform=$BUILDPLATFORM base AS make
ARG TARGETARCH
LABEL made=$TARGETARCH
COPY a /a
FROM scratch
ARG TARGETPLATFORM
LABEL for=$TARGETPLATFORM
COPY --from=make /a /a
"""


def test_an_image_for_another_platform_is_made_from_scratch(bench: Workbench):
    ours = bench.images.get(bench.build(CROSS))
    far = bench.images.get(bench.build(CROSS, platform="linux/arm/v7"))
    assert (ours.architecture, ours.os) == host_platform().parts()[1::-1]
    assert (far.architecture, far.extra) == ("arm", {"variant": "v7"})
    assert far.config
    assert far.config.labels == {"for": "linux/arm/v7"}
    assert far.diff_ids == ours.diff_ids
    again = bench.build(CROSS, platform="linux/arm/v7")
    assert bench.images.get(again) == far
    bench.build("FROM scratch\nCOPY a /a", platform="linux/arm64")
    bench.build("FROM scratch\nCOPY a /a")
    assert bench.hits() == [False]


def test_a_stage_keeps_its_platform(bench: Workbench):
    text = "FROM --platform=linux/arm64 scratch AS one\nCOPY a /a\nFROM one\nCOPY b /b"
    assert bench.images.get(bench.build(text)).architecture == "arm64"


def test_an_image_of_another_platform_is_fetched(bench: Workbench):
    asked: list[tuple[str, str]] = []

    def pull(name: str, platform: Platform | None) -> str:
        asked.append((name, str(platform)))
        image = bench.images.get(bench.images.resolve("base"))
        id = bench.images.add(image.replace(architecture="s390x"), None)
        bench.images.tag(parse_reference(name), id)
        return id

    made = bench.build("FROM base\nCOPY a /a", platform="linux/s390x", pull=pull)
    assert bench.images.get(made).architecture == "s390x"
    assert asked == [("base", "linux/s390x")]
    with pytest.raises(UnsupportedError, match='"far" is for linux/s390x, not for'):
        bench.build("FROM --platform=linux/386 far", pull=pull)
    assert bench.said == []


def test_until_ends_a_build_at_a_step(bench: Workbench):
    id = bench.build("FROM base\nUSER 1\nUSER 2\nUSER 3", until=3, tags=("part",))
    assert bench.config(id).user == "2"
    assert bench.images.resolve("part") == id


def test_labels_are_one_more_step(bench: Workbench):
    labels = MappingProxyType({"b": "it's $HOME", "a": "1"})
    id = bench.build("FROM base\nLABEL a=0", labels=labels)
    assert bench.config(id).labels == {"a": "1", "b": "it's $HOME"}
    steps = [line for line in bench.said if line.startswith("Step ")]
    assert steps[2:] == ["Step 3/4 : LABEL a=1", "Step 4/4 : LABEL b=it's $HOME"]


# Health, triggers, maintainers


def test_a_health_check_is_stored_as_docker_stores_it(bench: Workbench):
    """Recorded from Docker 20.10, the merging of an older one's times included."""
    id = bench.build("""FROM base
HEALTHCHECK --interval=1m30s --timeout=3s --retries=3 CMD curl -f "http://x/"
HEALTHCHECK CMD ["a", "b"]
HEALTHCHECK NONE
""")
    lines = [e.created_by for e in bench.images.get(id).history[1:]]
    assert [line.removeprefix("/bin/sh -c #(nop)  ") for line in lines] == [
        'HEALTHCHECK &{["CMD-SHELL" "curl -f \\"http://x/\\""] "1m30s" "3s" "0s" \'\\x03\'}',
        'HEALTHCHECK &{["CMD" "a" "b"] "0s" "0s" "0s" \'\\x00\'}',
        'HEALTHCHECK &{["NONE"] "0s" "0s" "0s" \'\\x00\'}',
    ]
    merged = {
        "Test": ["NONE"],
        "Interval": 90 * 10**9,
        "Timeout": 3 * 10**9,
        "Retries": 3,
    }
    assert bench.config(id).healthcheck == merged
    second = bench.images.parent(bench.images.parent(id) or "") or ""
    assert (
        b'"Healthcheck":{"Test":["CMD-SHELL","curl -f \\"http://x/\\""],'
        b'"Interval":90000000000,"Timeout":3000000000,"Retries":3}'
    ) in bench.images.raw(second)
    assert [line for line in bench.said if line.startswith("Note")] == [
        'Note: overriding previous HEALTHCHECK: [CMD-SHELL curl -f "http://x/"]',
        "Note: overriding previous HEALTHCHECK: [CMD a b]",
    ]


def test_triggers_fire_in_the_next_build_and_then_are_gone(bench: Workbench):
    bench.build(
        "FROM base\nONBUILD COPY a /fired\nONBUILD USER 7\nLABEL x=1", tags=("parent",)
    )
    assert "Step 2/4 : ONBUILD COPY a /fired" in bench.said
    assert bench.config(bench.images.resolve("parent")).on_build == (
        "COPY a /fired", "USER 7",
    )  # fmt: skip
    id = bench.build("FROM parent\nUSER 8")
    assert bench.said[:2] == ["Step 1/2 : FROM parent", "# Executing 2 build triggers"]
    assert files(bench, id) == {"fired": "a"}
    config = bench.config(id)
    assert (config.user, config.on_build) == ("8", None)
    lines = [entry.created_by for entry in bench.images.get(id).history[-3:]]
    assert [line.split("#(nop) ")[1].split()[0] for line in lines] == [
        "COPY", "USER", "USER",
    ]  # fmt: skip


def test_a_trigger_may_need_a_stage(bench: Workbench):
    bench.build("FROM base\nONBUILD COPY --from=files /f /f", tags=("parent",))
    text = "FROM base AS files\nCOPY d/e /\nFROM parent"
    assert files(bench, bench.build(text)) == {"f": "f"}


def test_a_trigger_of_an_image_that_is_fetched_may_need_a_stage(bench: Workbench):
    made = bench.build("FROM base\nONBUILD COPY --from=files /f /f", tags=("parent",))
    bench.images.untag(parse_reference("parent"))

    def pull(name: str, platform: Platform | None) -> str:
        bench.images.tag(parse_reference(name), made)
        return made

    text = "FROM base AS files\nCOPY d/e /\nFROM parent"
    assert files(bench, bench.build(text, pull=pull)) == {"f": "f"}


def test_a_trigger_that_fails_names_itself(bench: Workbench):
    bench.build("FROM base\nONBUILD COPY gone /x", tags=("parent",))
    with pytest.raises(BuildError) as caught:
        bench.build("FROM parent")
    assert caught.value.where == "Dockerfile:1"
    assert "(from ONBUILD COPY gone /x)" in str(caught.value)


def test_a_maintainer_is_warned_of(bench: Workbench):
    id = bench.build("FROM base\nMAINTAINER me")
    assert bench.images.get(id).author == "me"
    assert any("MAINTAINER is deprecated" in line for line in bench.said)


# Mounts of RUN


def test_the_mounts_of_a_run_are_handed_to_the_runner(bench: Workbench):
    seen = {}

    def act(root: Path) -> int:
        for mount in bench.runner.around.mounts:
            if isinstance(mount, Shown):
                inside = os.listdir(mount.path) if os.path.isdir(mount.path) else []
                seen[mount.target] = (mount.readonly, sorted(inside))
        return 0

    bench.runner = runner = Recorder(act)
    (bench.context / ".dockerignore").write_text("b")
    bench.build(
        """FROM base AS x
COPY d /d
FROM base
WORKDIR /w
RUN --network=host --mount=target=/ctx --mount=src=d/e,dst=rel,rw \\
  --mount=from=x,source=/d,target=/x --mount=type=tmpfs,target=/t,size=1k \\
  --mount=type=cache,target=/c --mount=type=secret,id=s,mode=440,uid=5 \\
  --mount=type=secret,id=s,env=TOKEN --mount=type=secret,id=none cmd
""",
        secrets=MappingProxyType({"s": Secret(path=str(bench.context / "a"))}),
    )
    assert seen == {
        "/ctx": (True, [".dockerignore", "a", "d"]), "/w/rel": (False, ["f"]),
        "/x": (True, ["c", "e"]), "/c": (False, []),
    }  # fmt: skip
    assert [m for m in runner.around.mounts if not isinstance(m, Shown)] == [
        Fresh("/t", 1024), Written("/run/secrets/s", b"a", 0o440, (5, 0)),
    ]  # fmt: skip
    assert runner.around.host_network
    assert "TOKEN=a" in (runner.asked[-1][1].env or ())


def test_secrets_are_in_no_image(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    secrets = MappingProxyType({"s": Secret(variable="MINIDOCKER_TEST_SECRET")})
    monkeypatch.setenv("MINIDOCKER_TEST_SECRET", "hushhush")
    text = "FROM base\nRUN --mount=type=secret,id=s,env=S x"
    id = bench.build(text, secrets=secrets)
    assert all("hushhush" not in text for _, text in bench.family(id))
    monkeypatch.setenv("MINIDOCKER_TEST_SECRET", "another")
    bench.build(text, secrets=secrets)
    assert bench.hits() == [True]


def test_a_required_secret_must_be_given(bench: Workbench):
    with pytest.raises(BuildError, match='secret "s" was not given'):
        bench.build("FROM base\nRUN --mount=type=secret,id=s,required x")


def test_a_cache_is_kept_and_no_part_of_the_image(bench: Workbench):
    sizes = []

    def act(root: Path) -> int:
        place = Path(bench.runner.around.mounts[0].path)
        sizes.append(len(list(place.iterdir())))
        (place / str(len(sizes))).write_text("x")
        return 0

    bench.runner = Recorder(act)
    text = "FROM base\nRUN --mount=type=cache,id=k,target=/c,mode=0700 x"
    id = bench.build(text)
    bench.build(text, no_cache=True)
    assert sizes == [0, 1]
    assert "c" not in bench.tree(id)
    home = bench.store / "buildcache/mounts"
    [place] = [p for p in home.iterdir() if p.is_dir()]
    assert place.stat().st_mode & 0o7777 == 0o700


def test_a_cache_may_begin_with_files_of_a_stage(bench: Workbench):
    found = []

    def act(root: Path) -> int:
        found.append(sorted(os.listdir(bench.runner.around.mounts[0].path)))
        return 0

    bench.runner = Recorder(act)
    mount = "type=cache,target=/c,from=x,source=/d"
    bench.build(f"FROM base AS x\nCOPY d /d\nFROM base\nRUN --mount={mount} x")
    assert found == [["c", "e"]]


@pytest.mark.parametrize(
    ("change", "hit"), [("d/c", False), ("a", True), ("d/e/f", False)]
)
def test_the_files_of_a_bind_count_for_the_cache(
    bench: Workbench, change: str, hit: bool
):
    text = "FROM base\nRUN --mount=source=d,target=/d x"
    bench.build(text)
    write(bench.context, {change: "changed"})
    bench.build(text)
    assert bench.hits() == [hit]


def test_what_a_stage_shows_counts_for_the_cache(bench: Workbench):
    text = "FROM base AS x\nCOPY a /a\nFROM base\nRUN --mount=from=x,target=/x y"
    bench.build(text)
    bench.build(text)
    assert bench.hits()[-1]
    write(bench.context, {"a": "changed"})
    bench.build(text)
    assert not bench.hits()[-1]


def test_a_failed_run_with_mounts_leaves_nothing(bench: Workbench):
    bench.runner = Recorder(lambda root: 3)
    before = bench.leavings()
    with pytest.raises(BuildError) as caught:
        bench.build("FROM base\nRUN --mount=target=/x --mount=from=base,target=/y z")
    assert caught.value.status == 3
    assert bench.leavings() == before


# Cache from elsewhere


def stranger(where: Path, id: str, image: ImageConfig) -> Workbench:
    """Another store that has the base, and has been given the image."""
    other = Workbench(where, Vfs)
    other.base("base", BASE)
    write(other.context, {"a": "a"})
    other.images.tag(parse_reference("pulled"), other.images.add(image, None))
    return other


def test_a_stranger_is_no_cache_unless_it_is_named(bench: Workbench, tmp_path: Path):
    text = "FROM base\nCOPY a /x\nRUN y\nUSER 1"
    id = bench.build(text)
    other = stranger(tmp_path / "one", id, bench.images.get(id))
    other.build(text)
    assert other.hits() == [False, False, False]
    other = stranger(tmp_path / "two", id, bench.images.get(id))
    other.build(text, cache_from=("pulled",))
    assert other.hits() == [True, True, True]


def test_scratch_builds_find_only_what_was_built_here(bench: Workbench):
    text = "FROM scratch\nCOPY a /a"
    id = bench.build(text)
    image = bench.images.get(id)
    bench.build(text)
    assert bench.hits() == [True]
    bench.images.delete(id)
    bench.images.add(image, None)
    bench.build(text)
    assert bench.hits() == [False]


# Why it missed


def reasons(bench: Workbench) -> list[str]:
    mark = " ---> Not cached: "
    return [line.removeprefix(mark) for line in bench.said if line.startswith(mark)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: write(c, {"d/e/f": "g"}), 'content of "d/e/f" was '),
        (lambda c: write(c, {"d/new": "g"}), '"d/new" was absent, now there'),
        (lambda c: (c / "d/c").unlink(), '"d/c" was there, now absent'),
        (lambda c: (c / "d/c").chmod(0o600), 'mode of "d/c" was 644, now 600'),
        (lambda c: write(c, {".dockerignore": "d/e"}), '"d/e" was there, now absent'),
    ],
)
def test_a_miss_names_the_file_that_differs(bench: Workbench, change, said: str):
    text = "FROM base\nCOPY d /d\nUSER 1\nRUN x"
    bench.build(text)
    assert reasons(bench) == []
    change(bench.context)
    bench.build(text)
    first, second, third = reasons(bench)
    assert first.startswith(said)
    assert second.startswith("parent was ")
    assert third.startswith("parent was ")


def test_a_miss_names_argument_instruction_and_base(bench: Workbench):
    text = "FROM base\nARG A\nRUN x"
    bench.build(text, build_args=MappingProxyType({"A": "1"}))
    bench.build(text, build_args=MappingProxyType({"A": "2"}))
    assert reasons(bench) == ["argument A was 1, now 2"]
    bench.build("FROM base\nARG A\nRUN y")
    assert reasons(bench)[0] == "argument A was 2, now not set"
    bench.build("FROM base\nARG A\nRUN x y")
    assert reasons(bench) == ["instruction was y, now x y"]
    old = bench.images.resolve("base")
    new = bench.base("base", {**BASE, "new": b""})
    bench.build("FROM base\nARG A\nRUN x y")
    assert reasons(bench)[0] == f"parent was {old[7:19]}, now {new[7:19]}"


def test_owners_of_another_stage_count(bench: Workbench):
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        return  # one user id: there is no other owner
    text = (
        "FROM base AS x\nCOPY --chown={} d /d\nFROM base\nCOPY --from=x /d /d\nUSER 1"
    )
    bench.build(text.format(7))
    bench.build(text.format(8))
    assert bench.hits()[-2:] == [False, False]
    assert 'owner of "d" was 7:7, now 8:8' in reasons(bench)


def test_an_image_that_is_not_here_is_pulled(bench: Workbench):
    asked = []

    def pull(name: str, platform: Platform | None) -> str:
        asked.append(name)
        return bench.images.resolve("base")

    bench.build("FROM far:v1\nCOPY --from=base /etc/group /g", pull=pull)
    assert asked == ["far:v1"]
    bench.build("FROM base", pull=pull, pull_first=True)
    assert asked == ["far:v1", "base"]


def test_a_damaged_image_does_not_stop_a_build(bench: Workbench):
    bench.build("FROM base\nRUN x", tags=("old",))
    path = Path(bench.images.content) / bench.images.resolve("old")[7:]
    path.write_bytes(b"{}")
    bench.build("FROM base\nRUN x")
    assert bench.hits() == [False]


def sparse(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(LARGE + 4096)
        file.seek(LARGE)
        file.write(b"the end")


def test_a_large_file_is_digested_while_it_is_copied(bench: Workbench):
    sparse(bench.context / "big/file")
    text = "FROM base\nCOPY big /big\nUSER 1"
    id = bench.build(text)
    line = bench.images.get(id).history[-2].created_by
    assert digest(bench.context, "big") in line
    bench.build(text)
    assert bench.hits() == [True, True]
    bench.build(text, no_cache=True)
    layer = bench.layers.stack(bench.images.get(id).diff_ids)[-1]
    assert layer.size == LARGE + 4096
    (bench.context / "big/file").chmod(0o600)
    bench.build(text)
    assert reasons(bench)[0] == 'mode of "big/file" was 644, now 600'


def test_a_fault_beside_a_large_file_leaves_nothing(bench: Workbench):
    sparse(bench.context / "big/file")
    os.mknod(bench.context / "big/whiteout", stat.S_IFCHR, os.makedev(0, 0))
    before = bench.leavings()
    with pytest.raises(BuildError, match="whiteout"):
        bench.build("FROM base\nCOPY big /big", no_cache=True)
    assert bench.leavings() == before
