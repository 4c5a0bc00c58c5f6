"""Templates are filled as Go fills them; Docker is asked the same in tests/cli."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.errors import MinidockerError, UsageError
from minidocker.values import fill, printf


IMAGE = {
    "Id": "sha256:1f3a",
    "RepoTags": ["web:latest", "web:v1"],
    "Config": {"User": "", "Env": ["A=<1>", "B=2"], "Cmd": None, "Labels": {"a": "1", "b": "two"},
               "ExposedPorts": {"80/tcp": {}}, "Tty": False},
    "Size": 8866,
    "State": {"Pid": 7, "Dead": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("{{.Id}}", "sha256:1f3a"), ("{{ .Id }}:{{.Size}}", "sha256:1f3a:8866"), ("plain", "plain"),
        ("{{.State.Pid}} {{.State.Dead}}", "7 false"), ("{{json .Config.Env}}", '["A=<1>","B=2"]'),
        ("{{.Config.Env}} {{.Config.Cmd}} {{.RepoTags}}", "[A=<1> B=2] [] [web:latest web:v1]"),
        ("{{.Config.Labels}} {{.Config.ExposedPorts}}", "map[a:1 b:two] map[80/tcp:{}]"),
        ("{{.Config.Volumes}} {{.Config.Healthcheck}} {{.Config.Shell}}|{{.Config.StopSignal}}|", "map[] <nil> []||"),
        ("{{.State}} {{.State.Health}}", "{7 false <nil>} <nil>"), ("{{.Config.Labels.nobody}}", "<no value>"),
        ('{{index .Config.Labels "a"}}{{index .Config.Labels "zz"}}', "1"),
        ("{{index .RepoTags 1}}", "web:v1"), ("{{len .RepoTags}} {{len .Id}}", "2 11"),
        ("{{range .RepoTags}}<{{.}}>{{end}}", "<web:latest><web:v1>"),
        ("{{range $i, $t := .RepoTags}}{{if $i}}, {{end}}{{$t}}{{end}}", "web:latest, web:v1"),
        ("{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}", "a=1 b=two "),
        ("{{range .Config.Cmd}}x{{else}}none{{end}}", "none"),
        ("{{range .Config.Env}}{{println .}}{{end}}", "A=<1>\nB=2\n"),
        ("{{if .Config.User}}u{{else if .Size}}s{{else}}n{{end}}", "s"),
        ("{{with .Config}}{{.Tty}} {{$.Id}}{{end}}", "false sha256:1f3a"),
        ("{{with .Config.User}}x{{else}}nobody{{end}}", "nobody"),
        ('{{if and (eq .Size 8866) (ne .Id "x")}}yes{{end}}', "yes"),
        ('{{eq .Config.User "root" ""}} {{lt 1 2}} {{ge .Size 9000}} {{not true}}', "true true false false"),
        ('{{or .Config.User "root"}} {{and 1 0}}', "root 0"),
        ('{{join .RepoTags ", "}} {{upper .Id | lower}} {{title "ab cd"}}', "web:latest, web:v1 sha256:1f3a Ab Cd"),
        ('{{range split "a/b" "/"}}[{{.}}]{{end}} {{pad "x" 1 2}}| {{truncate .Id 6}}', "[a][b]  x  | sha256"),
        ('{{printf "%s=%d %q %v %5.1f%%" .Id .Size "q" .RepoTags 2.25}}', 'sha256:1f3a=8866 "q" [web:latest web:v1]   2.2%'),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2"), ("{{$x := 1}}{{if true}}{{$x := 2}}{{end}}{{$x}}", "1"),
        ("{{range .RepoTags}}{{.}}{{break}}{{end}}", "web:latest"),
        ("{{range $i, $t := .RepoTags}}{{if not $i}}{{continue}}{{end}}{{$t}}{{end}}", "web:v1"),
        ("{{range .Config.Env}}{{range $.RepoTags}}{{with .}}{{break}}{{end}}x{{end}}{{.}}{{end}}", "A=<1>B=2"),
        ('{{printf "%T %T" .Size .Id}} {{js .Config.Env}} {{urlquery "a b&"}}', r"int string [A\u003D\u003C1\u003E B\u003D2] a+b%26"),
        ("{{.Config.Labels.none.deeper}} {{json .Config.Labels.none.deeper}}", "<no value> null"),
        ("{{if .Config.Labels.none.x}}yes{{else}}no{{end}} {{printf `%s %v` .Config.Labels.none.x nil}}", "no %!s(<nil>) <nil>"),
        ("a {{- .Size -}} b", "a8866b"), ("{{/* no */}}x", "x"), ('{{"}}"}}', "}}"), ("{{`a\\n`}}", "a\\n"),
        ('{{print "a" 1 2 "b"}}', "a1 2b"), ("{{html .Config.Env}}", "[A=&lt;1&gt; B=2]"),
        ("{{(index .RepoTags 0) | len}} {{slice .Id 0 6}}", "10 sha256"), ("{{.}}", None), ("{{json .}}", None),
        (r"{{.Id}}\t", r"sha256:1f3a\t"), ("{{nil | json}}", None), ("{{'a'}} {{0x10}} {{1.5}}", "97 16 1.5"),
    ],
)  # fmt: skip
def test_templates(form: str, text: str | None) -> None:
    if form == "{{json .}}":
        assert json.loads(fill(form, IMAGE)) == IMAGE
    elif text is not None:
        assert fill(form, IMAGE) == text


@pytest.mark.parametrize(
    "form",
    ["{{", "{{.Id", "{{range .RepoTags}}x", "{{end}}", "{{else}}", "{{.A ? .B}}", "{{nope .Id}}", "{{}}",
     "{{(.Id}}", "{{.Id)}}", '{{"abc}}', "{{$x}}", "{{.Id | }}", "{{if}}x{{end}}", "{{1a}}"],
)  # fmt: skip
def test_what_cannot_be_read_is_bad_usage(form: str) -> None:
    with pytest.raises(UsageError) as caught:
        fill(form, IMAGE)
    assert caught.value.status == 125


@pytest.mark.parametrize(
    "form",
    ["{{.Nope}}", "{{.Config.Envv}}", "{{.Id.Deeper}}", "{{index .RepoTags 9}}", "{{len 3}}", "{{range .Size}}x{{end}}",
     '{{lt "a" 1}}', "{{.Id .Size}}", "{{upper 1}}", "{{index .RepoTags}}{{index 1 2}}", "{{join 1 2}}", "{{slice .Id 9 99}}"],
)  # fmt: skip
def test_what_is_not_there_is_an_error_of_that_document(form: str) -> None:
    with pytest.raises(MinidockerError) as caught:
        fill(form, IMAGE)
    assert caught.value.status == 1
    assert caught.value.what.startswith("template parsing error: template: :1:")


def test_an_unknown_field_names_those_that_are_there() -> None:
    with pytest.raises(MinidockerError, match="no entry") as caught:
        fill("{{.State.Pidd}}", IMAGE)
    assert caught.value.hint == "fields: Pid, Dead, Health"


@pytest.mark.parametrize(
    ("form", "values", "text"),
    [("%d%%", (5,), "5%"), ("%s", (), "%!s(MISSING)"), ("x", (1,), "x%!(EXTRA int=1)"), ("%d", ("a",), "%!d(string=a)"),
     ("%-5s|%5s|%.2s", ("ab", "cd", "efg"), "ab   |   cd|ef"), ("%x %X", (255, 255), "ff FF"), ("%q", (["a", "b"],), '["a" "b"]'), ("%q %q", ("\a<", 65), r""""\a<" 'A'"""),
     ("%t %v", (True, None), "true <nil>"), ("%05d", (42,), "00042"), ("%c", (97,), "a"), ("%x", ("hi",), "6869")],
)  # fmt: skip
def test_printf(form: str, values: tuple[object, ...], text: str) -> None:
    assert printf(form, *values) == text


@given(st.text(alphabet='{}.-$"`|():=, aA1\n/*x', max_size=40))
def test_any_text_is_filled_or_refused(form: str) -> None:
    with suppress(MinidockerError):
        assert isinstance(fill(form, IMAGE), str)
