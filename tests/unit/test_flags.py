"""A command line is read as Go's pflag reads it."""

import pytest

from minidocker.errors import UsageError, WordFault
from minidocker.flags import (
    Command,
    Flag,
    Takes,
    parse_command,
    parse_flags,
    refused,
)


FLAGS = (
    Flag("detach", "", "d"),
    Flag("tty", "", "t"),
    Flag("name", "", "n", Takes.TEXT),
    Flag("env", "", "e", Takes.LIST),
    Flag("time", "", takes=Takes.NUMBER),
)
RUN = Command("run", "IMAGE", "", lambda given: 0, FLAGS, least=1, greedy=True)


@pytest.mark.parametrize(
    ("words", "flags", "args"),
    [
        ("-dt img", {"detach": True, "tty": True}, ("img",)),
        ("-dn web img", {"detach": True, "name": "web"}, ("img",)),
        ("-nweb img", {"name": "web"}, ("img",)),
        ("-n=web img", {"name": "web"}, ("img",)),
        ("--name web --name=www img", {"name": "www"}, ("img",)),
        ("-e A=1 --env B=2 img", {"env": ["A=1", "B=2"]}, ("img",)),
        ("--tty=false img", {"tty": False}, ("img",)),
        ("img -d --name x", {}, ("img", "-d", "--name", "x")),
        ("-- -d", {}, ("-d",)),
        ("-", {}, ("-",)),
        ("--time -1 img", {"time": "-1"}, ("img",)),
        ("--name= img", {"name": ""}, ("img",)),
    ],
)
def test_flags_are_read_as_docker_reads_them(
    words: str, flags: dict[str, object], args: tuple[str, ...]
) -> None:
    given = parse_flags(FLAGS, words.split(), "run", greedy=True)
    assert (given.flags, given.args) == (flags, args)


def test_without_greed_flags_may_follow_arguments() -> None:
    given = parse_flags(FLAGS, ["a", "-d", "b"], "rm", greedy=False)
    assert (given.on("detach"), given.args) == (True, ("a", "b"))


def test_too_few_arguments_are_another_status_than_a_flag_that_is_wrong() -> None:
    with pytest.raises(WordFault, match="requires at least 1 argument") as caught:
        parse_command(RUN, [])
    assert caught.value.hint == "usage: minidocker run IMAGE"
    assert caught.value.status == 1


def test_a_refused_flag_says_why() -> None:
    command = RUN.replace(rare=lambda: (refused("gpus", "there are none"),))
    with pytest.raises(UsageError, match="--gpus cannot be had here") as caught:
        parse_command(command, ["--gpus", "all", "img"])
    assert caught.value.hint == "there are none"


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        ("--nmae x img", "unknown flag: --nmae", '"--name"'),
        ("-x img", "unknown shorthand flag: 'x'", "run --help"),
        ("--name", "needs an argument: --name", "string"),
        ("--time soon img", 'invalid argument "soon"', ""),
        ("--tty=perhaps img", 'invalid argument "perhaps"', ""),
    ],
)
def test_what_is_wrong_is_said_with_a_hint(words: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command(RUN, words.split())
    assert said in caught.value.what
    assert hint in (caught.value.hint or "")
    assert caught.value.status == 125
