"""What is wrong with a build is told before its first step, all of it at once."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from workbench import Workbench

from minidocker.drivers import Vfs
from minidocker.errors import MinidockerError, NotFoundError
from minidocker.manifests import Platform
from minidocker.oci import ContainerConfig, sha256_text
from minidocker.stage import Secret


NO_LAYER = (sha256_text(b"a layer that no step of these tests reads"),)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    bench = Workbench(tmp_path, Vfs)
    bench.keep("base", NO_LAYER, ContainerConfig(env=("HERE=a",), cmd=("sh",)))
    (bench.context / "a").write_text("a")
    (bench.context / "dir").mkdir()
    (bench.context / "dir" / "b.txt").write_text("b")
    return bench


def faults(bench: Workbench, text: str, **options: object) -> list[str]:
    """The first lines of the errors that a build ends with."""
    with pytest.raises(MinidockerError) as caught:
        bench.build(text, **options)
    first = caught.value
    lines = [f"{first.where}: {first.what}"]
    return lines + [f"{one.where}: {one.what}" for one in first.more]


def test_independent_errors_are_told_together_and_no_step_is_taken(bench: Workbench):
    text = (
        "FROM base AS build\nCOPY gone /\nEXPOSE 99999\nUSER 1\n"
        "FROM biuld\nFROM base\nCOPY --from=build /a /b\nCOPY --from=biuld /a /b\n"
        "RUN --mount=type=bnid,target=/x true\nCOPY --chmod=rwx a /\n"
        "RUN --mount=source=nothing,target=/x true\nADD --checksum=x http://y/z /\n"
        "STOPSIGNAL NO\nRUN --mount=type=secret,id=key,required true\n"
    )
    found = faults(bench, text, target=None)
    assert [line.partition(": ")[0] for line in found] == [
        f"Dockerfile:{line}" for line in (2, 3, 8, 9, 10, 11, 12, 13, 14)
    ]
    assert bench.said == []


def test_each_has_its_excerpt_and_its_hint(bench: Workbench):
    with pytest.raises(MinidockerError) as caught:
        bench.build(
            "FROM base AS build\nUSER 1\nFROM base\nCOPY --from=biuld /a /b\n"
            "RUN --mount=source=dri,target=/x true\n"
        )
    assert str(caught.value) == (
        'Dockerfile:4: no such image: "biuld"\n'
        "   4 | COPY --from=biuld /a /b\n"
        "     |             ^~~~~\n"
        'hint: did you mean "build"?\n'
        'Dockerfile:5: --mount of "dri" failed: file not found in build context or '
        "excluded by .dockerignore: stat dri: file does not exist\n"
        "   5 | RUN --mount=source=dri,target=/x true\n"
        "     |                    ^~~\n"
        'hint: did you mean "dir"?'
    )


def test_a_stage_that_nobody_needs_is_not_judged(bench: Workbench):
    bench.build("FROM base AS odd\nCOPY gone /\nFROM base\nUSER 1\n")


def test_steps_after_until_are_not_judged(bench: Workbench):
    text = "ARG X=base\nFROM $X\nUSER 1\nCOPY gone /\nEXPOSE x"
    bench.build(text, until=3)
    assert len(faults(bench, text, until=4)) == 1


def test_variables_have_the_values_that_they_will_have(bench: Workbench):
    text = (
        "ARG WHICH=go\nFROM base\nARG WHICH\nENV NAME=${WHICH}ne DIR=dir\nWORKDIR $DIR\n"
        "COPY $NAME /\nCOPY ${HERE} /\nCOPY $DIR/b.txt /\n"
    )
    [fault] = faults(bench, text)
    assert fault.startswith("Dockerfile:6: COPY failed")
    assert "stat gone:" in fault


def test_one_mistake_is_told_once(bench: Workbench):
    text = "FROM base\nENV ''=dir D=dir\nCOPY $D/b.txt /\nVOLUME $D\n"
    assert len(faults(bench, text)) == 1


def test_nothing_is_said_of_variables_of_an_image_that_is_not_here(bench: Workbench):
    fetched = []

    def pull(name: str, platform: Platform | None) -> str:
        fetched.append(name)
        return bench.keep("far", NO_LAYER, ContainerConfig(env=("SRC=a", "P=80")))

    with pytest.raises(MinidockerError, match='invalid port "no"') as caught:
        bench.build("FROM far\nEXPOSE $P\nVOLUME $SRC\nEXPOSE no\n", pull=pull)
    assert caught.value.more == ()
    assert fetched == []
    bench.build("FROM far\nEXPOSE $P\nVOLUME $SRC\n", pull=pull)
    assert fetched == ["far"]


def test_images_that_cannot_be_fetched_are_told_before_the_first_step(
    bench: Workbench,
):
    def pull(name: str, platform: Platform | None) -> str:
        raise NotFoundError(f'no such image: "{name}"')

    text = (
        "FROM base AS one\nUSER 1\nFROM nosuch:1 AS two\nFROM base\nCOPY --from=one a /\n"
        "COPY --from=two a /\nCOPY --from=away/x a /\nRUN --mount=from=far,target=/f x\n"
    )
    assert faults(bench, text, pull=pull) == [
        'Dockerfile:3: no such image: "nosuch:1"',
        'Dockerfile:7: no such image: "away/x"',
        'Dockerfile:8: no such image: "far"',
    ]
    assert bench.said == []
    assert faults(bench, text, until=2, target="two") == [
        'Dockerfile:3: no such image: "nosuch:1"',
    ]


def test_a_file_that_cannot_be_read_is_told_in_one_line(bench: Workbench):
    above = os.open(bench.context, os.O_PATH)
    for _ in range(50):
        os.mkdir("d" * 99, dir_fd=above)
        below = os.open("d" * 99, os.O_PATH, dir_fd=above)
        os.close(above)
        above = below
    os.close(above)
    [fault] = faults(bench, "FROM scratch\nCOPY . /x\n")
    subprocess.run(["rm", "-rf", str(bench.context / ("d" * 99))], check=True)
    assert re.fullmatch(
        r'Dockerfile:2: COPY failed: "d{80}\.\.\..{80}": file name too long', fault
    )


@pytest.mark.parametrize(
    "line",
    [
        "COPY *.txt /", "COPY ../a /", "COPY a dir /to", "COPY --from=7 /a /b", "COPY --chown=4294967295 a /",
        "ADD git://x/y /z", "ADD http://x/ /z/", "RUN --security=insecure true", "RUN --device=/dev/null true",
        "COPY hidden /", "COPY --exclude=[ a /", "COPY no* nor* /", "COPY http://x/y /",
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(bench: Workbench, line: str):
    (bench.context / ".dockerignore").write_text("hidden\n")
    (bench.context / "hidden").write_text("h")
    [fault] = faults(bench, f"FROM base\n{line}\n")
    assert fault.startswith("Dockerfile:2: ")
    assert bench.said == []


@pytest.mark.root
def test_what_is_right_is_let_through(bench: Workbench):
    text = (
        "FROM scratch AS files\nCOPY *a /x/\nCOPY dir/*.txt /\nCOPY a dir /to/\n"
        "COPY --exclude=*.txt dir /y\nCOPY --parents dir/**/*.txt /z/\nRUN true\n"
        "FROM base\nCOPY --from=files /to /to\nCOPY --from=0 /to /too\n"
        "RUN --mount=type=secret,id=key true\nRUN --mount=from=files,target=/f true\n"
    )
    bench.build(
        text.replace("FROM base", "FROM files"),
        secrets={"key": Secret(str(bench.context / "a"))},
    )


def test_a_build_looks_at_no_more_of_the_context_than_it_must(bench: Workbench):
    from minidocker.context import SourceTree, open_context
    from minidocker.foresight import check_source

    class Counting(SourceTree):
        looked = 0

        def inside(self, path):  # type: ignore[no-untyped-def]
            self.looked += 1
            return super().inside(path)

    for number in range(50):
        (bench.context / f"d{number}").mkdir()
    with open_context(str(bench.context)), Counting(str(bench.context)) as tree:
        check_source(tree, "a*")
        check_source(tree, "dir")
        assert tree.looked == 1
