"""What Go prints, to the last escape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.go_words import go_quote
from minidocker.values import fill


@given(st.text(max_size=30))
def test_a_quoted_text_is_one_printable_line(text: str):
    assert go_quote(text).isprintable()
    assert go_quote(text).startswith('"')


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("\a\v\x7f", r'"\a\v\x7f"'),
        ("\u2028 \U000e0001", r'"\u2028 \U000e0001"'),
        ("größer <b>", '"größer <b>"'),
        (65, "'A'"),
        (["a b", "\t"], r'["a b" "\t"]'),
    ],
)
def test_a_template_quotes_as_go_does(value: object, shown: str) -> None:
    assert fill('{{printf "%q" .}}', value) == shown
