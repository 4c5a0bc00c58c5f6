"""The walk through a Dockerfile: steps, stages, messages, errors. No file is copied."""

from itertools import pairwise
from pathlib import Path

import pytest
from workbench import Recorder, Workbench, normal_json, normal_lines

from minidocker.dockerfile import parse
from minidocker.drivers import Vfs
from minidocker.errors import (
    BuildError,
    DockerfileError,
    MinidockerError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from minidocker.oci import ContainerConfig, sha256_text
from minidocker.stage import source_date_epoch


NO_LAYER = (sha256_text(b"a layer that no step of these tests reads"),)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    bench = Workbench(tmp_path, Vfs)
    bench.keep("base", NO_LAYER, ContainerConfig(env=("A=a",), cmd=("sh",)))
    return bench


def test_each_step_is_told_in_dockers_words(bench: Workbench):
    id = bench.build("FROM base\nenv  B=b \\\n  C=c\nUSER 7\n", tags=("x", "y:v1"))
    assert normal_lines(bench.said, bench.family(id)) == [
        "Step 1/3 : FROM base",
        " ---> image-0",
        "Step 2/3 : env  B=b   C=c",
        " ---> Running in container-1",
        "Removing intermediate container container-1",
        " ---> image-1",
        "Step 3/3 : USER 7",
        " ---> Running in container-2",
        "Removing intermediate container container-2",
        " ---> image-2",
        "Successfully built image-2",
        "Successfully tagged x:latest",
        "Successfully tagged y:v1",
    ]
    assert bench.images.resolve("x") == bench.images.resolve("y:v1") == id


def test_each_image_is_the_parent_of_the_next(bench: Workbench):
    id = bench.build("FROM base\nENV B=b\nLABEL c=d\nUSER 7")
    family = bench.family(id)
    assert len(family) == 4
    for (parent, _), (one, _) in pairwise(family):
        assert bench.config(one).image == parent
        assert bench.images.get(one).history[-1].empty_layer
    assert bench.images.get(id).diff_ids == NO_LAYER


def test_from_alone_is_the_base_itself(bench: Workbench):
    assert bench.build("FROM base", tags=("same",)) == bench.images.resolve("base")
    assert bench.images.resolve("same") == bench.images.resolve("base")


def test_from_takes_an_id_and_the_beginning_of_one(bench: Workbench):
    id = bench.images.resolve("base")
    assert bench.build(f"FROM {id}") == bench.build(f"FROM {id[7:19]}") == id


def test_from_expands_what_was_declared_before_it(bench: Workbench):
    text = "ARG WHICH=nosuch\nARG TAG=${WHICH:+latest}\nFROM ${WHICH}:$TAG"
    id = bench.build(text, build_args={"WHICH": "base"})
    assert id == bench.images.resolve("base")
    assert bench.said[:3] == [
        "Step 1/3 : ARG WHICH=nosuch",
        "Step 2/3 : ARG TAG=${WHICH:+latest}",
        "Step 3/3 : FROM ${WHICH}:$TAG",
    ]


def test_a_stage_begins_where_an_earlier_one_ended(bench: Workbench):
    text = "FROM base AS One\nENV S=1\nFROM base\nENV T=2\nFROM one\nENV U=3"
    env = bench.config(bench.build(text)).env or ()
    assert [one for one in env if one[0] in "STU"] == ["S=1", "U=3"]


@pytest.mark.parametrize(
    ("target", "want"), [("one", "S=1"), ("ONE", "S=1"), ("0", "S=1"), ("1", "S=2")]
)
def test_a_target_ends_the_build_early(bench: Workbench, target: str, want: str):
    text = "FROM base AS one\nENV S=1\nFROM base\nENV S=2\nFROM base\nENV S=3"
    assert want in (bench.config(bench.build(text, target=target)).env or ())
    assert bench.said[0].startswith("Step 1/2 ")


def test_an_unknown_target_is_refused_before_the_first_step(bench: Workbench):
    with pytest.raises(BuildError, match='stage "biuld" does not exist') as caught:
        bench.build("FROM base AS build\nUSER 1", target="biuld")
    assert caught.value.hint == 'did you mean "build"?'
    assert bench.said == []


def test_build_arguments_that_nobody_asks_for_are_told_in_one_line(bench: Workbench):
    args = {"Z": "1", "A": "2", "USED": "3", "http_proxy": "p"}
    bench.build("FROM base\nARG USED", build_args=args)
    assert bench.said[-2] == "[Warning] One or more build-args [A Z] were not consumed"


@pytest.mark.parametrize(
    ("text", "kind", "where", "what"),
    [
        ("FROM nosuch:v9", NotFoundError, 1, 'no such image: "nosuch:v9"'),
        ("FROM bsae", NotFoundError, 1, 'did you mean "base"?'),
        ("FROM Base", UsageError, 1, "must be lowercase"),
        ("FROM $GONE", DockerfileError, 1, '"$GONE" is empty'),
        ("FROM base AS 9x", DockerfileError, 1, 'bad name for a stage: "9x"'),
        ("FROM --platform=vax base", UnsupportedError, 1, "not for linux/vax"),
        ("FROM --platform=a/b/c/d base", DockerfileError, 1, "bad platform"),
        ("FROM base\n\nENV A=${B", DockerfileError, 3, 'no closing "}"'),
        ("FROM base\nENV A='b", DockerfileError, 2, "no closing '"),
        ("FROM base\nENV ${X:-}=b", DockerfileError, 2, "ENV names can not be blank"),
        ("FROM base\nARG ''=b", DockerfileError, 2, "not of the form NAME[=VALUE]"),
        ("FROM base\nWORKDIR $GONE", DockerfileError, 2, "WORKDIR is empty"),
        ("FROM base\nVOLUME /a $GONE", DockerfileError, 2, "VOLUME specified can not"),
        ("FROM base\n# c\nEXPOSE 0", DockerfileError, 3, 'invalid port "0"'),
        ("FROM base\nEXPOSE 9-8", DockerfileError, 2, 'invalid port "9-8"'),
        ("FROM base\nEXPOSE 80/http", DockerfileError, 2, 'invalid port "80/http"'),
        ("FROM base\nSTOPSIGNAL SIGGONE", DockerfileError, 2, "invalid signal"),
        ("FROM base\nSHELL sh -c", DockerfileError, 2, "SHELL needs a JSON list"),
        ("FROM base\nADD git://x/y /z", UnsupportedError, 2, "ADD of a repository"),
        ("FROM base\nADD --checksum=x a b", DockerfileError, 2, "one address"),
        ("FROM base\nCOPY --chmod=rwx a b", DockerfileError, 2, 'bad mode "rwx"'),
        ("FROM base\nCOPY --from=gone a b", NotFoundError, 2, 'no such image: "gone"'),
        ("FROM base\nCOPY gone b", BuildError, 2, "stat gone: file does not exist"),
        (
            "FROM base\nCOPY gone b",
            BuildError,
            2,
            "   2 | COPY gone b\n     |      ^~~~",
        ),
        (
            "FROM base AS one\nFROM one\nCOPY --from=onne /a /b",
            NotFoundError,
            3,
            '   3 | COPY --from=onne /a /b\n     |             ^~~~\nhint: did you mean "one"?',
        ),
        ("FROM base\nCOPY ../up b", BuildError, 2, "outside the build context"),
        ("FROM scratch\nRUN true", BuildError, 2, "nothing to run in"),
        ("FROM base\nUSER 1\nRUN --mount=type=ssh x", UnsupportedError, 3, "=ssh"),
        ("FROM base\nRUN --mount=type=cache x", DockerfileError, 2, "needs a target"),
        (
            "FROM base\nRUN --mount=type=tmpfs,target=/x,id=y x",
            DockerfileError,
            2,
            '"id"',
        ),
        ("FROM base\nRUN --mount=type=bnd,target=/x x", DockerfileError, 2, '"bind"'),
        ("FROM base\nRUN --mount=foo x", DockerfileError, 2, '"foo" needs a value'),
        (
            "FROM base\nRUN --mount=type=cache,target=/x,ro=maybe x",
            DockerfileError,
            2,
            'readonly is true or false, not "maybe"',
        ),
        ("FROM base\nRUN --mount=target=/ x", DockerfileError, 2, "mounted on /"),
        (
            "ARG S=x\nFROM base\nRUN --mount=target=/x,from=$S x",
            DockerfileError,
            3,
            'not expanded in from="$S"',
        ),
        (
            "ARG S=x\nFROM base\nCOPY --from=$S a b",
            DockerfileError,
            3,
            'hint: give the stage a name, "FROM $S AS name"',
        ),
        ("FROM base\nCOPY --chmod=8 a b", DockerfileError, 2, 'bad mode "8"'),
    ],
)
def test_an_error_has_the_line_of_its_instruction(
    bench: Workbench, text: str, kind: type[MinidockerError], where: int, what: str
):
    with pytest.raises(kind) as caught:
        bench.build(text)
    assert caught.value.where == f"Dockerfile:{where}"
    assert what in str(caught.value)
    assert bench.driver.ids() == []


def test_scratch_alone_is_no_image(bench: Workbench):
    with pytest.raises(BuildError, match="no image was made"):
        bench.build("FROM scratch")


def test_a_bad_tag_is_refused_before_the_first_step(bench: Workbench):
    with pytest.raises(UsageError, match="invalid reference format"):
        bench.build("FROM base", tags=("Bad Tag",))
    assert bench.said == []


def test_a_failed_build_moves_no_tag(bench: Workbench):
    with pytest.raises(DockerfileError):
        bench.build("FROM base\nUSER 1\nEXPOSE x", tags=("base",))
    assert bench.images.resolve("base") == bench.build("FROM base")


def test_a_second_build_finds_every_step(bench: Workbench):
    text = "FROM base\nENV B=b\nUSER 7\nCMD x"
    first = bench.build(text)
    assert bench.hits() == [False] * 3
    assert bench.build(text) == first
    assert bench.hits() == [True] * 3
    assert "Running in" not in "\n".join(bench.said)


def test_no_cache_builds_anew(bench: Workbench):
    text = "FROM base\nENV B=b"
    first = bench.build(text)
    assert bench.build(text, no_cache=True) != first
    assert bench.hits() == [False]


def test_after_the_first_miss_all_is_built(bench: Workbench):
    bench.build("FROM base\nENV B=b\nUSER 7")
    bench.build("FROM base\nENV B=c\nUSER 7")
    assert bench.hits() == [False, False]


def test_a_miss_in_one_stage_spares_the_next(bench: Workbench):
    bench.build("FROM base\nENV B=b\nFROM base\nUSER 7")
    bench.build("FROM base\nENV B=c\nFROM base\nUSER 7")
    assert bench.hits() == [False, False, True] or bench.hits()[-1]


def test_the_newest_of_equal_children_is_taken(bench: Workbench):
    text = "FROM base\nENV B=b"
    bench.build(text, epoch=2)
    newest = bench.build(text, epoch=30, no_cache=True)
    bench.build(text, epoch=10, no_cache=True)
    assert bench.build(text) == newest


def test_the_reason_is_searched_among_many_images_while_there_is_time(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
):
    text = "FROM base\nUSER 7"
    old = bench.build(text)
    strange = bench.images.get(old)
    for number in range(1200):
        one = strange.replace(author=str(number), container_config=ContainerConfig())
        bench.images.add(one, bench.images.resolve("base"))
    before = bench.images.resolve("base")
    config = bench.config(before)
    after = bench.keep("base", NO_LAYER, config.replace(stop_signal="9"))
    monkeypatch.setattr("minidocker.moves.LONGEST_SEARCH", 60.0)
    bench.build(text)
    reason = f" ---> Not cached: parent was {before[7:19]}, now {after[7:19]}"
    assert reason in bench.said
    bench.keep("base", NO_LAYER, config.replace(stop_signal="15"))
    monkeypatch.setattr("minidocker.moves.LONGEST_SEARCH", -1.0)
    bench.build(text)
    assert "Not cached" not in "\n".join(bench.said)


def test_another_base_is_another_build(bench: Workbench):
    bench.keep("other", NO_LAYER, ContainerConfig(env=("A=b",)))
    bench.build("FROM base\nUSER 1")
    bench.build("FROM other\nUSER 1")
    assert bench.hits() == [False]


def test_an_epoch_gives_the_same_ids_in_another_store(bench: Workbench, tmp_path: Path):
    text = "FROM base\nENV B=b\nLABEL c=d\nCMD x"
    other = Workbench(tmp_path / "other", Vfs)
    other.keep("base", NO_LAYER, bench.config(bench.images.resolve("base")))
    assert bench.build(text, epoch=86_400) == other.build(text, epoch=86_400)
    assert bench.said == other.said
    created = bench.images.get(bench.images.ids()[0]).created
    assert created in {"1970-01-02T00:00:00Z", "2020-01-01T00:00:00Z"}


def test_the_epoch_comes_from_the_environment(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    id = bench.build("FROM base\nUSER 1")
    assert bench.images.get(id).created == "1970-01-02T00:00:00Z"


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "٣", "9" * 12])
def test_a_bad_epoch_is_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        source_date_epoch()


