"""Sizes, ages and tables read as Docker's."""

import json

import pytest

from minidocker.tables import (
    View,
    ago,
    cut,
    formatted,
    human_size,
    human_span,
    nanoseconds_of,
    table,
)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0B"), (1, "1B"), (999, "999B"), (1000, "1kB"), (8866, "8.87kB"), (12345678, "12.3MB"),
     (1_500_000_000, "1.5GB"), (5_900_000_000_000, "5.9TB"), (999_950, "1e+03kB")],
)  # fmt: skip
def test_sizes(size: int, words: str) -> None:
    assert human_size(size) == words


def test_sums_have_four_digits() -> None:
    assert human_size(1_993_028, 4) == "1.993MB"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
     (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"),
     (5399, "About an hour"), (5400, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"),
     (13 * 86400, "13 days"), (14 * 86400, "2 weeks"), (59 * 86400, "8 weeks"),
     (60 * 86400, "2 months"), (729 * 86400, "24 months"), (730 * 86400, "2 years"),
     (730 * 86400 - 60, "1 years"), (-5, "Less than a second")],
)  # fmt: skip
def test_ages(seconds: float, words: str) -> None:
    assert human_span(seconds) == words


def test_ago_counts_from_go_s_time() -> None:
    assert ago("1970-01-01T00:00:10.123456789Z", 13.2) == "3 seconds ago"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2018-02-05T08:13:21Z", 1517818401), ("2018-02-05T10:13:21+02:00", 1517818401),
     ("2018-02-05T03:43:21-04:30", 1517818401), ("2000-02-29T00:00:00Z", 951782400),
     ("0001-01-01T00:00:00Z", -62135596800), ("1969-12-31T23:59:59Z", -1)],
)  # fmt: skip
def test_times(text: str, seconds: int) -> None:
    assert nanoseconds_of(text) == seconds * 10**9


@pytest.mark.parametrize(
    "text", ["", "x", "2018-02", "2018-02-05", None, "2018-02-05T1:2:3Z"]
)
def test_what_is_no_time_is_zero(text: str | None) -> None:
    assert nanoseconds_of(text) == 0


def test_a_table_has_docker_s_columns() -> None:
    heads = ("IMAGE", "CREATED", "SIZE", "COMMENT")
    lines = table(heads, [("d4e0641a80e8", "2 days ago", "0B", "100%")]).splitlines()
    assert lines[0] == "IMAGE          CREATED      SIZE      COMMENT"
    assert lines[1] == "d4e0641a80e8   2 days ago   0B        100%"


VIEW = View(("IMAGE ID", "SIZE"), ("ID", "Size"), {"CreatedSince": "CREATED"})
ROWS = [{"ID": "a1", "Size": "0B", "CreatedSince": "1 second ago"},
        {"ID": "b2", "Size": "9kB", "CreatedSince": "now"}]  # fmt: skip


def test_json_is_a_line_for_each_row() -> None:
    lines = formatted(VIEW, ROWS, "json").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert lines == formatted(VIEW, ROWS, "{{json .}}").splitlines()
    assert lines[0].startswith('{"CreatedSince"'), "keys are sorted, as Go's maps are"


def test_a_table_may_name_its_own_columns() -> None:
    form = r"table {{.Size}}\t{{upper .ID}}\t{{.CreatedSince}}"
    assert formatted(VIEW, ROWS, form).splitlines() == [
        "SIZE      IMAGE ID   CREATED",
        "0B        A1         1 second ago",
        "9kB       B2         now",
    ]


def test_an_empty_table_has_its_heads() -> None:
    assert formatted(VIEW, [], "") == "IMAGE ID   SIZE"
    assert formatted(VIEW, [], "{{.ID}}") == ""


def test_cutting_leaves_room_for_the_ellipsis() -> None:
    assert [cut("abcdef", width) for width in (6, 5)] == ["abcdef", "abcd…"]
