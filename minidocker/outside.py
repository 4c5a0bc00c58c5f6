# From book/350-outside.md. Edit there and tangle, or here and tangle --back.

# %% Outside: sources that are not in the context
"""Trees to copy from that are not the context: stages, images, texts, addresses."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager

from minidocker.commits import writable_layer
from minidocker.context import SourceTree, open_context
from minidocker.errors import (
    BuildError,
    DockerfileError,
    IntegrityError,
    MinidockerError,
    NotFoundError,
    UnsupportedError,
    did_you_mean,
)
from minidocker.expansion import expand_document
from minidocker.lines import Heredoc
from minidocker.oci import is_digest, parse_reference
from minidocker.records import Record
from minidocker.stage import Stage, Workshop


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% A stage, an image, a named context
IMAGE_SCHEME = "docker-image://"


def context_of(shop: Workshop, name: str) -> str:
    """Return what the command line puts in the place of a name; "" for nothing."""
    contexts = shop.options.contexts
    if not contexts or name.lower() in contexts:
        return contexts.get(name.lower(), "")
    try:
        whole = parse_reference(name).tagged.familiar
    except MinidockerError:  # no name of an image
        return ""
    return contexts.get(whole.removesuffix(":latest"), "") or contexts.get(whole, "")


def replaced_image(shop: Workshop, name: str) -> str | None:
    """Return the image that the command line puts in the place of ``name``."""
    given = context_of(shop, name)
    if not given.startswith(IMAGE_SCHEME):
        return None
    return shop.find_image(given.removeprefix(IMAGE_SCHEME))


def refuse_context(name: str, given: str) -> None:
    """Refuse a named context that is neither a directory nor an image."""
    if given.startswith(IMAGE_SCHEME):
        return
    if "://" in given or given.startswith("git@"):
        hint = "a directory, docker-image://NAME, or oci-layout://DIRECTORY[:TAG]"
        raise UnsupportedError(f'the context "{given}" is not supported', hint=hint)
    if not os.path.isdir(given):
        what = f'the context "{name}" is no directory: "{given}"'
        raise NotFoundError(what, hint=f"--build-context {name}=DIRECTORY")


@contextmanager
def named_context(shop: Workshop, name: str) -> Iterator[SourceTree | None]:
    """Give the directory that the command line calls ``name``; None where it has none.

    Raises UnsupportedError, NotFoundError.
    """
    given = context_of(shop, name) or IMAGE_SCHEME
    refuse_context(name, given)
    if given.startswith(IMAGE_SCHEME):
        yield None
        return
    with open_context(given) as tree:
        yield tree


# %% A stage, an image, a named context
@contextmanager
def tree_from(shop: Workshop, name: str) -> Iterator[SourceTree]:
    """Give the tree that ``--from=name`` means, for a ``with`` block."""
    with named_context(shop, name) as context:
        if context:
            yield context
            return
    stage = None if context_of(shop, name) else shop.find_stage(name)
    image = stage.image if stage else replaced_image(shop, name)
    if image is None:
        try:
            image = shop.find_image(name)
        except NotFoundError as why:
            stages = (stage.name for stage in shop.stages if stage.name)
            why.hint = did_you_mean(name, stages) or why.hint
            raise
    with (
        writable_layer(shop, image) as layer,
        shop.layers.rw_mounted(layer) as root,
        SourceTree(root, owned=True) as tree,
    ):
        yield tree


# %% Texts
@contextmanager
def emptied(shop: Workshop) -> Iterator[str]:
    """Give an empty directory in the store; it is gone after the ``with`` block."""
    import shutil

    path = shop.layers.batch.new_path()
    os.mkdir(path, 0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def text_of(document: Heredoc, shop: Workshop, stage: Stage) -> str:
    """Return a here-document's text with its variables; quotes stay."""
    if not document.expands:
        return document.content
    return expand_document(document.content, shop.variables(stage))


@contextmanager
def tree_of_texts(
    shop: Workshop, stage: Stage, documents: tuple[Heredoc, ...]
) -> Iterator[SourceTree]:
    """Give a tree with one file for each here-document."""
    with emptied(shop) as place:
        for document in documents:
            path = f"{place}/{document.name}"
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text_of(document, shop, stage))
            os.chmod(path, 0o644)
            os.utime(path, (shop.options.epoch or 0,) * 2)
        with SourceTree(place, lasting=False) as tree:
            yield tree


# %% Addresses
SCHEMES = ("http://", "https://")
FOREIGN = ("git://", "ssh://", "ftp://", "git@")
IDLE = 30.0  # seconds
MOST_REDIRECTS = 10
LONGEST_BODY = 16 << 30
PIECE = 1 << 18


class Fetched(Record):
    """A file that came from an address: where it is, and its time in seconds."""

    path: str
    when: int


def name_in(url: str) -> str:
    """Return the file name that an address ends with; "" for none.

    >>> name_in("https://example.org/a/b.tar.gz?x=/1"), name_in("http://example.org/")
    ('b.tar.gz', '')
    """
    return posixpath.basename(url.partition("://")[2].partition("/")[2].split("?")[0])


def check_checksum(text: str, written: str) -> str:
    """Return a ``--checksum`` that can be checked; ``written`` is it in the file.

    Raises DockerfileError.
    """
    if not is_digest(text):
        hint = "sha256: and 64 hexadecimal digits"
        raise DockerfileError(f'bad checksum "{text}"', hint=hint, word=written)
    return text


# %% Addresses
def fetch(url: str, path: str, checksum: str = "") -> int:
    """Write what is at ``url`` to ``path``; return its time in seconds, or 0.

    Raises BuildError, and IntegrityError for another digest than ``checksum``.
    """
    import urllib3

    client = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=IDLE, read=IDLE),
        retries=urllib3.Retry(total=MOST_REDIRECTS, connect=2, read=0, other=0),
    )
    try:
        answer = client.request("GET", url, preload_content=False)
        if answer.status != 200:
            raise BuildError(f'GET "{url}" answers {answer.status}')
        found = pour_body(answer, path, url)
    except urllib3.exceptions.HTTPError as why:
        raise BuildError(f'GET "{url}" failed: {reason_of(why)}') from why
    finally:
        client.clear()
    if checksum and found != checksum:
        raise IntegrityError(f"it is {found}, not {checksum}", where=url)
    return time_of(answer.headers.get("Last-Modified", ""))


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


# %% Addresses
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


@contextmanager
def tree_of_address(
    shop: Workshop, url: str, to: str, checksum: str = ""
) -> Iterator[tuple[SourceTree, str]]:
    """Give a tree with what an address has, and its name there."""
    name = name_for(url, to)
    shop.progress(f"Downloading {url}")
    with emptied(shop) as place:
        when = fetch(url, f"{place}/{name}", checksum)
        os.chmod(f"{place}/{name}", 0o600)
        os.utime(f"{place}/{name}", (when, when))
        with SourceTree(place, lasting=False) as tree:
            yield tree, name
