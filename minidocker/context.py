# From book/33-context.md. Edit there and tangle, or here and tangle --back.

# %% Context: what COPY may read
"""The build context: .dockerignore, sources of COPY and ADD, their digests."""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Iterator

from minidocker.errors import BuildError, DockerfileError, NotFoundError, did_you_mean
from minidocker.linux import Resolve, openat2
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


# %% The nouns
class Pattern(Record):
    """A line of .dockerignore: what it matches, and whether it takes back in."""

    text: str
    keeps: bool
    regex: re.Pattern[str]


class Item(Record):
    """A file, directory or link in a tree; ``path`` is relative to the tree's root."""

    path: str
    info: os.stat_result


class Source(Record):
    """One thing that COPY copies: its path, and its digest as the history shows it."""

    path: str
    is_directory: bool
    digest: str


# %% Wildcards
def glob_regex(glob: str, *, deep: bool) -> re.Pattern[str]:
    """Translate a wildcard pattern; ``deep`` gives ``**`` its meaning.

    >>> bool(glob_regex("**/*.log", deep=True).match("var/log/a.log"))
    True
    >>> bool(glob_regex("*.log", deep=False).match("var/a.log"))
    False
    """
    pieces = {"*": "[^/]*", "?": "[^/]"}
    token = re.compile(r"(\*\*/?)|(\\.)|(\[\^?\]?(?:\\.|[^\]\\])*\])|(.)", re.DOTALL)
    out = ""
    for found in token.finditer(glob):
        stars, escaped, chosen, one = found.groups()
        if stars and deep:
            out += ".*" if found.end() == len(glob) else "(?:.*/)?"
        elif stars:
            out += "[^/]*" + stars[2:]
        elif one == "[":
            raise DockerfileError(f'no closing "]" in "{glob}"')
        else:
            out += chosen or pieces.get(one or "") or re.escape((escaped or one)[-1])
    try:
        return re.compile(out + r"\Z", re.DOTALL)
    except re.error as why:
        raise DockerfileError(f'bad pattern "{glob}"') from why


def has_wildcards(path: str) -> bool:
    """Say whether an unescaped ``*``, ``?`` or ``[`` is in ``path``."""
    return re.search(r"(?:^|[^\\])(?:\\\\)*[*?\[]", path) is not None


# %% .dockerignore
def read_patterns(text: str, where: str = ".dockerignore") -> tuple[Pattern, ...]:
    """Read the text of a .dockerignore: comments, blanks, ``!``, path cleaning."""
    patterns = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        glob = line.strip()
        if not glob or line.startswith("#"):
            continue
        keeps, glob = glob.startswith("!"), glob.removeprefix("!").strip()
        if not glob:
            raise DockerfileError('"!" without a pattern', where=f"{where}:{number}")
        glob = posixpath.normpath(glob).lstrip("/") or "."
        try:
            regex = glob_regex(glob, deep=True)
        except DockerfileError as why:
            raise DockerfileError(why.what, where=f"{where}:{number}") from why
        patterns.append(Pattern(glob, keeps, regex))
    return tuple(patterns)


def deciding_pattern(path: str, patterns: tuple[Pattern, ...]) -> Pattern | None:
    """Return the last pattern that matches ``path`` or a directory above it."""
    steps = path.split("/")
    prefixes = ["/".join(steps[: n + 1]) for n in range(len(steps))]
    for pattern in reversed(patterns):
        if any(pattern.regex.match(prefix) for prefix in prefixes):
            return pattern
    return None


def is_ignored(path: str, patterns: tuple[Pattern, ...]) -> bool:
    """Say whether .dockerignore keeps ``path`` (relative) out of the build.

    >>> lines = read_patterns("*.md\\n!README.md")
    >>> is_ignored("notes.md", lines), is_ignored("README.md", lines)
    (True, False)
    """
    found = deciding_pattern(path, patterns)
    return found is not None and not found.keeps


# %% A tree that one cannot climb out of
IN_ROOT = Resolve.IN_ROOT | Resolve.NO_MAGICLINKS
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
LOOK = os.O_PATH | os.O_CLOEXEC


