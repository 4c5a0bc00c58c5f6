"""The build checks: BuildKit's own examples, rephrased, and where each is silent."""

from pathlib import Path

import pytest

from minidocker.checks import (
    CheckOptions,
    Rule,
    check,
    options_of,
    read_options,
    summary,
)
from minidocker.dockerfile import parse
from minidocker.errors import DockerfileError


def told(text: str, **asked: object) -> list[str]:
    """`line rule`, for each warning."""
    return [f"{it.line} {it.rule.name}" for it in check(parse(text), **asked)]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("FROM a AS Bad", "1: Stage name 'Bad' should be lowercase"),
        ("FROM a as b", "1: 'as' and 'FROM' keywords' casing do not match"),
        ("from a AS b", "1: 'AS' and 'from' keywords' casing do not match"),
        ("FROM a As b", "1: 'As' and 'FROM' keywords' casing do not match"),
        ("FROM a\nCOPY b \\\n\n/c", "3: Empty continuation line"),
        (
            "FROM a\ncopy b c\nCOPY d e",
            "2: Command 'copy' should match the case of the command majority (uppercase)",
        ),
        (
            "from a\ncopy b c\nCOPY d e",
            "3: Command 'COPY' should match the case of the command majority (lowercase)",
        ),
        (
            "From a as b\nFROM a",
            "1: Command 'From' should match the case of the command majority (uppercase)",
        ),
        (
            "FROM a AS b\nFROM a AS b",
            '2: Duplicate stage name "b", stage names should be unique',
        ),
        (
            "FROM a AS scratch",
            '1: Stage name should not use the same name as reserved stage "scratch"',
        ),
        (
            "FROM a AS context",
            '1: Stage name should not use the same name as reserved stage "context"',
        ),
        (
            "FROM a\nCMD b",
            "2: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
        ),
        (
            "FROM a\nENTRYPOINT b",
            "2: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals",
        ),
        (
            "FROM a\nMAINTAINER b",
            "2: Maintainer instruction is deprecated in favor of using label",
        ),
        (
            "FROM --platform=$BULIDPLATFORM a",
            "1: FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)",
        ),
        (
            "ARG tag=latest\nFROM a:${tag}${version} AS b",
            "2: FROM argument 'version' is not declared",
        ),
        (
            "FROM scratch\nWORKDIR app/",
            '2: Relative workdir "app/" can have unexpected results if the base image changes',
        ),
        ("FROM scratch\nCOPY $foo .", "2: Usage of undefined variable '$foo'"),
        (
            "FROM scratch\nENV PATH=$PTAH:/b",
            "2: Usage of undefined variable '$PTAH' (did you mean $PATH?)",
        ),
        (
            "FROM a\nARG DIR_ASSETS=a\nCOPY $DIR_ASSET .",
            "3: Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)",
        ),
        (
            'FROM a\nCMD ["b"]\nUSER c\nCMD ["d"]',
            "2: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
        ),
        (
            "FROM a\nHEALTHCHECK NONE\nHEALTHCHECK CMD b",
            "2: Multiple HEALTHCHECK instructions should not be used in the same stage because only the last one will be used",
        ),
        (
            "FROM a\nENV b c",
            '2: "ENV key=value" should be used instead of legacy "ENV key value" format',
        ),
        (
            "FROM a\nLABEL b = c",
            '2: "LABEL key=value" should be used instead of legacy "LABEL key value" format',
        ),
        (
            "FROM --platform=${TARGETPLATFORM} a",
            "1: Setting platform to predefined ${TARGETPLATFORM} in FROM is redundant as this is the default behavior",
        ),
        (
            "FROM --platform=linux/amd64 a",
            '1: FROM --platform flag should not use constant value "linux/amd64"',
        ),
        (
            "FROM a\nARG super_duper_secret_token=b",
            '2: Do not use ARG or ENV instructions for sensitive data (ARG "super_duper_secret_token")',
        ),
        (
            "ARG VERSION\nFROM a:$VERSION",
            "2: Default value for ARG a:$VERSION results in empty or invalid base image name",
        ),
        (
            "ARG IMAGE\nFROM $IMAGE",
            "2: Default value for ARG $IMAGE results in empty or invalid base image name",
        ),
        (
            "FROM a\nEXPOSE 127.0.0.1:80:80",
            "2: EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'",
        ),
        (
            "FROM a\nEXPOSE 80/TcP",
            "2: Defined protocol '80/TcP' in EXPOSE instruction should be lowercase",
        ),
    ],
)
def test_a_trap_is_told_in_the_words_of_buildkit(text: str, want: str):
    assert [f"{it.line}: {it.what}" for it in check(parse(text))] == [want]


