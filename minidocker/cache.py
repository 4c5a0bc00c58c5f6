# From book/335-cache.md. Edit there and tangle, or here and tangle --back.

# %% Cache: the same step, and why it was not
"""What makes two steps the same: configs, file digests, the first difference."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import zip_longest

from minidocker.archive import sha256_for
from minidocker.context import SMALL, Item, Source, SourceTree
from minidocker.durable import Batch
from minidocker.errors import BuildError
from minidocker.oci import ContainerConfig, hex_of, sha256_text
from minidocker.records import Record
from minidocker.trees import Xattrs


TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash


# %% The nouns
class Held(Record):
    """What the digest of a COPY holds of one file: all that can make it another.

    ``facts`` is ``kind mode uid:gid``, and a digest of extended attributes where there
    are any; ``link`` where a link leads to, ``digest`` the hex tarsum of all of it and
    the content.
    """

    path: str
    facts: str
    link: str
    digest: str


class Miss(Record):
    """The first thing that makes a step another one: what, as it was, as it is."""

    what: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.what} was {self.old}, now {self.new}"


# %% Two steps
COMPARED = ("cmd", "env", "user", "labels", "exposed_ports", "entrypoint", "volumes")


def same_step(ours: ContainerConfig, theirs: ContainerConfig | None) -> bool:
    """Say whether two containers would do the same: Docker's cache comparison."""
    if theirs is None:
        return False
    pairs = ((getattr(ours, name), getattr(theirs, name)) for name in COMPARED)
    return all((mine or None) == (other or None) for mine, other in pairs)


def moment(created: str) -> tuple[str, str]:
    """Return a key that sorts Go's times."""
    seconds, _, rest = created.rstrip("Z").partition(".")
    return seconds, rest.ljust(9, "0")


# %% Digests
TYPE_FLAGS = {
    stat.S_IFREG: "0", stat.S_IFLNK: "2", stat.S_IFCHR: "3", stat.S_IFBLK: "4",
    stat.S_IFDIR: "5", stat.S_IFIFO: "6",
}  # fmt: skip
KINDS = {
    "0": "file", "2": "link", "3": "device", "4": "device", "5": "directory",
    "6": "pipe",
}  # fmt: skip


def facts_of(tree: SourceTree, item: Item) -> str:
    """Return ``kind mode uid:gid`` of a file, and a digest of its attributes if any.

    Raises BuildError for another kind.
    """
    info = item.info
    owner = (info.st_uid, info.st_gid) if tree.owned else (0, 0)
    try:
        text = facts_text(info.st_mode, *owner)
    except KeyError as why:
        what = "neither a file, a directory, a link, a pipe nor a device"
        raise BuildError(f'cannot copy "{item.path}": {what}') from why
    more = tree.attributes(item.path)
    return f"{text} {hex_of(sha256_text(flat(more)))[:12]}" if more else text


def flat(attributes: Xattrs) -> bytes:
    """Return extended attributes as a tarsum has them: name, value, name, value."""
    return b"".join(name + value for name, value in attributes)


@lru_cache
def facts_text(mode: int, uid: int, gid: int) -> str:
    """Return ``kind mode uid:gid``; of ten thousand files most have the same."""
    kind = KINDS[TYPE_FLAGS[stat.S_IFMT(mode)]]
    return f"{kind} {mode & 0o7777:o} {uid}:{gid}"


def tarsum_header(tree: SourceTree, item: Item, link: str) -> bytes:
    """Return the fields of a tar header that count for the digest, as one text."""
    info = item.info
    flag = TYPE_FLAGS[stat.S_IFMT(info.st_mode)]
    owner = (info.st_uid, info.st_gid) if tree.owned else (0, 0)
    numbers = (0, 0)
    if flag in "34":
        numbers = os.major(info.st_rdev), os.minor(info.st_rdev)
    text = (
        f"name{item.path}{'/' if flag == '5' else ''}"
        f"mode{info.st_mode & 0o7777}uid{owner[0]}gid{owner[1]}"
        f"size{info.st_size if flag == '0' else 0}typeflag{flag}linkname{link}"
        f"unamegnamedevmajor{numbers[0]}devminor{numbers[1]}"
    )
    return os.fsencode(text) + flat(tree.attributes(item.path))


# %% Digests
def add_content(total: _Hash, tree: SourceTree, item: Item) -> None:
    """Add a file's bytes to a hash.

    Raises BuildError when it is not the file that was found, or changes meanwhile.
    """
    fd = tree.open_item(item.path)
    size = item.info.st_size
    try:
        if size <= SMALL:
            data = os.read(fd, size + 1)
            total.update(data)
            tree.keep(item.path, data)
            size -= len(data)
        while block := size and os.read(fd, 1 << 18):
            total.update(block)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    if size < 0 or not same_file(item.info, after):
        raise BuildError(f'"{item.path}" was changed while it was read')


