"""Records behave as frozen, slotted dataclasses do."""

import copy
import dataclasses
import doctest
import enum
import json
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker import records
from minidocker.records import Enum, IntEnum, IntFlag, Record, json_text, parse_json


class Point(Record):
    x: int
    y: int = 0


class Named(Point):
    name: str = "here"


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    x: int
    y: int = 0


def test_doctests_hold():
    assert doctest.testmod(records).failed == 0


@given(st.integers(), st.integers())
def test_a_record_equals_and_hashes_as_a_dataclass_does(x: int, y: int):
    assert (Point(x) == Point(x, y)) == (Model(x) == Model(x, y))
    assert (hash(Point(x)) == hash(Point(x, y))) == (
        hash(Model(x)) == hash(Model(x, y))
    )
    assert repr(Point(x, y)) == repr(Model(x, y)).replace("Model", "Point")


def test_a_subclass_appends_its_fields():
    assert Named(1, 2, "there") == Named(x=1, y=2, name="there")
    assert Named(1) != Point(1)
    assert Named.__match_args__ == ("x", "y", "name")


@pytest.mark.parametrize(
    "make",
    [
        Point,
        lambda: Point(1, 2, 3),
        lambda: Point(1, z=2),
        lambda: Point(1, x=1),
        lambda: Point(1).replace(z=1),
    ],
)
def test_wrong_fields_are_refused(make):
    with pytest.raises(TypeError, match="Point"):
        make()


def test_a_record_cannot_be_changed():
    point = Point(1)
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    with pytest.raises(AttributeError):
        point.other = 2  # type: ignore[attr-defined]
    assert not hasattr(point, "__dict__")


class Mood(Enum):
    GOOD = "+"
    BAD = "-"

    @property
    def other(self) -> "Mood":
        return Mood.BAD if self is Mood.GOOD else Mood.GOOD


class ModelMood(enum.Enum):
    GOOD = "+"
    BAD = "-"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class ModelLevel(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Bits(IntFlag):
    ONE = 1
    TWO = 2
    EIGHT = 8


class ModelBits(enum.IntFlag):
    ONE = 1
    TWO = 2
    EIGHT = 8


@pytest.mark.parametrize(
    ("ours", "model"), [(Mood, ModelMood), (Level, ModelLevel), (Bits, ModelBits)]
)
def test_an_enum_has_the_members_of_the_module_s(ours: type, model: type):
    assert list(ours.__members__) == list(model.__members__)
    for mine, theirs in zip(ours, model, strict=True):
        assert (mine.name, mine.value) == (theirs.name, theirs.value)
        assert repr(mine) == repr(theirs).replace("Model", "")
        assert str(mine) == str(theirs).replace("Model", "")
        assert f"{mine}" == f"{theirs}".replace("Model", "")
        assert ours(mine.value) == mine == ours[mine.name]
        assert copy.deepcopy(mine) == pickle.loads(pickle.dumps(mine)) == mine


def test_a_member_is_one_and_the_same_and_no_other_is_found():
    assert Mood("+") is Mood.GOOD is Mood["GOOD"] is copy.copy(Mood.GOOD)
    assert Mood.GOOD.other is Mood.BAD
    assert len({Mood.GOOD, Mood.BAD, Mood("-")}) == 2
    for kind, value in ((Mood, "?"), (Level, 3)):
        with pytest.raises(ValueError, match="is not a valid"):
            kind(value)
    with pytest.raises(AttributeError, match="SAD"):
        Mood.SAD  # noqa: B018
    with pytest.raises(KeyError):
        Mood["SAD"]


@given(st.integers(0, 15), st.integers(0, 15))
def test_flags_join_and_part_as_the_module_s_do(a: int, b: int):
    mine, theirs = (Bits(a), Bits(b)), (ModelBits(a), ModelBits(b))
    assert int(mine[0] | mine[1]) == int(theirs[0] | theirs[1])
    assert int(mine[0] & ~mine[1]) == a & ~b
    assert isinstance(a | mine[1], Bits)
    assert isinstance(a & mine[1], Bits)
    known = a & 11  # the module keeps what has no name as a member as well
    named = [one.name for one in ModelBits(known)]
    assert [one.name for one in Bits(known)] == named
    assert (Bits.TWO in mine[0]) == (ModelBits.TWO in theirs[0])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_is_read_and_written_as_the_module_does(value: object) -> None:
    assert json_text(value) == json.dumps(
        value, ensure_ascii=False, separators=(",", ":")
    )
    for indent in (None, 2):
        assert parse_json(f" {json.dumps(value, indent=indent)}\n") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        '{"a":}',
        "[1,]",
        "{} {}",
        "nul",
        '"\n"',
        "{1:2}",
        "01",
        "[NaN]",
        "Infinity",
    ],
)
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_what_json_cannot_say_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="no JSON value"):
        json_text({"a": object()})


def test_broken_json_is_a_value_error_also_where_nobody_has_imported_json():
    script = """
import sys
from minidocker.records import parse_json
for text in sys.argv[1:]:
    try:
        print(parse_json(text))
    except ValueError:
        print("ValueError")
assert "json" not in sys.modules
"""
    texts = ['["a', '["a" ', '{"a"', '{"a":1', '["\\x"]', "[", "nul", "[NaN]", "[1]"]
    done = subprocess.run(
        [sys.executable, "-c", script, *texts],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n") == ["ValueError"] * 8 + ["[1]", ""], done.stderr
