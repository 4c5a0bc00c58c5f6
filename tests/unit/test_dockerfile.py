"""The Dockerfile's text: lines, directives, forms, flags, and what is refused where."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.dockerfile import (
    Instruction,
    Word,
    duration,
    parse,
    parse_trigger,
    place,
    trigger_text,
)
from minidocker.errors import BuildError, DockerfileError


def args_of(text: str) -> list[tuple[str, ...]]:
    return [it.args for it in parse(text).instructions]


def refused(text: str | bytes) -> DockerfileError:
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    return caught.value


def test_the_recorded_dockerfile_parses_as_docker_showed_it():
    text = (
        "FROM kb-centos:v11\n"
        'ENV PATH="/a:${PATH}:/b/" \\\n'
        'LD_LIBRARY_PATH="${LD_LIBRARY_PATH}:/c"\n'
        "COPY supervisord.conf /home/work/kb_install/\n"
        'CMD ["/x","-c"]\n'
    )
    found = parse(text).instructions
    assert (
        found[1].text
        == 'ENV PATH="/a:${PATH}:/b/" LD_LIBRARY_PATH="${LD_LIBRARY_PATH}:/c"'
    )
    assert found[1].args == (
        "PATH", '"/a:${PATH}:/b/"', "LD_LIBRARY_PATH", '"${LD_LIBRARY_PATH}:/c"',
    )  # fmt: skip
    assert [it.line for it in found] == [1, 2, 4, 5]
    assert (found[3].json, found[3].args) == (True, ("/x", "-c"))


def test_bom_and_crlf_are_taken_off():
    found = parse(b"\xef\xbb\xbfFROM a\r\nRUN b \\\r\n  c\r\n").instructions
    assert [it.text for it in found] == ["FROM a", "RUN b   c"]


def test_comments_and_empty_lines_inside_a_continuation_are_dropped():
    assert args_of("FROM a\nRUN b \\\n# c \\\n\n   # d\n && e\nRUN f")[1:] == [
        ("b  && e",),
        ("f",),
    ]


def test_a_hash_later_in_the_line_belongs_to_the_line():
    assert args_of("FROM a\nRUN b # c")[1] == ("b # c",)


def test_a_backslash_at_the_end_of_the_file_ends_it():
    assert args_of("FROM a\nRUN b \\") == [("a",), ("b",)]
    assert args_of("FROM a\nRUN b \\\n\n# c\n") == [("a",), ("b",)]


def test_blanks_after_the_escape_still_continue_the_line():
    assert args_of("FROM a\nRUN b \\  \t\nc")[1] == ("b c",)


def test_a_doubled_backslash_does_not_continue():
    assert args_of("FROM a\nRUN b \\\\\nRUN c")[1:] == [("b \\\\",), ("c",)]


def test_escape_directive_changes_the_continuation():
    found = parse("# escape=`\nFROM a\nRUN dir C:\\ `\n D:\\\n")
    assert found.escape == "`"
    assert found.instructions[1].args == ("dir C:\\  D:\\",)


def test_a_directive_after_a_comment_or_an_empty_line_is_a_comment():
    assert parse("# hello\n# escape=`\nFROM a").escape == "\\"
    assert parse("\n# escape=`\nFROM a").escape == "\\"
    assert parse("# syntax=x\n#escape = `\nFROM a").escape == "`"


def test_bad_directives_have_their_line():
    assert str(refused("# escape=x\nFROM a")).startswith('Dockerfile:1: bad escape "x"')
    assert refused("# escape=`\n# escape=`\nFROM a").where == "Dockerfile:2"


def test_words_are_known_in_any_case():
    assert [it.word for it in parse("from a\nRun b").instructions] == [
        Word.FROM,
        Word.RUN,
    ]


def test_the_old_form_of_env_takes_the_rest_of_the_line():
    assert args_of('FROM a\nENV A b "c  d" e')[1] == ("A", 'b "c  d" e')


def test_quoted_blanks_stay_in_a_pair():
    assert args_of('FROM a\nLABEL "a b"="c d" e=f\\ g')[1] == (
        '"a b"',
        '"c d"',
        "e",
        "f\\ g",
    )


def test_what_is_nearly_json_is_the_shell_form():
    found = parse("FROM a\nRUN ['b', 'c']\nCMD [\"d\"] e").instructions
    assert [it.json for it in found[1:]] == [False, False]
    assert found[1].args == ("['b', 'c']",)


def test_an_empty_json_list_is_the_exec_form_of_nothing():
    found = parse("FROM a\nCMD []").instructions[1]
    assert (found.json, found.args) == (True, ())


def test_copy_takes_json_for_names_with_blanks():
    assert args_of('FROM a\nCOPY ["b c", "/d e/"]')[1] == ("b c", "/d e/")


def test_flags_are_taken_before_the_arguments():
    found = parse("FROM a AS b\nFROM c\nCOPY --from=b --chown=1:2 d e").instructions[2]
    assert (found.flag("from"), found.flag("chown"), found.flag("chmod")) == (
        "b",
        "1:2",
        None,
    )
    assert found.args == ("d", "e")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        (
            "FROM a\n\nRNU b",
            "Dockerfile:3",
            'did you mean "RUN"?',
        ),
        ("FROM a\nCOPY --form=b c d", "Dockerfile:2", 'did you mean "--from"?'),
        ("FROM a\nCOPY --from b c", "Dockerfile:2", "--from needs a value"),
        ("FROM a\nCOPY b", "Dockerfile:2", "COPY needs at least two arguments"),
        ("FROM a\nUSER", "Dockerfile:2", "USER needs an argument"),
        ("FROM", "Dockerfile:1", "FROM needs an argument"),
        ("FROM a b", "Dockerfile:1", "FROM takes an image"),
        ("FROM a b c", "Dockerfile:1", "FROM takes an image"),
        ("FROM a\nENV A", "Dockerfile:2", 'no value for "A"'),
        ("FROM a\nENV A=b C", "Dockerfile:2", '"C" is not of the form NAME=VALUE'),
        ("FROM a\nENV =b", "Dockerfile:2", '"=b" is not of the form NAME=VALUE'),
        ("RUN a", "Dockerfile:1", "RUN before the first FROM"),
        ("ARG a", "Dockerfile", "the file has no FROM"),
        ("", "Dockerfile", "the file has no FROM"),
        ("FROM a\nRUN b\0", "Dockerfile:2", "a NUL byte"),
        ("FROM a\nRUN " + "b" * 70_000, "Dockerfile:2", "longer than 64 KiB"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(text: str, where: str, what: str):
    why = refused(text)
    assert why.where == where
    assert what in str(why)


def test_all_errors_of_a_file_are_told_at_once_and_in_order():
    why = refused("FROM a\nRNU b\nUSER\nRUN <<EOF\nCOPPY d")
    assert [each.where for each in (why, *why.more)] == [
        f"Dockerfile:{n}" for n in (2, 3, 4)
    ]
    assert str(why).splitlines()[-1].startswith("hint: close it with a line")


def test_past_ten_errors_only_their_number_is_told():
    why = refused("FROM a\n" + "X\n" * 25)
    assert len(why.more) == 10
    assert str(why).splitlines()[-1] == "and 15 more"


def test_ten_errors_are_told_whole():
    why = refused("FROM a\n" + "X\n" * 10)
    assert len(why.more) == 9
    assert "more" not in str(why)


def test_a_message_has_nothing_that_a_terminal_obeys():
    for text in ["RUN <<\x1b[2J", "ENV \x1b[2J", "USER \x1b[2J'", "\x1b[2J x"]:
        assert "\x1b" not in str(refused(f"FROM a\n{text}\nX"))
    why = BuildError('no file "\x1b[2J"')
    place(why, parse("FROM a\nCOPY \x1b[2J /").instructions[1])
    assert "\x1b" not in str(why)


def test_a_line_of_64_kib_less_one_is_read():
    longest = "RUN " + "x" * (65_535 - 4)
    assert parse(f"FROM a\n{longest}\r\n").instructions[1].text == longest
    assert refused(f"FROM a\n{longest}x").where == "Dockerfile:2"


def test_the_order_is_not_blamed_after_a_line_that_could_not_be_read():
    why = refused("FORM a\nRUN b")
    assert (why.where, why.more) == ("Dockerfile:1", ())


@pytest.mark.parametrize(
    ("what", "where", "mark"),
    [
        ('no such file "b c"', "Dockerfile:2", None),
        ('no such file "b"', "Dockerfile:3", "   3 |   b /to\n     |   ^"),
        ('stage "x" does not exist', "Dockerfile:2", None),
        ("stat b: file does not exist", "Dockerfile:3", "   3 |   b /to\n     |   ^"),
        (
            'no "--from" here',
            "Dockerfile:2",
            "   2 | COPY --from=d \\\n     |      ^~~~~~",
        ),
    ],
)
def test_an_error_of_a_step_is_placed_at_the_word_that_it_quotes(
    what: str, where: str, mark: str | None
):
    it = parse("FROM a\nCOPY --from=d \\\n  b /to").instructions[1]
    for kind in (BuildError, DockerfileError):
        why = kind(what)
        place(why, it)
        assert (why.where, why.excerpt or None) == (where, mark)


def test_an_excerpt_has_tabs_wide_characters_and_no_control_characters():
    why = refused("FROM a\nENV\t日本=x \x1b[2J\n")
    assert why.excerpt == "   2 | ENV\t日本=x \ufffd[2J\n     |    \t       ^~~~"
    assert "\x1b" not in str(why)
    why = refused("FROM a\nENV e\u0301e\u0301=x bad\n")
    assert why.excerpt.splitlines()[1] == "     |          ^~~"


def test_flags_of_every_kind():
    text = (
        "FROM a\nRUN --mount=type=a --network=none --mount=type=b c\n"
        "COPY --link --parents=FALSE --exclude=a --exclude=b c d\n"
    )
    run, copy = parse(text).instructions[1:]
    assert run.flag_all("mount") == ("type=a", "type=b")
    assert (run.flag("mount"), run.flag("network")) == ("type=b", "none")
    assert (copy.is_on("link"), copy.is_on("parents"), copy.is_on("x")) == (
        True, False, False,
    )  # fmt: skip
    assert copy.flag_all("exclude") == ("a", "b")


def test_a_trigger_survives_being_stored():
    text = "FROM a\nONBUILD COPY --chown=1 <<-'a b' <<c /d/\n\t$x\n\ta b\ny\nc\n"
    it = parse(text).instructions[1]
    again = parse_trigger(trigger_text(it), "an image")
    assert it.trigger is not None
    assert (again.args, again.flags, again.heredocs) == (
        it.trigger.args, it.trigger.flags, it.trigger.heredocs,
    )  # fmt: skip
    assert again.where == "an image"
    for bad in ["FROM a", "ONBUILD RUN a", "", "RUN a\nRUN b", "RNU"]:
        with pytest.raises(DockerfileError):
            parse_trigger(bad, "an image")


@pytest.mark.parametrize(
    ("text", "want"),
    [("1h2m3s", 3723 * 10**9), ("1.5s", 15 * 10**8), (".5m", 30 * 10**9), ("2us", 2000),
     ("3µs", 3000), ("0", 0), ("0s", 0), ("1ms1ns", 1_000_001)],
)  # fmt: skip
def test_durations_are_gos(text: str, want: int):
    assert duration(text) == want


@pytest.mark.parametrize("text", ["", "5", "s", ".s", "1 s", "1s ", "-1s", "1d", "1s2"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(DockerfileError):
        duration(text)


def test_bytes_that_are_not_utf8_are_refused_with_their_line():
    assert refused(b"FROM a\nRUN \xff").where == "Dockerfile:2"


def test_here_strings_and_shifts_are_no_here_documents():
    for text in ["cat <<<word", "echo $((1 << N))", "echo $(( 1<<N ))"]:
        assert args_of(f"FROM a\nRUN {text}")[1] == (text,)


def test_the_name_of_the_file_stands_in_the_message():
    with pytest.raises(DockerfileError, match=r"^build/Other:2: "):
        parse("FROM a\nX", "build/Other")


@given(
    st.lists(
        st.sampled_from(["a", "b  c", "$d", "'e'", "#f", "\\g"]), min_size=1, max_size=6
    )
)
def test_cutting_a_run_into_lines_keeps_its_text(pieces: list[str]):
    whole = " ".join(pieces)
    cut = (
        " \\\n# between\n".join(pieces)
        if all(not p.startswith("#") for p in pieces)
        else whole
    )
    assert args_of(f"FROM a\nRUN {cut}") == args_of(f"FROM a\nRUN {whole}")


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused(text: str):
    try:
        where = parse(text).name
    except DockerfileError as why:
        where = why.where or ""
    assert where.startswith("Dockerfile")


GOLDEN = Path(__file__).parents[1] / "golden" / "dockerfiles"


def described(it: Instruction) -> str:
    """One line for an instruction, and one for each of its here-documents."""
    text = f"{it.line} {it.word.value} {'json ' if it.json else ''}{list(it.args)!r}"
    text += "".join(f" --{n}={v}" for n, v in it.flags) + "\n"
    if it.trigger:
        return text + "  " + described(it.trigger)
    for doc in it.heredocs:
        dash, quote = "-" * doc.strip_tabs, "'" * (not doc.expands)
        number = doc.descriptor or ""
        text += f"  {number}<<{dash}{quote}{doc.name}{quote} {doc.content!r}\n"
    return text


def outcome(path: Path) -> tuple[str, str]:
    """What becomes of a file: how its record is called, and what is in it."""
    try:
        found = parse(path.read_bytes())
    except DockerfileError as why:
        return ".refused", f"{why}\n"
    return ".parsed", "".join(map(described, found.instructions))


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("*.Dockerfile")), ids=lambda p: p.stem
)
def test_a_golden_dockerfile_gives_what_is_recorded_beside_it(path: Path):
    suffix, text = outcome(path)
    assert path.with_suffix(suffix).read_text() == text


def test_there_are_golden_dockerfiles_of_both_kinds():
    assert len(list(GOLDEN.glob("*.parsed"))) >= 12
    assert len(list(GOLDEN.glob("*.refused"))) >= 6


# What a value of any kind may hold without being cut at a blank or a quote.
plain = st.text("abc/.:=-_é", min_size=1, max_size=8)
quotable = st.text("ab \t#'$é", max_size=8)


def printed(word: Word, args: tuple[str, ...]) -> str:
    """A line that must be parsed to ``args``."""
    if word in {Word.ENV, Word.LABEL}:
        flat = zip(args[::2], args[1::2], strict=True)
        return " ".join([word.value, *(f"{n}={v}" for n, v in flat)])
    return f"{word.value} {json.dumps(args)}"


pair = st.tuples(
    st.text("abcXYZ_", min_size=1, max_size=5),
    st.one_of(plain, quotable.map(lambda text: f'"{text}"'), st.just("")),
)
pair_lists = st.lists(pair, min_size=1, max_size=3).map(lambda found: sum(found, ()))
lines = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([Word.ENV, Word.LABEL]), pair_lists),
        st.tuples(
            st.sampled_from([Word.RUN, Word.CMD, Word.ENTRYPOINT, Word.SHELL]),
            st.lists(quotable, min_size=1, max_size=3).map(tuple),
        ),
    ),
    max_size=5,
)


@given(lines, st.sampled_from(["\n", "\r\n", "\n# c\n\n", "\n \t\n"]), st.booleans())
def test_what_is_printed_is_parsed_to_the_same(
    wanted: list[tuple[Word, tuple[str, ...]]], end: str, bom: bool
):
    text = end.join(["FROM a", *(printed(*line) for line in wanted), ""])
    found = parse(("\ufeff" if bom else "") + text).instructions
    assert [(it.word, it.args) for it in found[1:]] == wanted


LONG = 60_000


@pytest.mark.parametrize(
    "line",
    [
        "RUN a" + " " * LONG + "b",
        "ONBUILD " * 8000 + "RUN a",
        f"HEALTHCHECK --interval={'1' * LONG} CMD a",
        f"HEALTHCHECK --interval={'1' * 5000}s CMD a",
        "RUN <<A " + "$((" * 20_000,
        "RUN <<A " + "'a" * 30_000,
        "RUN " + "1" * 5000 + "<<A",
        "RUN " + "[" * LONG,
        "RUN --mount=" + "a\\" * 30_000,
        "ENV a=" + '"' * (LONG + 1),
        "ENV a=" + "\\ " * 30_000,
    ],
    ids=lambda line: line[:24],
)
@pytest.mark.timeout(5)
def test_a_long_line_is_read_in_no_time(line: str):
    where = "Dockerfile:3"
    try:
        parse(f"# a = b{' ' * LONG}c\nFROM a\n{line}\n")
    except DockerfileError as why:
        where = str(why.where)
    assert where == "Dockerfile:3"


SCRAPS = [
    *("FROM a", "RUN", "ENV A=", "COPY", "CMD", "--from=", "--", "<<EOF", "# escape=`"),
    *(
        "[",
        "]",
        '"',
        "'",
        "`",
        "\\",
        "\n",
        "\r\n",
        " ",
        "#",
        "\0",
        "\ud800",
        "é",
        "$",
        "=",
    ),
]


@given(st.lists(st.sampled_from(SCRAPS), max_size=30).map("".join))
def test_scraps_of_dockerfiles_are_parsed_or_refused(text: str):
    try:
        where = parse(text).name
    except DockerfileError as why:
        where = why.where or ""
    assert where.startswith("Dockerfile")
