"""What Go prints, to the last escape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.go_words import go_quote


@given(st.text(max_size=30))
def test_a_quoted_text_is_one_printable_line(text: str):
    assert go_quote(text).isprintable()
    assert go_quote(text).startswith('"')


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\a\v\x7f", r'"\a\v\x7f"'),
        ("\u2028 \U000e0001", r'"\u2028 \U000e0001"'),
        ("größer <b>", '"größer <b>"'),
    ],
)
def test_what_cannot_be_printed_is_an_escape(text: str, shown: str) -> None:
    assert go_quote(text) == shown