# %% Digests
def digest_of(tree: SourceTree, item: Item, index: StatIndex | None = None) -> Held:
    """Return what counts of a file with its digest, read or from the index."""
    facts, mode = facts_of(tree, item), item.info.st_mode
    is_file = stat.S_ISREG(mode)
    known = index.find(item) if index and is_file else None
    if known:
        return Held(item.path, facts, "", known)
    began = time.time_ns()
    link = tree.link_target(item.path) if stat.S_ISLNK(mode) else ""
    total = sha256_for(item.info.st_size)
    total.update(tarsum_header(tree, item, link))
    if is_file:
        add_content(total, tree, item)
    digest = total.hexdigest()
    if is_file and index:
        index.note(item, digest, began)
    return Held(item.path, facts, link, digest)


# %% The stat index
SLACK = 2_000_000_000  # ns: the coarsest clock of a file system is FAT's
MOST_KEPT = 500_000  # files


def stamp_of(info: os.stat_result) -> str:
    """Return what of a stat must be the same for the content to be the same."""
    return (
        f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} "
        f"{info.st_ctime_ns} {info.st_mode}"
    )


def same_file(one: os.stat_result, two: os.stat_result) -> bool:
    """Say whether two stats are of one file that has not been changed between them."""
    return (one.st_ctime_ns, one.st_mtime_ns, one.st_size, one.st_ino) == (
        two.st_ctime_ns,
        two.st_mtime_ns,
        two.st_size,
        two.st_ino,
    )


# %% The stat index
class StatIndex:
    """The digests of a directory's files, by path and stamp, kept in one file.

    The file is read when it is first asked, and staged in ``batch`` by ``save``. A
    damaged one counts as empty.
    """

    __slots__ = ("_known", "batch", "fresh", "path")

    def __init__(self, path: str, batch: Batch) -> None:
        self.path, self.batch = path, batch
        self._known: dict[str, str] | None = None
        self.fresh: dict[str, str] = {}

    @property
    def known(self) -> dict[str, str]:
        """What the file says: ``STAMP DIGEST`` by path."""
        if self._known is None:
            try:
                with open(self.batch.place(self.path), "rb") as file:
                    parts = os.fsdecode(file.read()).split("\0")
            except OSError:
                parts = []
            self._known = dict(zip(parts[::2], parts[1::2], strict=False))
        return self._known

    def find(self, item: Item) -> str | None:
        """Return the digest that was noted for a file as it is now."""
        value = self.known.get(item.path, "")
        stamp, _, digest = value.rpartition(" ")
        if len(digest) != 64 or stamp != stamp_of(item.info):
            return None
        return digest

    def note(self, item: Item, digest: str, began: int) -> None:
        """Keep the digest of a file that was read from ``began`` on (ns).

        Not when its times are too recent to be believed.
        """
        if max(item.info.st_mtime_ns, item.info.st_ctime_ns) < began - SLACK:
            self.fresh[item.path] = f"{stamp_of(item.info)} {digest}"

    def save(self) -> None:
        """Stage the file if there is something new; forget all of one too large."""
        if not self.fresh:
            return
        kept = self.known if len(self.known) < MOST_KEPT else {}
        self._known = kept | self.fresh
        self.fresh = {}
        flat = [part for pair in self._known.items() for part in pair]
        self.batch.stage(self.path, os.fsencode("\0".join(flat)))


# %% All of a COPY
def digest_of_list(kind: str, digests: Iterable[str]) -> str:
    """Return ``kind:HEX`` over several digests, in the order given."""
    return f"{kind}:{hex_of(sha256_text(','.join(digests).encode()))}"


def directories_of(items: Iterable[Item], top: str) -> set[str]:
    """Return the directories that hold the items, from ``top`` downwards."""
    found: set[str] = set()
    for above in {item.path.rpartition("/")[0] for item in items}:
        one = above
        while one and len(one) >= len(top) and one not in found:
            found.add(one)
            one = posixpath.dirname(one)
    return found


def digest_of_source(
    tree: SourceTree, source: Source, index: StatIndex | None = None
) -> tuple[str, list[Held]]:
    """Return ``file:HEX`` or ``dir:HEX`` of a source, and what went into it."""
    items = list(source.items)
    if source.is_directory and source.real != "." and not tree.ignores(source.real):
        items.append(Item(source.real, tree.look(source.real, follow=False)))
    sha256_for(sum(item.info.st_size for item in items))  # many small ones are much
    parts = [digest_of(tree, item, index) for item in items]
    if not source.is_directory:
        return f"file:{parts[0].digest}", parts
    unsent = directories_of(items, source.real) - {item.path for item in items}
    digests = [part.digest for part in parts]
    return digest_of_list("dir", sorted([*digests, *unsent])), parts


def digest_of_sources(digests: list[str]) -> str:
    """Return the digest that the history shows: one's own, or ``multi:HEX``."""
    return digests[0] if len(digests) == 1 else digest_of_list("multi", digests)


