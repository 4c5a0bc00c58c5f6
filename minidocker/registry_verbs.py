# From book/640-registry-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Registry verbs: pull, push, login, logout
"""The commands that bring images from registries and send them there."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.container_verbs import Needs, open_engine
from minidocker.credentials import Credentials, Login, host_in, scope_of
from minidocker.engine import Engine
from minidocker.errors import (
    IntegrityError,
    MinidockerError,
    NotFoundError,
    RegistryError,
)
from minidocker.exchange import Event, Tell, client_for
from minidocker.flags import LIST, MAX_SIZE, TEXT, Command, Flag, Given, size
from minidocker.manifests import DOCUMENT_LIMIT, clean, parse_platform
from minidocker.oci import HUB, TAG, Reference, is_hex, matches, parse_reference
from minidocker.registry import Client
from minidocker.trust import add_insecure
from minidocker.wire import DeniedError


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% What is told
class Lines:
    """Print what happens, a line for each thing; bytes are not counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        if event.total is None:
            with self._lock:
                print(f"{event.id}: {event.status}", flush=True)


# %% What is told
class Bars:
    """Draw a bar for each layer; what concerns none is a line above."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

        word = TextColumn("{task.fields[status]:<20}")
        name = TextColumn("{task.description}")
        self.progress = Progress(name, word, BarColumn(30), DownloadColumn())
        self._tasks: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if len(event.id) != 12 or not is_hex(event.id):
                line = f"{event.id}: {event.status}"
                self.progress.console.print(line, markup=False, highlight=False)
                return
            if event.id not in self._tasks:
                add = self.progress.add_task
                self._tasks[event.id] = add(event.id, total=None, status="")
            more: dict[str, Any] = {"status": event.status}
            if event.total is not None:
                more |= {"total": event.total, "completed": event.done}
            self.progress.update(self._tasks[event.id], **more)


@contextmanager
def telling(*, quiet: bool) -> Iterator[Tell]:
    """Yield what hears of events: bars on a terminal, lines elsewhere."""
    if quiet:
        yield lambda event: None
    elif os.isatty(1):
        bars = Bars()
        with bars.progress:
            yield bars
    else:
        yield Lines()


# %% All tags
NEXT = re.compile(r'<([^>]*)>\s*;[^,]*rel="?next"?')
PAGES = 100


def list_tags(client: Client, repository: str) -> list[str]:
    """Return all tags of a repository, in the registry's order; at most 100 pages."""
    where, found = f"{client.registry}/{repository}", list[str]()
    path, scope = f"/v2/{repository}/tags/list", scope_of(repository, "pull")
    for _ in range(PAGES):
        data, headers = client.read(path, DOCUMENT_LIMIT, scope=scope, where=where)
        try:
            found += [str(tag) for tag in json.loads(data)["tags"] or ()]
        except (ValueError, KeyError, TypeError, RecursionError) as why:
            raise IntegrityError("no list of tags", where=where) from why
        following = NEXT.search(headers.get("Link", ""))
        if not following:
            return found
        path = client.url(following[1], sender=client.url(path))
    raise IntegrityError(f"a list of tags of over {PAGES} pages", where=where)


def names_to_pull(client: Client, reference: Reference) -> list[Reference]:
    """Return the references of all tags of a repository (``--all-tags``)."""
    tags = list_tags(client, reference.repository)
    for tag in tags:
        if not matches(TAG, tag):
            raise IntegrityError(f'"{clean(tag)}" is no tag', where=reference.name)
    return [reference.replace(tag=tag) for tag in tags]


# %% Pull and push
INSECURE_FLAG = Flag(
    "insecure-registry", "HOST[:PORT] or NETWORK to ask without certificate", takes=LIST
)


def whole_name(reference: Reference) -> str:
    """Return a reference with its registry, also where people leave it out.

    >>> whole_name(parse_reference("alpine"))
    'docker.io/library/alpine'
    """
    tail = reference.familiar.removeprefix(reference.name)
    return f"{reference.registry}/{reference.repository}{tail}"


def named(given: Given, *, quiet: bool) -> Reference:
    """Return the reference that was given, with Docker's tag where it has none."""
    reference = parse_reference(given.args[0])
    if given.on("all-tags"):
        if reference.tag or reference.digest:
            raise MinidockerError("tag can't be used with --all-tags/-a")
        return reference
    if not reference.tag and not reference.digest and not quiet:
        print("Using default tag: latest", flush=True)
    return reference.tagged


def pull(given: Given) -> int:
    """``pull [OPTIONS] NAME[:TAG|@DIGEST]``"""
    quiet, text = given.on("quiet"), given.text("platform")
    add_insecure(given.list(INSECURE_FLAG.name))
    platform = parse_platform(text) if text else None
    reference = named(given, quiet=quiet)
    wanted = [reference]
    if given.on("all-tags"):
        wanted = names_to_pull(client_for(reference.registry), reference)
    engine = open_engine(given, Needs.MOUNTS)
    engine.max_size, news = size(given, MAX_SIZE.name), False
    for one in wanted:
        with telling(quiet=quiet) as tell:
            found = engine.pull(one, tell, platform)
        news = news or found.newer
        if not quiet:
            print(f"Digest: {found.digest}", flush=True)
    if not quiet:
        word = "Downloaded newer image" if news else "Image is up to date"
        print(f"Status: {word} for {reference}")
    print(whole_name(reference))
    return 0


