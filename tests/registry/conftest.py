"""Fake registries that misbehave, and Debian's real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.conftest import small_tree  # noqa: F401 - a fixture
from peers import docker_registry

from registry.fake import Fake, fake_registry


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_registry() as one:
        yield one


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry's host and port."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry that lets in ``moby:whale`` only."""
    with docker_registry(tmp_path_factory.mktemp("guarded"), login=True) as host:
        yield host


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DOCKER_CONFIG of the test's own."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "client"))
    return tmp_path / "client"
