"""Variables and quotes, as the table of the chapter says."""

import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.dockerfile import parse
from minidocker.errors import DockerfileError
from minidocker.expansion import (
    check_words,
    expand,
    expand_document,
    expand_words,
    unset_in,
)


SEEN = {
    "A": "a", "E": "", "P": "80 443", "Q": "'q'", "F": "a.tar.gz", "S": "*/x}*",
    "D": "C:\\x", "é": "e",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("$A", "a"),
        ("${A}b", "ab"),
        ("$Ab", ""),
        ("$A.b", "a.b"),
        ("$1$A", "a"),
        ("$GONE", ""),
        ("${GONE:-w}", "w"),
        ("${E:-w}", "w"),
        ("${E-w}", ""),
        ("${A:-w}", "a"),
        ("${A:+w}", "w"),
        ("${E:+w}", ""),
        ("${E+w}", "w"),
        ("${GONE+w}", ""),
        ("${A:?w}", "a"),
        ("${GONE:-${A}b}", "ab"),
        ("${GONE:-'}'}", "}"),
        ("${GONE:-}", ""),
        ("'$A'", "$A"),
        ('"$A"', "a"),
        ('"\\$A"', "$A"),
        ('"\\n"', "\\n"),
        ('"\\\\"', "\\"),
        ("\\$A", "$A"),
        ("\\'", "'"),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("5$", "5$"),
        ("a$/b", "a$/b"),
        ("$Q", "'q'"),
        ("\\", ""),
        ("é${A}", "éa"),
        ("$é", "e"),
        ("${F#*.}", "tar.gz"),
        ("${F##*.}", "gz"),
        ("${F%.*}", "a.tar"),
        ("${F%%.*}", "a"),
        ("${F#a}", ".tar.gz"),
        ("${F#b}", "a.tar.gz"),
        ("${F%zip}", "a.tar.gz"),
        ("${F#?.}", "tar.gz"),
        ("${F##}${F%%}", "a.tar.gza.tar.gz"),
        ("${F#*}", "a.tar.gz"),
        ("${F##*}", ""),
        ("${F%%*}", ""),
        ("${F#[a]}", "a.tar.gz"),
        ("${F#$A}", ".tar.gz"),
        ("${F#${GONE:-a.}}", "tar.gz"),
        ("${S#\\*}", "/x}*"),
        ("${S%\\*}", "*/x}"),
        ("${S%\\}\\*}", "*/x"),
        ("${S#*\\/}", "x}*"),
        ("${F/./-}", "a-tar.gz"),
        ("${F//./-}", "a-tar-gz"),
        ("${F/.*/-}", "a-"),
        ("${F//?/x}", "xxxxxxxx"),
        ("${F//./}", "atargz"),
        ("${F/$A/$P}", "80 443.tar.gz"),
        ("${S//\\//\\/}", "*\\/x}*"),
        ("${F/nothing/x}", "a.tar.gz"),
        ("${F/$E/x}", "xa.tar.gz"),
        ("${F///}", "a.tar.gz"),
        ("${GONE/a/b}${GONE#a}${GONE%a}", ""),
        ("${D//\\\\/-}", "C:-x"),
        ('"${F%.*}"', "a.tar"),
        ("${F%'.gz'}", "a.tar"),
        ("${F#${GONE:-\\a.}}", "tar.gz"),
        ('${S#"\\*"}', "/x}*"),
        ('${F%".gz"}', "a.tar"),
        ("${GONE:-'a b'\"$A\"}", "a ba"),
    ],
)
def test_a_word_expands(text: str, want: str):
    assert expand(text, SEEN) == want


@pytest.mark.parametrize(
    ("text", "what", "word"),
    [
        ("x${A", 'no closing "}"', "${A"),
        ("${", "bad substitution", "${"),
        ("x${}y", "bad substitution", "${}"),
        ("${:-a}", "bad substitution", "${:"),
        ("${{A}}", "bad substitution", "${{"),
        ("x'a", "no closing '", "'a"),
        ('x"$A', 'no closing "', '"$A'),
        ("${A:=b}", "bad operator", "${A:="),
        ("${A^^}", "bad operator", "${A^"),
        ("${A:", 'no closing "}"', "${A:"),
        ("x${A:-b", 'no closing "}"', "${A:-b"),
        ("${A%b", 'no closing "}"', "${A%b"),
        ("${A/b}", 'no closing "/"', "${A/b}"),
        ("${A//b", 'no closing "/"', "${A//b"),
        ("${A/b/c", 'no closing "}"', "${A/b/c"),
        ("${A:-'}", "no closing '", "'}"),
        ("${A#\\x}", "bad escape in pattern", ""),
        ("${GONE:?no}", "GONE: no", ""),
        ("${GONE?}", "GONE: not set", ""),
        ("${E:?}", "E: not set", ""),
    ],
)
def test_what_is_open_or_unknown_is_refused(text: str, what: str, word: str):
    with pytest.raises(DockerfileError) as caught:
        expand(text, SEEN)
    assert what in caught.value.what
    assert caught.value.word == word


def test_the_message_of_a_question_mark_is_the_error():
    with pytest.raises(DockerfileError, match="TOKEN: give one"):
        expand("${TOKEN:?give one}", {})