@pytest.mark.parametrize(
    "text",
    [
        "FROM a AS b\nCOPY c d",
        "from a as b\ncopy c d",
        "FROM scratch\nFROM scratch AS a\nFROM a AS c",
        "FROM a\nRUN b \\\n# c\n  d",
        "FROM a\nRUN <<E\n\n\nE",
        'FROM a\nCMD ["b"]\nENTRYPOINT ["c"]',
        'FROM a\nSHELL ["/bin/custom"]\nCMD b',
        'FROM a AS b\nSHELL ["/bin/custom"]\nFROM b\nENTRYPOINT c',
        "ARG base=scratch\nFROM $base",
        "ARG DEBUG\nFROM scratch${DEBUG}",
        "ARG DEBUG\nFROM scra${DEBUG:-tch}",
        'ARG DEBUG=""\nFROM scratch${DEBUG-@bogus}',
        "FROM --platform=$BUILDPLATFORM a",
        "ARG BUILDPLATFORM=linux/amd64\nFROM --platform=$BUILDPLATFORM a",
        "FROM scratch AS a\nWORKDIR /b\nFROM a\nWORKDIR c",
        "FROM scratch\nENV D=/x\nWORKDIR $D\nWORKDIR y",
        "FROM scratch\nARG foo\nCOPY b${foo} .",
        "FROM scratch AS a\nARG foo=b\nFROM a\nCOPY $foo .",
        "FROM scratch\nRUN echo $foo\nCMD [\"$bar\"]",
        "FROM scratch\nENV A=${B:-c}${D:+e}",
        "FROM python\nARG V=$PYTHON_VERSION",
        "FROM scratch\nCOPY <<'E' /a\n$b\nE",
        "FROM scratch\nENV A='$b' C=\\$d",
        'FROM a AS b\nCMD ["c"]\nFROM b\nCMD ["d"]',
        "FROM a\nENV b=c d=e\nLABEL 'f g'=h",
        "FROM --platform=linux/amd64 a AS build_amd64",
        "FROM --platform=linux/amd64 a AS linux",
        "FROM a\nENV PUBLIC_KEY=b SECRET_FILE=c monkey=d\nARG public_token TOKEN_VERSION",
        'ARG VERSION="latest"\nFROM a:${VERSION}',
        'ARG V=""\nFROM a:stable${V}',
        "FROM a\nEXPOSE 80 443/tcp 8000-8010/udp $PORTS",
    ],
)  # fmt: skip
def test_what_is_well_written_is_not_told(text: str):
    assert told(text) == []


def test_secrets_are_told_each():
    text = "FROM a\nENV password=b secret=c sun=d\nARG auth=e apikey git_key=\nENV A_Token=f"
    assert told(text) == [f"{n} SecretsUsedInArgOrEnv" for n in (2, 2, 3, 3, 3, 4)]


def test_a_here_document_is_searched_for_variables():
    assert told("FROM scratch\nCOPY <<E /a\n'$b' ${c}\nE") == ["2 UndefinedVar"] * 2


