"""`build --check`, and what `# check=` does to a build."""

from pathlib import Path

import pytest

from cli.store import Store


@pytest.fixture
def context(tmp_path: Path) -> Path:
    where = tmp_path / "context"
    where.mkdir()
    (where / ".dockerignore").write_text("secret\n")
    return where


def images(store: Store) -> str:
    return store.says("images", "-aq")


def test_a_check_tells_and_builds_nothing(store: Store, context: Path) -> None:
    text = "# check=experimental=all\nFROM small:v1 AS A\nCOPY ./secret $PTAH\nCMD a\n"
    (context / "Dockerfile").write_text(text)
    before = images(store)
    done = store("build", "--check", str(context))
    assert done.returncode == 1
    assert done.stdout == (
        "Dockerfile:2: StageNameCasing: Stage name 'A' should be lowercase\n"
        "   2 | FROM small:v1 AS A\n"
        "     |                  ^\n"
        "Dockerfile:3: UndefinedVar: Usage of undefined variable '$PTAH' (did you mean"
        " $PATH?)\n"
        "   3 | COPY ./secret $PTAH\n"
        "     |               ^~~~~\n"
        'Dockerfile:3: CopyIgnoredFile: Attempting to Copy file "secret" that is excluded'
        " by .dockerignore\n"
        "   3 | COPY ./secret $PTAH\n"
        "     |      ^~~~~~~~\n"
        "Dockerfile:4: JSONArgsRecommended: JSON arguments recommended for CMD to prevent"
        " unintended behavior related to OS signals\n"
        "   4 | CMD a\n"
        "     | ^~~\n"
        "Check complete, 4 warnings have been found!\n"
    )
    assert images(store) == before


def test_a_good_file_has_no_warnings(store: Store, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM small:v1\nUSER www\n")
    said = store.says("build", "--check", str(context))
    assert said == "Check complete, no warnings have been found.\n"


def test_errors_of_the_syntax_are_told_all(store: Store, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM small:v1\nUSR www\nEXPOSE\n")
    done = store("build", "--check", str(context))
    assert done.returncode == 1
    assert done.stderr == (
        'minidocker: Dockerfile:2: unknown instruction "USR"\n'
        "   2 | USR www\n"
        "     | ^~~\n"
        'hint: did you mean "USER"?\n'
        "Dockerfile:3: EXPOSE needs an argument\n"
        "   3 | EXPOSE\n"
        "     | ^~~~~~\n"
    )


@pytest.mark.parametrize("flags", [["--check"], []])
def test_a_file_may_want_warnings_to_be_errors(
    store: Store, context: Path, flags: list[str]
) -> None:
    text = "# check=error=true\nFROM small:v1 as a\nMAINTAINER b\n"
    (context / "Dockerfile").write_text(text)
    before = images(store)
    done = store("build", *flags, str(context))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2] == (
        "minidocker: Dockerfile: lint violation found for rules: FromAsCasing,"
        " MaintainerDeprecated"
    )
    assert "   2 | FROM small:v1 as a\n" in done.stdout
    assert images(store) == before
    argument = "BUILDKIT_DOCKERFILE_CHECK=skip=all"
    done = store("build", *flags, "--build-arg", argument, str(context))
    assert done.returncode == 0
    assert "not consumed" not in done.stdout + done.stderr


def test_a_word_that_cannot_be_expanded_stops_a_build_before_its_first_step(
    store: Store, context: Path
) -> None:
    (context / "Dockerfile").write_text("FROM small:v1\nRUN true\nENV A='b C=d\n")
    for flags in ([], ["--check"]):
        done = store("build", *flags, str(context))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "minidocker: Dockerfile:3: no closing ' in \"'b C=d\"\n"
            "   3 | ENV A='b C=d\n"
            "     |       ^~~~~~\n"
        )