def test_the_recorded_metadata_steps_give_the_recorded_jsons(bench: Workbench):
    """The recorded build without its COPY; tests/kernel has all of it."""
    golden = Path(__file__).parents[1] / "golden" / "classic-build"
    text = (golden / "Dockerfile").read_text()
    text = "".join(x for x in text.splitlines(True) if not x.startswith("COPY"))
    bench.keep("kb-centos:v11", NO_LAYER, ContainerConfig())
    ours = normal_json(bench.family(bench.build(text)))
    assert len(ours) == 5
    assert '"Cmd":["/bin/sh","-c","#(nop) ","USER 1001"]' in ours[2]
    assert '"Hostname":"host-3"' in ours[3]
    assert ours[4].count('"empty_layer":true') == 4


def test_the_runner_is_not_asked_for_metadata(bench: Workbench):
    bench.runner = Recorder()
    bench.build("FROM base\nENV B=b\nCMD x")
    assert bench.runner.asked == []


def test_a_parsed_dockerfile_keeps_its_own_name_in_errors(bench: Workbench):
    from minidocker.builder import Builder
    from minidocker.context import open_context

    builder = Builder(bench.images, bench.layers, bench.runner)
    with (
        open_context(str(bench.context)) as context,
        pytest.raises(MinidockerError, match=r"^other\.file:2: "),
    ):
        builder.build(parse("FROM base\nEXPOSE x", "other.file"), context)
