# From book/510-credentials.md. Edit there and tangle, or here and tangle --back.

# %% Credentials: who you are to a registry
"""Logins: the file of Docker's client, credential helpers, challenges and tokens.

``host`` is a registry as in a reference: ``docker.io``, ``127.0.0.1:5000``.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from minidocker.durable import sync_path, write_new
from minidocker.errors import IntegrityError, RegistryError
from minidocker.manifests import clean
from minidocker.oci import HUB
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The nouns
class Login(Record):
    """What proves who somebody is. An identity token stands in for the password."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __repr__(self) -> str:
        return f"Login({self.username!r}, ...)"  # a secret must not reach a message

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header of the basic kind."""
        both = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(both).decode()}"


class Challenge(Record):
    """How a registry wants to be convinced. ``scheme`` is in lower case."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


# %% The file
HUB_KEY = "https://index.docker.io/v1/"


def config_path() -> str:
    """Return the file of logins: below ``DOCKER_CONFIG``, or ``~/.docker``."""
    home = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return f"{home}/config.json"


def key_of(host: str) -> str:
    """Return the name under which a registry is filed."""
    return HUB_KEY if host == HUB else host


def host_in(key: str) -> str:
    """Return the host in a name that may be an address.

    >>> host_in("https://registry.example:5000/v2/"), host_in("127.0.0.1:5000")
    ('registry.example:5000', '127.0.0.1:5000')
    """
    return re.sub("^https?://", "", key).partition("/")[0]


def decode_entry(entry: Mapping[str, Any], where: str) -> Login | None:
    """Return the login of an entry in the file; None for an empty one."""
    if not isinstance(entry, Mapping):
        raise IntegrityError("a login that is no JSON object", where=where)
    token = str(entry.get("identitytoken") or "")
    name, secret = str(entry.get("username") or ""), str(entry.get("password") or "")
    if packed := entry.get("auth"):
        try:
            both = base64.b64decode(str(packed), validate=True).decode()
        except ValueError as why:
            raise IntegrityError("an auth that is no base64", where=where) from why
        name, colon, secret = both.rstrip("\0").partition(":")
        if not colon:
            raise IntegrityError("an auth without a colon", where=where)
    return Login(name, secret, token) if name or token else None


