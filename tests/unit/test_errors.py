"""Messages have one form, and exit statuses are Docker's."""

import doctest

import pytest

from minidocker import errors
from minidocker.errors import BuildError, MinidockerError, did_you_mean


def test_doctests_hold():
    assert doctest.testmod(errors).failed == 0


def test_a_message_says_where_what_and_what_to_do():
    why = MinidockerError("no such stage", where="Dockerfile:3", hint="name it")
    assert str(why) == "Dockerfile:3: no such stage\nhint: name it"
    assert str(MinidockerError("no such stage")) == "no such stage"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("MinidockerError", 1),
        ("UsageError", 125),
        ("RuntimeFault", 125),
        ("NotExecutableError", 126),
        ("CommandNotFoundError", 127),
        ("NotFoundError", 1),
    ],
)
def test_the_status_follows_from_the_type(kind: str, status: int):
    assert getattr(errors, kind)("x").status == status


def test_a_build_ends_with_the_status_of_its_step():
    assert BuildError("x").status == 1
    assert BuildError("x", status=42).status == 42


def test_no_hint_where_nothing_is_near():
    assert did_you_mean("zzz", ["COPY"]) is None
    assert did_you_mean("zzz", ["COPY"], other="see --help") == "see --help"
