"""Variables and quotes, as the table of the chapter says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.errors import DockerfileError
from minidocker.expansion import expand, expand_words


SEEN = {"A": "a", "E": "", "P": "80 443", "Q": "'q'"}


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
    ],
)
def test_a_word_expands(text: str, want: str):
    assert expand(text, SEEN) == want


@pytest.mark.parametrize(
    "text", ["${A", "${", "${}", "'a", '"a', "${A%b}", "${A:=b}", "${GONE:?no}"]
)
def test_what_is_open_or_unknown_is_refused(text: str):
    with pytest.raises(DockerfileError):
        expand(text, SEEN)


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