def test_the_environment_of_the_base_image_is_asked_for():
    asked: list[str] = []

    def environment(image: str) -> dict[str, str]:
        asked.append(image)
        return {"PYTHON_VERSION": "3"}

    text = "ARG T=3\nFROM python:$T AS a\nENV A=$PYTHON_VERSION B=$C\nFROM a\nENV D=$E"
    assert told(text, environment=environment) == ["3 UndefinedVar", "5 UndefinedVar"]
    assert asked == ["python:3"]


def test_ignored_files_are_told_when_that_is_asked_for():
    text = "FROM scratch AS a\nARG D=x\nCOPY $D/b /\nADD ./x/c d http://127.0.0.1/x /\nCOPY --from=a x/ /\n"
    ignored = {"x/b", "x/c", "x"}.__contains__
    assert told(text, ignored=ignored) == []
    text = "# check=experimental=CopyIgnoredFile\n" + text
    assert told(text, ignored=ignored) == ["4 CopyIgnoredFile", "5 CopyIgnoredFile"]
    what = check(parse(text), ignored=ignored)[0].what
    assert what == 'Attempting to Copy file "x/b" that is excluded by .dockerignore'


@pytest.mark.parametrize(
    ("option", "want"),
    [
        ("skip=all", []),
        ("skip=all;error=true", []),
        ("skip=ConsistentInstructionCasing,FromAsCasing", []),
        (" skip = ConsistentInstructionCasing ; error = true ", ["2 FromAsCasing"]),
        ("error=false", ["2 FromAsCasing", "3 ConsistentInstructionCasing"]),
    ],
)
def test_the_directive_switches_rules_off(option: str, want: list[str]):
    text = f"# check={option}\nFROM scratch as base\ncopy Dockerfile .\n"
    assert told(text) == want
    assert options_of(parse(text)).error is ("true" in option)


def test_options_given_win_over_the_directive():
    text = "# check=skip=all\nFROM a AS B"
    given = CheckOptions(skip=("FromAsCasing",))
    assert told(text, options=given) == ["2 StageNameCasing"]


def test_a_bad_option_is_refused_with_its_line():
    with pytest.raises(DockerfileError) as caught:
        check(parse("# syntax=x\n# check=skpi=all\nFROM a"))
    assert str(caught.value).splitlines()[:2] == [
        'Dockerfile:2: bad check option "skpi=all"',
        "   2 | # check=skpi=all",
    ]
    for bad in ["error=perhaps", "skip", "skip="]:
        with pytest.raises(DockerfileError):
            read_options(bad)


def test_a_warning_shows_the_word():
    [warning] = check(parse("FROM a\nENV A=b \\\n    TOKEN=c\n", "x/Dockerfile"))
    assert str(warning).splitlines() == [
        "x/Dockerfile:3: SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for"
        ' sensitive data (ENV "TOKEN")',
        "   3 |     TOKEN=c",
        "     |     ^~~~~",
    ]


def test_the_last_line_counts():
    one = check(parse("FROM a AS B"))
    assert summary(()) == "Check complete, no warnings have been found."
    assert summary(one) == "Check complete, 1 warning has been found!"
    assert summary(one * 2) == "Check complete, 2 warnings have been found!"


GOLDEN = Path(__file__).parents[1] / "golden" / "checks"


def test_a_golden_file_gives_the_warnings_that_are_recorded_beside_it():
    text = (GOLDEN / "unwise.Dockerfile").read_text()
    warnings = check(
        parse(text),
        environment=lambda image: {"NODE": "1"} if image == "node:" else None,
        ignored=lambda path: path == "left",
    )
    shown = "".join(f"{warning}\n" for warning in warnings)
    assert shown == (GOLDEN / "unwise.warnings").read_text()


def test_every_rule_is_tested_here():
    source = Path(__file__).read_text(encoding="utf-8")
    parts = {rule: rule.value.split("{")[0][:14] for rule in Rule}
    assert [rule.name for rule, part in parts.items() if part not in source] == []
