# From book/352-addresses.md. Edit there and tangle, or here and tangle --back.

# %% Addresses: what ADD fetches, and need not fetch again
"""What an ADD fetches from an address, and keeps as long as its server stands by it."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from minidocker.context import SourceTree
from minidocker.durable import write_new
from minidocker.errors import (
    BuildError,
    DockerfileError,
    IntegrityError,
    UnsupportedError,
)
from minidocker.oci import hex_of, is_digest, sha256_text
from minidocker.outside import emptied
from minidocker.records import Record, json_text, parse_json, plain
from minidocker.stage import Workshop
from minidocker.trees import remove_path


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% The noun: what came
SCHEMES = ("http://", "https://")
FOREIGN = ("git://", "ssh://", "ftp://", "git@")
IDLE = 30.0  # seconds
MOST_REDIRECTS = 10
LONGEST_BODY = 16 << 30
PIECE = 1 << 18


class Fetched(Record):
    """What an address had: the file's digest, its time in seconds, 0 for none.

    ``etag`` and ``modified`` are what the server recognises it by, in its words.
    """

    digest: str
    when: int
    etag: str = ""
    modified: str = ""


# %% The noun: what came
def name_in(url: str) -> str:
    """Return the file name that an address ends with; "" for none.

    >>> name_in("https://example.org/a/b.tar.gz?x=/1"), name_in("http://example.org/")
    ('b.tar.gz', '')
    """
    return posixpath.basename(url.partition("://")[2].partition("/")[2].split("?")[0])


def name_for(url: str, to: str) -> str:
    """Return the name that a file of an address gets.

    Raises UnsupportedError for a repository, BuildError where nothing names it.
    """
    if url.startswith(FOREIGN) or url.partition("?")[0].endswith(".git"):
        kind = "ftp" if url.startswith("ftp:") else "a repository"
        hint = "fetch it beforehand, or in a RUN"
        raise UnsupportedError(f'ADD of {kind} is not supported: "{url}"', hint=hint)
    name = name_in(url)
    if not name and to.endswith("/"):
        raise BuildError(f'"{url}" has no file name', hint=f"name the file: {to}NAME")
    return name or "download"


def check_checksum(text: str, written: str) -> str:
    """Return a ``--checksum`` that can be checked; ``written`` is it in the file.

    Raises DockerfileError.
    """
    if not is_digest(text):
        hint = "sha256: and 64 hexadecimal digits"
        raise DockerfileError(f'bad checksum "{text}"', hint=hint, word=written)
    return text


# %% Asking
def fetch(
    url: str, path: str, checksum: str = "", known: Fetched | None = None
) -> Fetched:
    """Write what is at ``url`` to ``path``; or return ``known``, if it is still that.

    Raises BuildError, and IntegrityError for another digest than ``checksum``.
    """
    import urllib3

    client = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=IDLE, read=IDLE),
        retries=urllib3.Retry(total=MOST_REDIRECTS, connect=2, read=0, other=0),
    )
    asked = conditions(known) if known else {}
    try:
        answer = client.request("GET", url, headers=asked, preload_content=False)
        if known and answer.status == 304:
            return known
        if answer.status != 200:
            raise BuildError(f'GET "{url}" answers {answer.status}')
        digest = pour_body(answer, path, url)
    except urllib3.exceptions.HTTPError as why:
        raise BuildError(f'GET "{url}" failed: {reason_of(why)}') from why
    finally:
        client.clear()
    if checksum and digest != checksum:
        raise IntegrityError(f"it is {digest}, not {checksum}", where=url)
    return described(digest, answer.headers)


def conditions(known: Fetched) -> dict[str, str]:
    """Return the headers that ask for a file only if it is not the known one."""
    asked = {"If-None-Match": known.etag, "If-Modified-Since": known.modified}
    return {name: text for name, text in asked.items() if text}


def described(digest: str, headers: Mapping[str, str]) -> Fetched:
    """Return what the headers of an answer say of its body."""
    modified = headers.get("Last-Modified", "")
    found = Fetched(digest, time_of(modified))
    if "no-store" in headers.get("Cache-Control", "").lower():
        return found
    return found.replace(etag=headers.get("ETag", ""), modified=modified)


def reason_of(why: Exception) -> str:
    """Return the last words of an error of urllib3: what the system said, as a rule."""
    inner = getattr(why, "reason", None) or why
    text = str(inner.args[0] if inner.args else inner)
    return re.sub(r".*(?:: |\] )", "", text).rstrip(")")


def pour_body(answer: Any, path: str, url: str) -> str:
    """Write the body of an answer to ``path``; return its digest."""
    from hashlib import sha256

    total, size = sha256(), 0
    with open(path, "wb") as file:
        for data in answer.stream(PIECE, decode_content=False):
            size += len(data)
            if size > LONGEST_BODY:
                raise BuildError(f'"{url}" has no end: {LONGEST_BODY >> 30} GiB came')
            total.update(data)
            file.write(data)
    return f"sha256:{total.hexdigest()}"


def time_of(header: str) -> int:
    """Return the seconds that a date of HTTP says; 0 when it says none."""
    from email.utils import parsedate_to_datetime

    try:
        return max(0, int(parsedate_to_datetime(header).timestamp()))
    except (ValueError, TypeError, IndexError):
        return 0


# %% Keeping
NOTE = "note"


def home_of(shop: Workshop, url: str, checksum: str) -> str:
    """Return the directory where what an address had is kept."""
    name = hex_of(sha256_text(f"{checksum} {url}".encode()))
    return f"{shop.layers.root}/buildcache/addresses/{name}"


def taken(home: str, path: str) -> Fetched | None:
    """Link what is kept to ``path``, and say what it is; None for nothing whole."""
    import hashlib

    try:
        with open(f"{home}/{NOTE}", encoding="utf-8") as note:
            known = Fetched(**parse_json(note.read()))
        os.link(f"{home}/{hex_of(known.digest)}", path)
        os.utime(home)  # used now
    except (FileNotFoundError, ValueError, TypeError):
        return None
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() == hex_of(known.digest):
            return known
    os.unlink(path)
    remove_path(home)
    return None


def keep(shop: Workshop, home: str, path: str, found: Fetched) -> None:
    """Keep a body, and forget the one before.

    Nothing is kept on a file system without links, or while somebody prunes.
    """
    note, name = shop.layers.batch.new_path(), hex_of(found.digest)
    write_new(note, json_text(plain(found)))
    try:
        os.makedirs(home, 0o700, exist_ok=True)
        if not os.path.exists(f"{home}/{name}"):
            os.link(path, f"{home}/{name}")
        os.rename(note, f"{home}/{NOTE}")
        for other in set(os.listdir(home)) - {name, NOTE}:
            os.unlink(f"{home}/{other}")
    except OSError:
        remove_path(note)


# %% Keeping
def bring(shop: Workshop, url: str, checksum: str, path: str) -> None:
    """Put what an address has to ``path``, from what is kept where that still holds."""
    home = home_of(shop, url, checksum)
    known = None if shop.options.no_cache else taken(home, path)
    if known and checksum:
        shop.progress(" ---> Using what was fetched before")
        return
    shop.progress(f"Downloading {url}")
    new = shop.layers.batch.new_path()
    try:
        found = fetch(url, new, checksum, known)
        if found is known:
            shop.progress(" ---> Not modified, using what was fetched before")
            return
        os.chmod(new, 0o600)
        os.utime(new, (found.when, found.when))
        os.rename(new, path)
        if checksum or found.etag or found.modified:
            keep(shop, home, path, found)
    finally:
        remove_path(new)


@contextmanager
def tree_of_address(
    shop: Workshop, url: str, to: str, checksum: str = ""
) -> Iterator[tuple[SourceTree, str]]:
    """Give a tree with what an address has, and its name there."""
    name = name_for(url, to)
    with emptied(shop) as place:
        bring(shop, url, checksum, f"{place}/{name}")
        with SourceTree(place, lasting=False) as tree:
            yield tree, name
