"""What each metadata instruction does to the configuration and to the history."""

from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workbench import Workbench

from minidocker.cache import moment
from minidocker.context import open_context
from minidocker.dispatch import (
    DISPATCH,
    declare,
    merged,
    ports,
)
from minidocker.dockerfile import Word, parse
from minidocker.drivers import Vfs
from minidocker.errors import DockerfileError
from minidocker.moves import absolute, clean_path
from minidocker.oci import ContainerConfig, sha256_text
from minidocker.stage import (
    DEFAULT_PATH,
    BuildOptions,
    Stage,
    Workshop,
    go_time,
)


PATH = f"PATH={DEFAULT_PATH}"


class Walk(Workbench):
    """Takes the steps by the table alone."""

    def stage(self, name: str) -> Stage:
        image = "" if name == "scratch" else self.images.resolve(name)
        return Stage("", image, self.config(image) if image else ContainerConfig())

    def build(self, dockerfile: str, **options: object) -> str:
        with open_context(str(self.context)) as context:
            shop = Workshop(
                images=self.images,
                layers=self.layers,
                runner=self.runner,
                progress=self.said.append,
                context=context,
                options=BuildOptions(**options),
            )
            for it in parse(dockerfile).instructions:
                if it.word is Word.FROM:
                    shop.stages.append(self.stage(it.args[0]))
                elif not shop.stages:
                    declare(it, shop.meta_args, str)
                else:
                    DISPATCH[it.word](it, shop.stages[-1], shop)
        return shop.stages[-1].image


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    bench = Walk(tmp_path, Vfs)
    bench.keep("base", (sha256_text(b"layer"),), ContainerConfig(cmd=("base-cmd",)))
    return bench


def built(
    bench: Workbench, text: str, **args: str
) -> tuple[ContainerConfig, list[str]]:
    """The configuration after the instructions, and their lines of the history."""
    id = bench.build(f"FROM base\n{text}", build_args=MappingProxyType(args))
    lines = [entry.created_by for entry in bench.images.get(id).history[1:]]
    return bench.config(id), [one.removeprefix("/bin/sh -c #(nop) ") for one in lines]


def test_every_word_but_from_has_a_dispatcher_that_begins_with_its_syntax():
    assert set(DISPATCH) == set(Word) - {Word.FROM}
    for word, dispatcher in DISPATCH.items():
        first = (dispatcher.__doc__ or "").splitlines()[0]
        assert first.startswith(word.value)


@pytest.mark.parametrize(
    ("text", "line", "changes"),
    [
        ("ENV A=1 B='x y'", "ENV A=1 B=x y", {"env": (PATH, "A=1", "B=x y")}),
        ("ENV A 1  2", "ENV A=1  2", {"env": (PATH, "A=1  2")}),
        ("ENV PATH=/x:$PATH", f"ENV PATH=/x:{DEFAULT_PATH}",
         {"env": (f"PATH=/x:{DEFAULT_PATH}",)}),
        ("LABEL b=2 a='1 $X'", "LABEL b=2 a=1 $X", {"labels": {"a": "1 $X", "b": "2"}}),
        ("USER www:staff", "USER www:staff", {"user": "www:staff"}),
        ("EXPOSE 90 80/udp 7-8", "EXPOSE 7-8 80/udp 90",
         {"exposed_ports": {"7/tcp": {}, "8/tcp": {}, "80/udp": {}, "90/tcp": {}}}),
        ("EXPOSE 8080:80", "EXPOSE 8080:80", {"exposed_ports": {"80/tcp": {}}}),
        ("VOLUME /b /a", "VOLUME [/b /a]", {"volumes": {"/a": {}, "/b": {}}}),
        ('VOLUME ["/a b"]', "VOLUME [/a b]", {"volumes": {"/a b": {}}}),
        ("STOPSIGNAL sigusr1", "STOPSIGNAL sigusr1", {"stop_signal": "sigusr1"}),
        ("STOPSIGNAL 9", "STOPSIGNAL 9", {"stop_signal": "9"}),
        ("STOPSIGNAL RTMIN+3", "STOPSIGNAL RTMIN+3", {"stop_signal": "RTMIN+3"}),
        ("CMD echo $A", 'CMD ["/bin/sh" "-c" "echo $A"]',
         {"cmd": ("/bin/sh", "-c", "echo $A")}),
        ('CMD ["a", "b\\n"]', 'CMD ["a" "b\\n"]', {"cmd": ("a", "b\n")}),
        ("CMD []", "CMD []", {"cmd": ()}),
        ('ENTRYPOINT ["e"]', 'ENTRYPOINT ["e"]', {"entrypoint": ("e",), "cmd": None}),
        ("ENTRYPOINT e f", 'ENTRYPOINT ["/bin/sh" "-c" "e f"]',
         {"entrypoint": ("/bin/sh", "-c", "e f"), "cmd": None}),
        ("ENTRYPOINT []", "ENTRYPOINT []", {"entrypoint": None, "cmd": None}),
        ("ARG A=1 B", "ARG A=1 B", {}),
        ("MAINTAINER Some  One <a@b>", "MAINTAINER Some  One <a@b>", {}),
    ],
)  # fmt: skip
def test_an_instruction_changes_its_field_and_says_so(
    bench: Workbench, text: str, line: str, changes: dict[str, object]
):
    config, lines = built(bench, text)
    base = bench.images.resolve("base")
    before = bench.config(base).replace(env=(PATH,), image=base)
    assert config == before.replace(**changes)
    assert lines == [" " + line]


