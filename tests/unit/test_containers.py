"""Containers on disk: names, configs, locks, logs."""

import doctest
import json
import os
from pathlib import Path

import pytest

from minidocker import containers
from minidocker.containers import (
    HostConfig,
    State,
    Status,
    check_name,
    claim_name,
    host_config,
    lock_exclusive,
    name_from,
    read_state,
    write_state,
)
from minidocker.durable import looking
from minidocker.errors import ConflictError, UsageError
from minidocker.etc_files import network_files
from minidocker.oci import ContainerConfig
from minidocker.program import Network


def test_doctests_hold():
    assert doctest.testmod(containers).failed == 0


def test_a_host_config_is_read_as_it_was_written():
    host = HostConfig(True, Network.HOST, True, ("/a:/b:ro",))
    assert host_config(json.loads(json.dumps(host.to_dict()))) == host
    assert host_config({}) == HostConfig()


def test_a_state_is_read_as_it_was_written(tmp_path: Path):
    path = str(tmp_path / "state.json")
    assert read_state(path) == State()
    state = State(Status.RUNNING, 7, 8, started="now")
    write_state(path, state)
    assert read_state(path) == state


@pytest.mark.parametrize("name", ["", "-a", "a b", "a", "../a", "a/b", "ä"])
def test_a_name_that_docker_refuses_is_refused(name: str):
    with pytest.raises(UsageError):
        check_name(name)


def test_every_made_name_is_a_good_name():
    for number in range(256):
        check_name(name_from(bytes((number, 255 - number))))


def test_a_name_has_one_owner(tmp_path: Path):
    names = str(tmp_path / "names")
    (tmp_path / "containers" / "one").mkdir(parents=True)
    claim_name(names, "box", "one")
    with pytest.raises(ConflictError, match='in use by container "one"'):
        claim_name(names, "box", "two")
    (tmp_path / "containers" / "one").rmdir()  # a crash left the name
    claim_name(names, "box", "two")


def test_a_lock_tells_whether_somebody_lives(tmp_path: Path):
    path = str(tmp_path / "lock")
    with looking(path) as taken:
        assert not taken
    handle = lock_exclusive(path, "box")
    with looking(path) as taken:
        assert taken
    with pytest.raises(ConflictError, match="container box is running"):
        lock_exclusive(path, "box")
    os.close(handle)
    with looking(path) as taken:
        assert not taken


def test_an_isolated_container_is_told_nothing_of_the_host_s_names():
    found = network_files(ContainerConfig(hostname="box"), HostConfig())
    assert found["hostname"] == "box\n"
    assert "localhost" in found["hosts"]
