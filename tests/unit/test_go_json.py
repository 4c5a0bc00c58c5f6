"""JSON as Go writes it is still JSON that says the same."""

import json

from hypothesis import given
from hypothesis import strategies as st

from minidocker.oci import go_json


@given(st.text())
def test_every_text_survives(text: str) -> None:
    assert json.loads(go_json({"a": text})) == {"a": text}


def test_a_backslash_before_b_is_no_backspace() -> None:
    assert go_json("grep '\\bword' \b \f \\\b") == (
        b"\"grep '\\\\bword' \\u0008 \\u000c \\\\\\u0008\""
    )