def test_a_shell_is_used_by_what_comes_after_it(bench: Workbench):
    text = 'CMD a\nSHELL ["/bin/bash", "-ec"]\nENTRYPOINT b'
    id = bench.build(f"FROM base\n{text}")
    lines = [entry.created_by for entry in bench.images.get(id).history[1:]]
    assert lines[1:] == [
        "/bin/bash -ec #(nop)  SHELL [/bin/bash -ec]",
        '/bin/bash -ec #(nop)  ENTRYPOINT ["/bin/bash" "-ec" "b"]',
    ]
    assert bench.config(id).shell == ("/bin/bash", "-ec")


@pytest.mark.parametrize(
    ("text", "cmd"),
    [
        ('ENTRYPOINT ["e"]', None),
        ('CMD ["c"]\nENTRYPOINT ["e"]', ("c",)),
        ('ENTRYPOINT ["e"]\nCMD ["c"]', ("c",)),
        ('CMD ["c"]\nCMD []\nENTRYPOINT ["e"]', None),
    ],
)
def test_an_entrypoint_discards_only_the_bases_cmd(
    bench: Workbench, text: str, cmd: tuple[str, ...] | None
):
    assert built(bench, text)[0].cmd == cmd


def test_all_of_an_env_is_expanded_with_what_was_before_it(bench: Workbench):
    config, _ = built(bench, "ENV a=1\nENV a=$a:2 b=$a")
    assert config.env == (PATH, "a=1:2", "b=1")


def test_all_of_an_arg_is_expanded_with_what_was_before_it(bench: Workbench):
    _, lines = built(bench, "ARG a=1\nARG a=$a:2 b=$a")
    assert lines[1] == " ARG a=1:2 b=1"


def test_an_arg_is_seen_from_its_line_on(bench: Workbench):
    config, _ = built(bench, "ENV x=.$A\nARG A=1\nENV y=.$A", A="2")
    assert config.env == (PATH, "x=.", "y=.2")


def test_an_env_hides_an_arg(bench: Workbench):
    config, _ = built(bench, "ENV A=env\nARG A=1\nENV x=$A", A="2")
    assert config.env == (PATH, "A=env", "x=env")


def test_an_arg_before_from_is_seen_when_declared_again(bench: Workbench):
    id = bench.build("ARG V=1\nFROM base\nENV x=.$V\nARG V\nENV y=.$V")
    assert bench.config(id).env == (PATH, "x=.", "y=.1")


def test_ports_and_labels_and_volumes_add_up(bench: Workbench):
    config, _ = built(bench, "EXPOSE 2\nEXPOSE 1\nLABEL a=1\nLABEL a=2 b=3\nVOLUME /x")
    assert list(config.exposed_ports or ()) == ["1/tcp", "2/tcp"]
    assert config.labels == {"a": "2", "b": "3"}


def test_one_expose_variable_may_be_several_ports(bench: Workbench):
    config, lines = built(bench, 'ENV P="80 443/udp"\nEXPOSE $P')
    assert list(config.exposed_ports or ()) == ["443/udp", "80/tcp"]
    assert lines[-1] == " EXPOSE 80 443/udp"


def test_the_maintainer_is_the_author_of_all_that_follows(bench: Workbench):
    id = bench.build("FROM base\nUSER 1\nMAINTAINER me\nUSER 2")
    image = bench.images.get(id)
    assert image.author == "me"
    assert [entry.author for entry in image.history[1:]] == ["", "me", "me"]


def test_the_bases_environment_is_kept(bench: Workbench):
    bench.keep("rich", (sha256_text(b"l"),), ContainerConfig(env=("PATH=/p", "Q=q")))
    id = bench.build("FROM rich\nENV Q=r")
    assert bench.config(id).env == ("PATH=/p", "Q=r")


@pytest.mark.parametrize(
    "spec", ["", "0", "65536", "1-", "x", "80/", "5-4", "1/2", "٣"]
)
def test_bad_ports_are_refused(spec: str):
    with pytest.raises(DockerfileError, match="invalid port"):
        ports(spec)


@given(st.lists(st.sampled_from(["A=1", "B=2", "C="]), unique=True).map(tuple),
       st.sampled_from("ABCD"), st.text("xyz=", max_size=3))  # fmt: skip
def test_a_merged_variable_is_there_once(env: tuple[str, ...], name: str, value: str):
    found = merged(env, name, value)
    assert [one for one in found if one.startswith(f"{name}=")] == [f"{name}={value}"]
    assert [one for one in found if one[0] != name] == [o for o in env if o[0] != name]


@pytest.mark.parametrize(
    ("path", "work", "want"),
    [
        ("a", "", "/a"), ("a/", "/w", "/w/a/"), (".", "/w", "/w/"), ("", "/w", "/w/"),
        ("..", "/w/x", "/w/"), ("/", "/w", "/"), ("../../..", "/w", "/"),
        ("//a//b", "/w", "/a/b"),
    ],
)  # fmt: skip
def test_a_destination_becomes_absolute(path: str, work: str, want: str):
    assert absolute(path, work) == want


@given(st.text("/.ab", max_size=12))
def test_a_clean_path_is_absolute_and_clean(path: str):
    clean = clean_path(path)
    assert clean.startswith("/")
    assert not {"..", "."} & set(clean.split("/"))
    assert clean_path(clean) == clean


@given(
    st.integers(0, 4_000_000_000_000_000_000), st.integers(0, 4_000_000_000_000_000_000)
)
def test_moments_sort_as_the_times_do(one: int, other: int):
    assert (one < other) == (moment(go_time(one)) < moment(go_time(other)))
