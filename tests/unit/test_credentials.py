"""The file of logins, helpers, challenges."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minidocker.credentials import (
    HUB_KEY,
    Challenge,
    Credentials,
    Login,
    config_path,
    helper,
    parse_challenges,
    write_private,
)
from minidocker.errors import IntegrityError, RegistryError
from minidocker.oci import HUB


MOBY = Login("moby", "wh:ale")
HELPER = """#!/bin/sh
echo "$1" >> "$0.log"
case $1 in
  store) cat > "$0.kept" ;;
  get) cat "$0.kept" 2>/dev/null || { echo credentials not found in native keychain; exit 1; } ;;
  erase) rm "$0.kept" ;;
esac
"""


@pytest.fixture
def logins(tmp_path: Path) -> Credentials:
    return Credentials(str(tmp_path / "docker" / "config.json"))


@pytest.fixture
def drawer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A helper that keeps one login."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/docker-credential-drawer"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return program


def test_the_file_is_below_docker_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", "/somewhere")
    assert config_path() == "/somewhere/config.json"
    monkeypatch.delenv("DOCKER_CONFIG")
    monkeypatch.setenv("HOME", "/home/moby")
    assert config_path() == "/home/moby/.docker/config.json"


@pytest.mark.parametrize(
    ("host", "key"), [(HUB, HUB_KEY), ("127.0.0.1:5000", "127.0.0.1:5000")]
)
def test_a_login_is_kept_read_and_forgotten(
    logins: Credentials, host: str, key: str
) -> None:
    assert logins.get(host) is None
    assert not logins.erase(host)
    assert logins.save(host, MOBY)
    assert json.loads(Path(logins.path).read_text()) == {
        "auths": {key: {"auth": "bW9ieTp3aDphbGU="}}
    }
    assert os.stat(logins.path).st_mode & 0o777 == 0o600
    assert logins.get(host) == MOBY
    assert logins.get("other.example") is None
    assert logins.erase(host)
    assert logins.get(host) is None


def test_other_keys_and_other_logins_stay(logins: Credentials) -> None:
    before = {"detachKeys": "ctrl-q", "auths": {"a.example": {"auth": "YTpi", "x": 1}}}
    write_private(logins.path, json.dumps(before).encode())
    logins.save("b.example", MOBY)
    logins.erase("b.example")
    assert json.loads(Path(logins.path).read_text()) == before


def test_old_names_of_a_registry_are_known(logins: Credentials) -> None:
    entries = {"https://a.example/v1/": {"auth": "YTpi"}, "b.example": {}}
    write_private(logins.path, json.dumps({"auths": entries}).encode())
    assert logins.get("a.example") == Login("a", "b")
    assert logins.get("b.example") is None
    assert logins.erase("a.example")
    assert logins.get("a.example") is None


def test_plain_names_and_identity_tokens_are_read(logins: Credentials) -> None:
    entries = {
        "a": {"username": "u", "password": "p"},
        "b": {"auth": "dTo=", "identitytoken": "t"},
    }
    write_private(logins.path, json.dumps({"auths": entries}).encode())
    assert logins.get("a") == Login("u", "p")
    assert logins.get("b") == Login("u", "", "t")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"auths":[1]}', '{"auths":{"h":3}}', '{"auths":{"h":{"auth":"%"}}}',
     '{"auths":{"h":{"auth":"YWI="}}}'],
)  # fmt: skip
def test_a_damaged_file_is_an_error_and_stays(logins: Credentials, text: str) -> None:
    write_private(logins.path, text.encode())
    with pytest.raises(IntegrityError, match=r"config\.json: "):
        logins.get("h")
    assert Path(logins.path).read_text() == text


def test_a_link_to_the_file_stays_a_link(logins: Credentials, tmp_path: Path) -> None:
    Path(logins.path).parent.mkdir()
    Path(logins.path).symlink_to(tmp_path / "real.json")
    logins.save("h", MOBY)
    assert Path(logins.path).is_symlink()
    assert os.listdir(Path(logins.path).parent) == ["config.json"]
    assert Credentials(str(tmp_path / "real.json")).get("h") == MOBY


def test_nothing_is_half_written(
    logins: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins.save("h", MOBY)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minidocker.credentials.sync_path", fail)
    with pytest.raises(OSError, match="No space"):
        logins.save("other", MOBY)
    assert os.listdir(Path(logins.path).parent) == ["config.json"]
    assert logins.get("h") == MOBY
    assert logins.get("other") is None


def test_two_logins_at_once_are_both_kept(logins: Credentials) -> None:
    hosts = [f"h{n}.example" for n in range(8)]
    threads = [
        threading.Thread(target=logins.save, args=(h, Login(h, "p"))) for h in hosts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [logins.get(h) for h in hosts] == [Login(h, "p") for h in hosts]


@pytest.mark.parametrize(
    "config", [{"credsStore": "drawer"}, {"credHelpers": {"h": "drawer"}}]
)
def test_a_helper_keeps_the_secret(
    logins: Credentials, drawer: Path, config: object
) -> None:
    write_private(logins.path, json.dumps(config).encode())
    assert logins.get("h") is None
    assert not logins.save("h", MOBY), "it does not lie in the file"
    assert "ale" not in Path(logins.path).read_text()
    assert logins.get("h") == MOBY
    asked = json.loads(Path(f"{drawer}.kept").read_text())
    assert asked == {"ServerURL": "h", "Username": "moby", "Secret": "wh:ale"}
    assert logins.erase("h")
    assert logins.get("h") is None
    assert Path(f"{drawer}.log").read_text().split() == [
        "get",
        "store",
        "get",
        "get",
        "erase",
        "get",
    ]


def test_an_identity_token_from_a_helper(logins: Credentials, drawer: Path) -> None:
    write_private(logins.path, b'{"credsStore": "drawer"}')
    Path(f"{drawer}.kept").write_text('{"Username":"<token>","Secret":"t"}')
    assert logins.get("h") == Login(identity_token="t")
    Path(f"{drawer}.kept").write_text("not json")
    with pytest.raises(RegistryError, match="no credentials"):
        logins.get("h")


def test_a_helper_that_fails_or_is_missing(drawer: Path) -> None:
    drawer.write_text("#!/bin/sh\necho locked; exit 3\n")
    with pytest.raises(
        RegistryError, match="docker-credential-drawer get failed: locked"
    ):
        helper("drawer", "get", "h")
    with pytest.raises(RegistryError, match="docker-credential-none does not run"):
        helper("none", "get", "h")
    with pytest.raises(RegistryError, match="no name of a credential helper"):
        helper("../../bin/sh", "get", "h")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Basic realm="r"', [Challenge("basic", "r")]),
        ('bearer realm="https://a/t?x=1,2",service=s', [Challenge("bearer", "https://a/t?x=1,2", "s")]),
        ('Basic realm="a\\"b", Bearer realm=c', [Challenge("basic", 'a"b'), Challenge("bearer", "c")]),
        ('Negotiate, Basic realm="r"', [Challenge("negotiate"), Challenge("basic", "r")]),
        ("", []),
        ('realm="x"', []),
    ],
)  # fmt: skip
def test_challenges(header: str, found: list[Challenge]) -> None:
    assert parse_challenges(header) == found


@given(st.text())
def test_any_header_is_read_without_harm(header: str) -> None:
    for one in parse_challenges(header):
        assert one.scheme


def test_a_secret_is_not_in_a_message() -> None:
    assert "wh:ale" not in repr(MOBY)