# %% Pull and push
def tags_here(engine: Engine, reference: Reference) -> list[Reference]:
    """Return the names of a repository that are here; NotFoundError for none."""
    names = engine.images.names.read().get(reference.name, {})
    found = [parse_reference(name) for name in sorted(names) if "@" not in name]
    if not found:
        what = f"an image does not exist locally with the tag: {reference.name}"
        raise NotFoundError(what, hint="`minidocker tag` gives it the name")
    return found


def push(given: Given) -> int:
    """``push [OPTIONS] NAME[:TAG]``"""
    quiet = given.on("quiet")
    add_insecure(given.list(INSECURE_FLAG.name))
    reference = named(given, quiet=quiet)
    if reference.digest:
        raise MinidockerError("cannot push a digest reference")
    engine = open_engine(given, Needs.MOUNTS)
    place = f"{reference.registry}/{reference.repository}"
    if not quiet:
        print(f"The push refers to repository [{place}]", flush=True)
    for one in tags_here(engine, reference) if given.on("all-tags") else [reference]:
        with telling(quiet=quiet) as tell:
            sent = engine.push(one, tell)
        if not quiet:
            print(f"{one.tag}: digest: {sent.digest} size: {sent.size}", flush=True)
    if quiet:
        print(whole_name(reference))
    return 0


# %% Login and logout
UNENCRYPTED = """\
WARNING! Your password will be stored unencrypted in {path}.
Configure a credential helper to remove this warning."""
INSECURE = "WARNING! Using --password via the CLI is insecure. Use --password-stdin."


def server(given: Given) -> str:
    """Return the registry that was given; Docker's hub when there is none."""
    host = host_in(given.args[0]) if given.args else HUB
    return HUB if host == f"index.{HUB}" else host


def secret(given: Given) -> str:
    """Return the password that was given in one of three ways, or nothing.

    Raises MinidockerError when two were given, or a name is missing.
    """
    text = given.text("password")
    if not given.on("password-stdin"):
        if text:
            print(INSECURE, file=sys.stderr)
        return text
    if text:
        raise MinidockerError("--password and --password-stdin are mutually exclusive")
    if not given.text("username"):
        raise MinidockerError("must provide --username with --password-stdin")
    return sys.stdin.read().rstrip("\r\n")


def ask(name: str, password: str) -> Login:
    """Ask on the terminal for what is missing."""
    from getpass import getpass

    if (not name or not password) and not os.isatty(0):
        what = "cannot perform an interactive login from a non TTY device"
        raise MinidockerError(what, hint="--username and --password-stdin")
    if not name:
        print("Username: ", end="", flush=True)
        name = sys.stdin.readline().strip()
    password = password or getpass("Password: ")
    if not name or not password:
        raise MinidockerError("a name and a password are needed")
    return Login(name, password)


# %% Login and logout
def login(given: Given) -> int:
    """``login [OPTIONS] [SERVER]``"""
    host, credentials = server(given), Credentials()
    add_insecure(given.list(INSECURE_FLAG.name))
    name, password = given.text("username"), secret(given)
    known = None if name or password else credentials.get(host)
    if known:
        print("Authenticating with existing credentials...", flush=True)
    one = known or ask(name, password)
    try:
        Client(host, one).check_login()
    except DeniedError as why:
        hint = "is the password right?"
        raise RegistryError(why.what, where=why.where, hint=hint) from why
    if credentials.save(host, one):
        print(UNENCRYPTED.format(path=credentials.path), file=sys.stderr)
    print("Login Succeeded")
    return 0


def logout(given: Given) -> int:
    """``logout [SERVER]``"""
    host = server(given)
    if Credentials().erase(host):
        print(f"Removing login credentials for {host}")
    else:
        print(f"Not logged in to {host}")
    return 0


# %% The table
QUIET = Flag("quiet", "Suppress verbose output", "q")
UNTRUSTED = Flag("disable-content-trust", "Skip image verification (always)")
COMMANDS = (
    Command(
        "pull", "[OPTIONS] NAME[:TAG|@DIGEST]", "Download an image from a registry",
        pull,
        (
            Flag("all-tags", "Download all tagged images in the repository", "a"),
            UNTRUSTED,
            INSECURE_FLAG,
            MAX_SIZE,
            Flag("platform", "Which image, if there are several", takes=TEXT),
            QUIET,
        ),
        least=1, most=1, example="minidocker pull 127.0.0.1:5000/web:v1",
    ),
    Command(
        "push", "[OPTIONS] NAME[:TAG]", "Upload an image to a registry", push,
        (
            Flag("all-tags", "Push all tags of an image", "a"),
            UNTRUSTED, INSECURE_FLAG, QUIET,
        ),
        least=1, most=1, example="minidocker push 127.0.0.1:5000/web:v1",
    ),
    Command(
        "login", "[OPTIONS] [SERVER]", "Authenticate to a registry", login,
        (
            INSECURE_FLAG,
            Flag("password", "Password", "p", TEXT),
            Flag("password-stdin", "Take the password from stdin"),
            Flag("username", "Username", "u", TEXT),
        ),
        most=1,
    ),
    Command("logout", "[SERVER]", "Log out from a registry", logout, most=1),
)  # fmt: skip