# %% All of a COPY
def write_manifest(parts: Iterable[Held]) -> bytes:
    """Return what went into a COPY as bytes; no field can hold a NUL."""
    return os.fsencode(
        "\0".join(f"{p.path}\0{p.facts}\0{p.link}\0{p.digest}" for p in parts)
    )


def read_manifest(data: bytes) -> dict[str, Held]:
    """Return what went into a COPY, by path; damaged bytes are an empty one."""
    texts = os.fsdecode(data).split("\0")
    rows = zip(texts[::4], texts[1::4], texts[2::4], texts[3::4], strict=False)
    return {row[0]: Held(*row) for row in rows}


# %% Why it missed
COPIED = r"(?:file|dir|multi):[0-9a-f]{64}"


def arguments_in(cmd: tuple[str, ...]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Split the build arguments from the command of a RUN.

    >>> arguments_in(("|1", "A=b", "/bin/sh", "-c", "x"))
    ({'A': 'b'}, ('/bin/sh', '-c', 'x'))
    """
    if not cmd or not re.fullmatch(r"\|[0-9]+", cmd[0]):
        return {}, cmd
    count = int(cmd[0][1:])
    pairs = (text.partition("=") for text in cmd[1 : count + 1])
    return {name: value for name, _, value in pairs}, cmd[count + 1 :]


def word_of(config: ContainerConfig) -> str:
    """Return the instruction that a step's command belongs to."""
    _, cmd = arguments_in(config.cmd or ())
    _, nop, comment = " ".join(cmd).partition("#(nop) ")
    return comment.split()[0] if nop and comment.split() else "RUN"


def first_pair(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[str, str, str]:
    """Return the first name, sorted, whose values differ, and the values."""
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            return name, old.get(name, "not set"), new.get(name, "not set")
    return "", "", ""


def shown(text: str, most: int = 60) -> str:
    """Return a text for a line of progress, shortened in the middle."""
    text = text.replace("/bin/sh -c ", "").replace("#(nop) ", "").strip()
    text = re.sub(COPIED, lambda found: found[0][:17], text).replace("\n", "\\n")
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


# %% Why it missed
def other_file(old: Mapping[str, Held], new: Mapping[str, Held]) -> Miss | None:
    """Return what is different in two manifests, at the first path that is."""
    for path in sorted({*old, *new}):
        was, now = old.get(path), new.get(path)
        if was is None or now is None:
            states = ("absent", "there") if now else ("there", "absent")
            return Miss(f'"{path}"', *states)
        if was.facts != now.facts:
            facts = was.facts.split(), now.facts.split()
            pairs = zip_longest(*facts, fillvalue="none")
            names = ("kind", "mode", "owner", "attributes")
            for name, (before, after) in zip(names, pairs, strict=False):
                if before != after:
                    return Miss(f'{name} of "{path}"', before, after)
        if was.link != now.link:
            return Miss(f'target of "{path}"', was.link, now.link)
        if was.digest != now.digest:
            return Miss(f'content of "{path}"', was.digest[:12], now.digest[:12])
    return None


def other_step(
    ours: ContainerConfig,
    theirs: ContainerConfig,
    manifests: tuple[Mapping[str, Held], Mapping[str, Held]] = ({}, {}),
) -> Miss:
    """Return the first difference of a step from an older one.

    ``manifests`` are those of the older one and of ours.
    """
    (old_args, old), (new_args, new) = (
        arguments_in(config.cmd or ()) for config in (theirs, ours)
    )
    if old_args != new_args:
        name, *values = first_pair(old_args, new_args)
        return Miss(f"argument {name}", *values)
    before, after = " ".join(old), " ".join(new)
    if re.sub(COPIED, "", before) == re.sub(COPIED, "", after) and before != after:
        digests = [re.findall(COPIED, text)[-1][:17] for text in (before, after)]
        return other_file(*manifests) or Miss("digest", *digests)
    if old != new:
        return Miss("instruction", shown(before), shown(after))
    for field in COMPARED:
        was, now = getattr(theirs, field), getattr(ours, field)
        if (was or None) != (now or None):
            return Miss(field, shown(str(was)), shown(str(now)))
    return Miss("nothing", "the same", "the same")


# %% Why it missed
def nearest(
    ours: ContainerConfig, older: Mapping[str, tuple[str, ContainerConfig]]
) -> str | None:
    """Return the id of the older step to compare with: the likest, then the newest.

    ``older`` gives time and config by image id.
    """

    def likeness(id: str) -> tuple[bool, bool, tuple[str, str]]:
        created, config = older[id]
        texts = [
            re.sub(COPIED, "", " ".join(arguments_in(one.cmd or ())[1]))
            for one in (ours, config)
        ]
        return word_of(config) == word_of(ours), texts[0] == texts[1], moment(created)

    return max(older, key=likeness, default=None)
