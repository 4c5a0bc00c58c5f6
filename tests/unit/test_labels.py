"""Which profile of AppArmor a container gets, decided from files that are not the kernel's.

What the kernel does with it, tests/uml/inside/test_labels.py sees.
"""

import os
from pathlib import Path

import pytest

from minidocker import labels
from minidocker.errors import RuntimeFault
from minidocker.labels import DEFAULT, chosen_profile, verdict
from minidocker.security import PRIVILEGED, Security


class Kernel:
    """The files that a kernel with AppArmor has, and a parser that may be there."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.enabled, self.listed = place / "enabled", place / "apparmor/profiles"
        self.listed.parent.mkdir()
        self.parser, self.asked = place / "apparmor_parser", place / "asked"
        monkeypatch.setattr(labels, "APPARMOR", str(self.enabled))
        monkeypatch.setattr(labels, "LISTED", str(self.listed))
        monkeypatch.setattr(labels, "find_parser", self.find)
        monkeypatch.setattr(labels.os, "geteuid", lambda: 0)
        monkeypatch.setattr(labels, "is_first_user_namespace", lambda: True)
        self.switch(on=True)
        self.load("mine", "another (one)")

    def find(self) -> str:
        return str(self.parser) if self.parser.exists() else ""

    def switch(self, *, on: bool) -> None:
        self.enabled.write_text("Y\n" if on else "N\n")

    def load(self, *names: str) -> None:
        self.listed.write_text("".join(f"{name} (enforce)\n" for name in names))

    def install(self, script: str) -> None:
        self.parser.write_text(f"#!/bin/sh\ncat > {self.asked}\n{script}\n")
        self.parser.chmod(0o755)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_off_is_off(kernel: Kernel):
    kernel.switch(on=False)
    for asked in ("", "unconfined"):
        assert chosen_profile(Security(profile=asked)) == ""
    assert chosen_profile(PRIVILEGED) == ""
    with pytest.raises(RuntimeFault, match="AppArmor is off: no profile mine"):
        chosen_profile(Security(profile="mine"))
    assert verdict() == (False, "it is off: apparmor=1")
    kernel.switch(on=True)
    kernel.listed.unlink()
    kernel.listed.parent.rmdir()
    assert chosen_profile(Security()) == ""
    assert verdict() == (False, "no /sys/kernel/security here")
    kernel.enabled.unlink()
    assert verdict() == (False, "not in this kernel")


def test_the_default_is_loaded_by_the_parser_where_it_is_missing(kernel: Kernel):
    kernel.install("")
    assert chosen_profile(Security()) == DEFAULT
    assert f"profile {DEFAULT} flags=" in kernel.asked.read_text()
    kernel.asked.unlink()
    kernel.load(DEFAULT)
    assert chosen_profile(Security()) == DEFAULT
    assert not kernel.asked.exists()


def test_without_a_parser_there_is_no_profile_unless_asked_for(kernel: Kernel):
    assert chosen_profile(Security()) == ""
    assert verdict() == (False, "apparmor_parser is not installed")
    with pytest.raises(RuntimeFault, match="cannot be loaded: apparmor_parser is not"):
        chosen_profile(Security(profile=DEFAULT))
    kernel.install("echo no such feature >&2; exit 1")
    assert verdict() == (False, "no such feature")


@pytest.mark.parametrize("name", ["mine", "another (one)", "unconfined"])
def test_a_profile_that_is_loaded_is_given(kernel: Kernel, name: str):
    assert chosen_profile(Security(profile=name)) == name
    assert chosen_profile(PRIVILEGED.replace(profile=name)) == name


def test_one_that_is_not_loaded_is_refused(kernel: Kernel):
    with pytest.raises(RuntimeFault, match="AppArmor profile nobody is not loaded"):
        chosen_profile(Security(profile="nobody"))
    assert chosen_profile(PRIVILEGED) == "unconfined"


def test_the_label_goes_to_apparmor_s_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = tmp_path / "exec"
    written.touch()
    monkeypatch.setattr(labels, "label_file", lambda: str(written))
    labels.label_next_execve("mine")
    assert written.read_text() == "exec mine"
    assert os.path.basename(labels.LISTED) == "profiles"
