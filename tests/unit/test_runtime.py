"""What a program is given is computed without a container."""

import doctest
import os
import select
from pathlib import Path

import pytest

from minidocker import dialogue, runtime
from minidocker.dialogue import ask_to_go, introduce, listen, new_channel, send_error
from minidocker.errors import CommandNotFoundError, RuntimeFault
from minidocker.identity import User, die_with_parent, find_user
from minidocker.program import ProcessSpec, default_env, variables


def test_doctests_hold():
    from minidocker import identity, program

    for module in (dialogue, identity, program, runtime):
        assert not doctest.testmod(module).failed


def test_an_error_keeps_its_type_and_its_parts_on_its_way_to_the_parent():
    ours, theirs = new_channel()
    send_error(theirs, CommandNotFoundError("no \udcff", where="/x", hint="y"))
    theirs.close()
    with pytest.raises(CommandNotFoundError) as why:
        listen(ours)
    assert (why.value.what, why.value.where, why.value.hint) == ("no \udcff", "/x", "y")


def test_the_end_of_the_channel_says_that_the_program_runs():
    ours, theirs = new_channel()
    theirs.close()
    assert listen(ours) == -1


def test_who_it_will_be_and_why_it_failed_are_both_heard():
    ours, theirs = new_channel()
    user = User(7, 8, (9, 10), "/a:b")
    introduce(theirs, user)
    send_error(theirs, RuntimeFault("no"))
    theirs.close()
    told: list[User] = []
    with pytest.raises(RuntimeFault, match="no"):
        listen(ours, told.append)
    assert told == [user]


def test_it_goes_on_when_the_parent_has_done_its_part(tmp_path: Path):
    done = tmp_path / "done"
    ours, theirs = new_channel()
    child = os.fork()
    if child == 0:
        ours.close()
        introduce(theirs, User(0, 0))
        ask_to_go(theirs)
        os._exit(0 if done.exists() else 1)
    theirs.close()
    assert listen(ours, lambda _: done.touch()) == -1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("gone", [True, False])
def test_a_child_ends_whose_parent_ended_before_it_asked(*, gone: bool):
    ours, theirs = new_channel()
    child = os.fork()
    if child == 0:
        ours.close()
        select.select([theirs] if gone else [], [], [], 10 if gone else 0)
        die_with_parent(theirs)
        os._exit(7)
    theirs.close()
    if gone:
        ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (125 if gone else 7)
    ours.close()


def test_the_spec_s_variables_win_over_the_defaults():
    spec = ProcessSpec(("sh",), env=("HOME=/x", "TERM=dumb"), tty=True, hostname="h")
    found = variables(default_env(spec), "/root")
    assert (found["HOME"], found["TERM"], found["HOSTNAME"]) == ("/x", "dumb", "h")


def test_an_empty_home_is_the_user_s_as_in_docker():
    assert variables(("HOME=",), "/root") == {"HOME": "/root"}


@pytest.mark.parametrize("kind", ["fifo", "directory", "outside"])
def test_a_passwd_that_is_no_file_does_not_hang_or_mislead(tmp_path: Path, kind: str):
    (tmp_path / "etc").mkdir()
    passwd = tmp_path / "etc/passwd"
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "directory":
        passwd.mkdir()
    else:
        passwd.symlink_to("/proc/self/root/etc/passwd")
    root = os.open(tmp_path, os.O_PATH)
    with pytest.raises(RuntimeFault):
        find_user(root, "root")
    os.close(root)