def test_the_escape_character_can_be_another():
    assert expand("C:\\a`$A", SEEN, "`") == "C:\\a$A"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("$P", ["80", "443"]),
        ('"$P"', ["80 443"]),
        ("a$P b", ["a80", "443", "b"]),
        ("$E", []),
        ("''", [""]),
        ("a 'b c'd", ["a", "b cd"]),
        ("  a  ", ["a"]),
        ("a\\ b c", ["a b", "c"]),
        ('a" b "c', ["a b c"]),
    ],
)
def test_words_split_at_unquoted_blanks(text: str, want: list[str]):
    assert expand_words(text, SEEN) == want


@given(st.text(alphabet=st.characters(exclude_characters="'\"$\\")))
def test_text_without_special_characters_is_itself(text: str):
    assert expand(text, SEEN) == text


@given(st.text(alphabet=st.characters(exclude_characters="'")))
def test_single_quotes_protect_everything(text: str):
    assert expand(f"'{text}'", SEEN) == text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("\"$A\" '$A'", "\"a\" 'a'"),
        ("\\$A\n", "$A\n"),
        ("\\\\\n", "\\\n"),
        ("${F%.*} it's", "a.tar it's"),
        ("no variables\n\there\n", "no variables\n\there\n"),
    ],
)
def test_a_here_document_keeps_its_quotes(text: str, want: str):
    assert expand_document(text, SEEN) == want


def test_unset_variables_are_named_unless_a_word_provides_for_that():
    text = "$A $B ${C:-d} ${D2+e} \"$E2\" '$F2' \\$G ${H%.x} ${A:+$I}"
    assert unset_in(text, SEEN) == ["B", "E2", "H", "I"]
    assert unset_in("${A:-$x}", SEEN) == ["x"]
    assert unset_in("'$x' \\$y `$z", {}, "`") == ["y"]
    assert unset_in("'$x' \\$y", {}, None) == ["x"]


@pytest.mark.timeout(5)
def test_patterns_never_go_back():
    value = {"V": "a" * 60_000, "W": "ab" * 30_000}
    stars = "*a" * 12 + "b"
    for text in [f"${{V##{stars}}}", f"${{V%%{stars}}}", f"${{V//{stars}/x}}"]:
        assert expand(text, value) == value["V"]
    assert expand("${W//a*b/x}", value) == "x"
    assert expand("${W//b/}", value) == "a" * 30_000


def test_braces_within_braces_have_an_end():
    assert expand("${A:-" * 50 + "b" + "}" * 50, {}) == "b"
    assert expand("${A:-b}" * 60, {}) == "b" * 60
    with pytest.raises(DockerfileError):
        expand("${A:-" * 51 + "b" + "}" * 51, {})
    for text in ["${A:-" * 10_000, '"${A:-' * 10_000, "${A#" * 10_000]:
        with pytest.raises(DockerfileError, match="braces within each other"):
            expand(text, {})


def test_words_that_cannot_be_expanded_are_told_all_before_anything_runs():
    text = (
        "ARG A='a\nFROM $B/${C\n"
        'ENV D=e F="g\nLABEL h=${i!j}\nUSER ${k:?never set}\n'
        "RUN echo '\nCMD echo \"\nENTRYPOINT ${\nSHELL [\"'\"]\nMAINTAINER o'brien\n"
        "COPY --chown=${l <<A <<'B' /x\n'$m ${n\nA\n${o\nB\n"
        "ONBUILD ENV p='q\n"
    )
    found = parse(text)
    with pytest.raises(DockerfileError) as caught:
        check_words(found.instructions, found.escape)
    why = caught.value
    told = [(each.where, each.word) for each in (why, *why.more)]
    assert told == [
        ("Dockerfile:1", "'a"),
        ("Dockerfile:2", "${C"),
        ("Dockerfile:3", '"g'),
        ("Dockerfile:4", "${i!"),
        ("Dockerfile:11", "${l"),
        ("Dockerfile:11", "${n\n"),
    ]


def test_words_that_can_be_expanded_are_not_refused():
    text = "FROM ${A:-b}\nENV C=${D?e} F='${'\nCOPY <<G ${H#*/} /\n'\nG\n"
    found = parse(text)
    check_words(found.instructions, found.escape)


OPERATORS = ("#", "##", "%", "%%", ":-", "-", ":+", "+")


def shell_cases(count: int) -> list[tuple[str, str]]:
    """Values and texts that mean the same in a Dockerfile and in bash."""
    dice = random.Random(2018)
    cases = []
    for _ in range(count):
        value = "".join(dice.choices("ab./", k=dice.randrange(9)))
        operator = dice.choice([*OPERATORS, "/", "//"])
        letters = ["a", "b", ".", "*", "?"] + ["\\*"] * (operator[0] in "#%/")
        pattern = "".join(dice.choices(letters, k=3))
        tail = f"/{dice.choice(['', 'x', 'ab'])}" if "/" in operator else ""
        cases.append((value, f"${{V{operator}{pattern}{tail}}}"))
    return cases


def test_operators_agree_with_bash():
    cases = shell_cases(600)
    script = "".join(f"V='{v}'\nprintf '%s\\n' \"{text}\"\n" for v, text in cases)
    told = subprocess.run(
        ["bash", "-f"], input=script, capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]
    ours = [expand(f'"{text}"', {"V": value}) for value, text in cases]
    assert list(zip(cases, ours, strict=True)) == list(zip(cases, told, strict=True))
    assert len(set(ours)) > 100