class SourceTree:
    """A directory to copy from, entered through one descriptor; use it with ``with``.

    ``owned`` says that owners are part of it (an image), not all 0:0 (a context).
    """

    __slots__ = ("fd", "owned", "patterns", "root")

    def __init__(
        self, root: str, patterns: tuple[Pattern, ...] = (), *, owned: bool = False
    ) -> None:
        self.root, self.patterns, self.owned = root, patterns, owned
        try:
            self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as why:
            raise NotFoundError("no such directory", where=root) from why

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int = READ) -> int:
        """Open ``path`` inside the tree; links are resolved inside the tree.

        The caller closes. Raises OSError (ENOENT, ELOOP, EACCES).
        """
        return openat2(self.fd, path.lstrip("/") or ".", flags, resolve=IN_ROOT)

    def look(self, path: str, *, follow: bool) -> os.stat_result:
        """Return the stat of ``path``, of what a link leads to when ``follow``."""
        fd = self.open(path, LOOK if follow else LOOK | os.O_NOFOLLOW)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def real_path(self, path: str) -> str:
        """Return the path without links, relative to the root; "." is the root."""
        fd = self.open(path, LOOK)
        try:
            top, own = (os.readlink(f"/proc/self/fd/{n}") for n in (self.fd, fd))
        finally:
            os.close(fd)
        return os.path.relpath(own, top)

    def link_target(self, path: str) -> str:
        """Return the text of a symbolic link."""
        fd = self.open(path, LOOK | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)

    def read(self, path: str, limit: int = 4 << 20) -> bytes:
        """Return the bytes of a regular file, or raise NotFoundError."""
        try:
            fd = self.open(path)
        except OSError as why:
            raise NotFoundError(f'no file "{path}"', where=self.root) from why
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise NotFoundError(f'"{path}" is not a file', where=self.root)
            return file.read(limit)

    def ignores(self, path: str) -> bool:
        """Say whether a pattern keeps ``path`` out."""
        return bool(self.patterns) and path != "." and is_ignored(path, self.patterns)

    def walk(self, path: str) -> Iterator[Item]:
        """Yield what is below the directory ``path``, sorted, parents first.

        Links are not followed. An ignored directory is left out, and looked into
        only where a pattern might take something back in.
        """
        fd = self.open(path, READ | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as found:
                items = [(e.name, e.stat(follow_symlinks=False)) for e in found]
        finally:
            os.close(fd)
        keeps = any(pattern.keeps for pattern in self.patterns)
        for name, info in sorted(items, key=lambda item: item[0]):
            below = name if path == "." else f"{path}/{name}"
            ignored = self.ignores(below)
            if not ignored:
                yield Item(below, info)
            if stat.S_ISDIR(info.st_mode) and (keeps or not ignored):
                yield from self.walk(below)


# %% Digests
TYPE_FLAGS = {stat.S_IFREG: "0", stat.S_IFLNK: "2", stat.S_IFDIR: "5"}


def tarsum_header(tree: SourceTree, item: Item) -> bytes:
    """Return the fields of a tar header that count for the digest, as one text."""
    kind = stat.S_IFMT(item.info.st_mode)
    if kind not in TYPE_FLAGS:
        what = "neither a file, a directory nor a link"
        raise BuildError(f'cannot copy "{item.path}": {what}')
    link = tree.link_target(item.path) if kind == stat.S_IFLNK else ""
    size = item.info.st_size if kind == stat.S_IFREG else 0
    owner = (item.info.st_uid, item.info.st_gid) if tree.owned else (0, 0)
    text = (
        f"name{item.path}{'/' * (kind == stat.S_IFDIR)}"
        f"mode{stat.S_IMODE(item.info.st_mode)}uid{owner[0]}gid{owner[1]}"
        f"size{size}typeflag{TYPE_FLAGS[kind]}linkname{link}"
        "unamegnamedevmajor0devminor0"
    )
    return text.encode("utf-8", "surrogateescape")


def digest_of(tree: SourceTree, item: Item) -> str:
    """Return Docker's hex digest of one file, link, or directory without content."""
    import hashlib

    total = hashlib.sha256(tarsum_header(tree, item))
    if stat.S_ISREG(item.info.st_mode):
        fd = tree.open(item.path, READ | os.O_NOFOLLOW)
        try:
            while block := os.read(fd, 1 << 20):
                total.update(block)
        finally:
            os.close(fd)
    return total.hexdigest()


def digest_of_list(kind: str, digests: list[str]) -> str:
    """Return ``kind:HEX`` over several digests, in the order given."""
    import hashlib

    return f"{kind}:{hashlib.sha256(','.join(digests).encode()).hexdigest()}"


def digest_of_directory(tree: SourceTree, path: str) -> str:
    """Return ``dir:HEX`` of a directory and all that is below it."""
    items = list(tree.walk(path))
    if path != "." and not tree.ignores(path):
        items.append(Item(path, tree.look(path, follow=False)))
    unsent = directories_of(items, path) - {item.path for item in items}
    digests = [digest_of(tree, item) for item in items]
    return digest_of_list("dir", sorted([*digests, *unsent]))


def directories_of(items: list[Item], top: str) -> set[str]:
    """Return the directories that hold the items, from ``top`` downwards."""
    found = set()
    for item in items:
        above = posixpath.dirname(item.path)
        while above and len(above) >= len(top):
            found.add(above)
            above = posixpath.dirname(above)
    return found


# %% Sources
def missing(tree: SourceTree, path: str) -> BuildError:
    """Return the error for a source that is not there, or is ignored."""
    near = [item.path for item in tree.walk(".") if item.path.count("/") <= 2]
    hint: str | None
    if path in near:
        hint = f'"{path}" is a link that leads to nothing inside of the context'
    elif tree.ignores(path):
        hint = f'.dockerignore has a pattern that keeps "{path}" out'
    else:
        hint = did_you_mean(path, near, other="the path is relative to the context")
    what = "file not found in build context or excluded by .dockerignore"
    return BuildError(f"{what}: stat {path}: file does not exist", hint=hint)


def clean_source(path: str) -> str:
    """Return a source's path relative to its tree; refuse one that climbs out.

    >>> clean_source("/etc/../srv/")
    'srv'
    """
    clean = posixpath.normpath(path.lstrip("/") or ".")
    if clean == ".." or clean.startswith("../"):
        raise BuildError(f"forbidden path outside the build context: {path}")
    return clean


def one_source(tree: SourceTree, path: str) -> Source:
    """Return the file or directory at ``path``; a link counts as what it leads to."""
    try:
        real = tree.real_path(path)
        info = tree.look(real, follow=False)
    except OSError as why:
        raise missing(tree, path) from why
    if stat.S_ISDIR(info.st_mode):
        if tree.ignores(path) and not any(tree.walk(real)):
            raise missing(tree, path)
        return Source(path, True, digest_of_directory(tree, real))
    if tree.ignores(path) or tree.ignores(real):
        raise missing(tree, path)
    return Source(path, False, f"file:{digest_of(tree, Item(real, info))}")


def find_sources(tree: SourceTree, patterns: tuple[str, ...]) -> list[Source]:
    """Return what the sources of a COPY name, in order; wildcards are expanded.

    Raises BuildError for one that is not there or lies outside.
    """
    found: list[Source] = []
    for pattern in patterns:
        if not has_wildcards(pattern):
            found.append(one_source(tree, clean_source(pattern)))
            continue
        regex = glob_regex(clean_source(pattern), deep=False)
        paths = [item.path for item in tree.walk(".") if regex.match(item.path)]
        found += [one_source(tree, path) for path in paths]
    if not found:
        raise BuildError("no source files were specified", hint="no file matches")
    return found


def digest_of_sources(sources: list[Source]) -> str:
    """Return the digest that the history shows: one's own, or ``multi:HEX``."""
    if len(sources) == 1:
        return sources[0].digest
    return digest_of_list("multi", [source.digest for source in sources])


# %% The context itself
def open_context(root: str) -> SourceTree:
    """Open the build context at ``root``; the caller uses it with ``with``."""
    with SourceTree(root) as tree:
        try:
            raw = tree.read(".dockerignore")
        except NotFoundError:
            return SourceTree(root)
    return SourceTree(root, read_patterns(raw.decode("utf-8", "surrogateescape")))
