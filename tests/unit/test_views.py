"""Sizes, ages, tables and templates read as Docker's."""

import json

import pytest

from minidocker.containers import State, Status
from minidocker.errors import UsageError
from minidocker.views import (
    View,
    ago,
    command_words,
    fill,
    formatted,
    human_size,
    human_span,
    status_words,
    table,
)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0B"), (1, "1B"), (999, "999B"), (1000, "1kB"), (8866, "8.87kB"), (12345678, "12.3MB"),
     (1_500_000_000, "1.5GB"), (5_900_000_000_000, "5.9TB")],
)  # fmt: skip
def test_sizes(size: int, words: str) -> None:
    assert human_size(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
     (119, "About a minute"), (120, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"),
     (5399, "About an hour"), (5400, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"),
     (13 * 86400, "13 days"), (14 * 86400, "2 weeks"), (59 * 86400, "8 weeks"),
     (60 * 86400, "2 months"), (729 * 86400, "24 months"), (730 * 86400, "2 years")],
)  # fmt: skip
def test_ages(seconds: float, words: str) -> None:
    assert human_span(seconds) == words


def test_ago_counts_from_go_s_time() -> None:
    assert ago("1970-01-01T00:00:10.123456789Z", 13.2) == "3 seconds ago"


def test_states_in_words() -> None:
    exited = State(Status.EXITED, exit_code=137, finished="1970-01-01T00:00:10Z")
    assert status_words(exited, 130) == "Exited (137) 2 minutes ago"
    assert status_words(State()) == "Created"


def test_a_table_has_docker_s_columns() -> None:
    heads = ("IMAGE", "CREATED", "SIZE", "COMMENT")
    lines = table(heads, [("d4e0641a80e8", "2 days ago", "0B", "")]).splitlines()
    assert lines[0] == "IMAGE          CREATED      SIZE      COMMENT"
    assert lines[1] == "d4e0641a80e8   2 days ago   0B        "


ROW = {"ID": "a1", "Names": "web", "State": {"Pid": 7, "Dead": False}, "Env": ["A=<1>"],
       "One": 1, "Zero": 0, "Cmd": None, "Labels": None}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "text"),
    [("{{.ID}}", "a1"), ("{{ .Names }}:{{.ID}}", "web:a1"), (r"{{.ID}}\t{{.Names}}", "a1\tweb"),
     ("{{.State.Pid}}", "7"), ("{{.State.Dead}}", "false"), ("{{.One}} {{.Zero}}", "1 0"),
     ("{{.Env}} {{.State}}", "[A=<1>] map[Dead:false Pid:7]"), ("{{.Cmd}} {{.Labels}}", "[] map[]"),
     ("{{.State.ExposedPorts}}|{{.State.StopSignal}}", "map[]|"), ("{{json .Env}}", '["A=\\u003c1\\u003e"]'),
     ("{{json .}}", None)],
)  # fmt: skip
def test_templates(form: str, text: str | None) -> None:
    if text is None:
        assert json.loads(fill(form, ROW)) == ROW
    else:
        assert fill(form, ROW) == text


@pytest.mark.parametrize(
    "form", ["{{.Nope}}", "{{.ID.Deeper}}", "{{range .Env}}x{{end}}", "{{"]
)
def test_a_template_that_cannot_be_filled_is_a_usage_error(form: str) -> None:
    with pytest.raises(UsageError):
        fill(form, ROW)


def test_json_is_a_line_for_each_row() -> None:
    view = View(("ID",), ("ID",))
    lines = formatted(view, [{"ID": "a"}, {"ID": "b"}], "json").splitlines()
    assert [json.loads(line) for line in lines] == [{"ID": "a"}, {"ID": "b"}]


def test_a_table_may_name_its_own_columns() -> None:
    view = View(("IMAGE ID", "SIZE"), ("ID", "Size"))
    rows = [{"ID": "a1", "Size": "0B", "CreatedSince": "1 second ago"}]
    form = r"table {{.Size}}\t{{.ID}}\t{{.CreatedSince}}"
    assert formatted(view, rows, form).splitlines() == [
        "SIZE      IMAGE ID   CREATED",
        "0B        a1         1 second ago",
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["sh"], '"sh"'), (["sh", "-c", "a b"], "\"sh -c 'a b'\""), (["a", 'say "x"'], '"a \'say \\"x\\"\'"'),
     (["sh", "-c", "x\ny"], '"sh -c x\\ny"'), (["sh", "-c", "echo one; echo two"], "\"sh -c 'echo one; ec…\"")],
)  # fmt: skip
def test_a_command_is_quoted_as_ps_does(argv: list[str], words: str) -> None:
    assert command_words(argv, 20) == words