# %% The file
def write_private(path: str, data: bytes) -> None:
    """Replace a file that only its owner may read; whole or not at all."""
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    new = f"{path}.{os.urandom(6).hex()}"
    try:
        write_new(new, data, 0o600)
        sync_path(new)
        os.rename(new, path)
    except BaseException:
        if os.path.exists(new):
            os.unlink(new)
        raise


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the directory of a file, so that two logins do not lose one."""
    import fcntl

    directory = os.path.dirname(os.path.realpath(path))
    os.makedirs(directory, 0o700, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


# %% Helpers
HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NOT_FOUND = "credentials not found"
TOKEN_USER = "<token>"  # noqa: S105 - the word that marks an identity token


def helper(name: str, verb: str, text: str) -> str | None:
    """Ask a helper; None when it has nothing. Raises RegistryError when it fails."""
    program = f"docker-credential-{name}"
    if not HELPER.fullmatch(name):
        raise RegistryError(f'"{clean(name)}" is no name of a credential helper')
    try:
        done = subprocess.run(
            [program, verb],
            input=text.encode(),
            capture_output=True,
            check=False,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as why:
        hint = f"install it, or take it out of {config_path()}"
        raise RegistryError(f"{program} does not run: {why}", hint=hint) from why
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode == 0:
        return said
    if NOT_FOUND in said:
        return None
    said = said or done.stderr.decode(errors="replace").strip()
    raise RegistryError(f"{program} {verb} failed: {clean(said)}")


# %% Helpers
def login_from(helper_said: str, program: str) -> Login | None:
    """Return the login in what a helper said."""
    try:
        found = json.loads(helper_said)
        name, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError) as why:
        raise RegistryError(f"{program} answered no credentials") from why
    if name == TOKEN_USER:
        return Login(identity_token=secret)
    return Login(name, secret) if name or secret else None


# %% All logins
class Credentials:
    """The logins that a configuration file has, or its helpers have."""

    def __init__(self, path: str = "") -> None:
        self.path = path or config_path()

    def read(self) -> dict[str, Any]:
        """Return what is in the file, empty without one."""
        try:
            with open(self.path, encoding="utf-8") as file:
                found = json.load(file)
        except FileNotFoundError:
            return {}
        except ValueError as why:
            raise IntegrityError(f"no JSON: {why}", where=self.path) from why
        if not isinstance(found, dict):
            raise IntegrityError("not a JSON object", where=self.path)
        for key in ("auths", "credHelpers"):
            if not isinstance(found.get(key) or {}, dict):
                raise IntegrityError(f'"{key}" is no JSON object', where=self.path)
        return found

    def helper_for(self, host: str, found: Mapping[str, Any]) -> str:
        """Return the name of the helper that keeps a registry's login, or nothing."""
        own = found.get("credHelpers") or {}
        return str(
            own.get(key_of(host)) or own.get(host) or found.get("credsStore", "")
        )

    def get(self, host: str) -> Login | None:
        """Return the login for a registry, if there is one."""
        found = self.read()
        if name := self.helper_for(host, found):
            said = helper(name, "get", key_of(host))
            return login_from(said, name) if said else None
        entries = found.get("auths") or {}
        for key in (key_of(host), *(k for k in entries if host_in(k) == host)):
            if login := decode_entry(entries.get(key) or {}, self.path):
                return login
        return None

    def save(self, host: str, login: Login) -> bool:
        """Keep a login; say whether it lies in the file for whoever may read it."""
        with locked(self.path):
            found = self.read()
            entry: dict[str, str] = {}
            name = self.helper_for(host, found)
            if name:
                user = TOKEN_USER if login.identity_token else login.username
                secret = login.identity_token or login.password
                ask = {"ServerURL": key_of(host), "Username": user, "Secret": secret}
                helper(name, "store", json.dumps(ask))
            else:
                entry = {"auth": login.basic.removeprefix("Basic ")}
                if login.identity_token:
                    entry["identitytoken"] = login.identity_token
            found["auths"] = {**(found.get("auths") or {}), key_of(host): entry}
            self.write(found)
        return not name

    def erase(self, host: str) -> bool:
        """Forget a login; say whether there was one."""
        with locked(self.path):
            found = self.read()
            name = self.helper_for(host, found)
            had = bool(name) and helper(name, "get", key_of(host)) is not None
            if had:
                helper(name, "erase", key_of(host))
            entries = found.get("auths") or {}
            gone = [k for k in entries if k == key_of(host) or host_in(k) == host]
            if gone:
                kept = {k: v for k, v in entries.items() if k not in gone}
                self.write({**found, "auths": kept})
            return had or bool(gone)

    def write(self, found: Mapping[str, Any]) -> None:
        """Write the file as Docker's client does, indented by tabs."""
        write_private(self.path, json.dumps(found, indent="\t").encode())


# %% Challenges and tokens
PIECE = re.compile(r'([A-Za-z0-9_-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+)))?')


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges in a ``WWW-Authenticate`` header, in order.

    >>> parse_challenges('Bearer realm="https://a/t",service="r", Basic realm="x"')[1]
    Challenge(scheme='basic', realm='x', service='', scope='')
    """
    found: list[dict[str, str]] = []
    for piece in PIECE.finditer(header):
        name, quoted, plain = piece.groups()
        if quoted is None and plain is None:
            found.append({"scheme": name.lower()})
        elif found and name.lower() in Challenge.__match_args__[1:]:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1].setdefault(name.lower(), value)
    return [Challenge(**one) for one in found]


def token_in(data: bytes, where: str) -> str:
    """Return the token that an authorization server sent."""
    try:
        found = json.loads(data)
        token = found.get("token") or found.get("access_token")
    except (ValueError, AttributeError, RecursionError) as why:
        raise RegistryError("the answer has no token", where=where) from why
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise RegistryError("the answer has no token", where=where)
    return token


# %% Challenges and tokens
def scope_of(repository: str, *actions: str) -> str:
    """Return the scope of actions on a repository.

    >>> scope_of("library/alpine", "pull", "push")
    'repository:library/alpine:pull,push'
    """
    return f"repository:{repository}:{','.join(actions)}"
