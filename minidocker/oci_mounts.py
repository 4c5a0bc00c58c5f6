# From book/470-oci-mounts.md. Edit there and tangle, or here and tangle --back.

# %% Mounts in a bundle: forty words for a dozen bits
"""The mounts and devices of an OCI bundle as steps of a plan."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from minidocker.calls import SysError
from minidocker.cgroups import Group
from minidocker.destinations import (
    directory_in_root,
    magic,
    open_if_there,
    open_in_root,
    place_for,
)
from minidocker.errors import RuntimeFault
from minidocker.idmaps import IdRange, user_namespace
from minidocker.mounts import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    MOUNT_WORDS,
    OPEN_TREE_CLONE,
    MountAttr,
    MountFlags,
    mount_setattr,
    move_mount,
    open_tree,
)
from minidocker.namespaces import Filesystem, MountStep, str_of
from minidocker.records import Record
from minidocker.trees import copy_tree


# %% Words
class Words(Record):
    """What a list of mount options means. ``below`` holds for all mounts below too.

    Of ``clear`` and ``clear_below`` the flags are taken away. ``idmap`` is "idmap",
    "ridmap" or nothing; ``copy_up``: the new tmpfs begins with what it covers.
    """

    flags: MountFlags = MountFlags(0)
    clear: MountFlags = MountFlags(0)
    propagation: tuple[MountFlags, ...] = ()
    below: MountAttr = MountAttr(0)
    clear_below: MountAttr = MountAttr(0)
    data: str = ""
    copy_up: bool = False
    idmap: str = ""


CLEARS = {
    "async": "sync", "atime": "noatime", "dev": "nodev", "diratime": "nodiratime",
    "exec": "noexec", "loud": "silent", "noacl": "acl", "noiversion": "iversion",
    "nolazytime": "lazytime", "nomand": "mand", "norelatime": "relatime",
    "nostrictatime": "strictatime", "rw": "ro", "suid": "nosuid",
    "symfollow": "nosymfollow",
}  # fmt: skip


# %% Words
PROPAGATION = {
    "private": MountFlags.PRIVATE, "rprivate": MountFlags.PRIVATE | MountFlags.REC,
    "shared": MountFlags.SHARED, "rshared": MountFlags.SHARED | MountFlags.REC,
    "slave": MountFlags.SLAVE, "rslave": MountFlags.SLAVE | MountFlags.REC,
    "unbindable": MountFlags.UNBINDABLE,
    "runbindable": MountFlags.UNBINDABLE | MountFlags.REC,
}  # fmt: skip
ATTRIBUTES = {
    "ro": MountAttr.RDONLY, "nosuid": MountAttr.NOSUID, "nodev": MountAttr.NODEV,
    "noexec": MountAttr.NOEXEC, "noatime": MountAttr.NOATIME,
    "strictatime": MountAttr.STRICTATIME, "nodiratime": MountAttr.NODIRATIME,
    "nosymfollow": MountAttr.NOSYMFOLLOW, "relatime": MountAttr(0),
}  # fmt: skip
ANY_ATIME = MountAttr.NOATIME | MountAttr.STRICTATIME | MountAttr(0x40)
TIMES = ("noatime", "strictatime", "relatime")
KNOWN_WORDS = (
    *MOUNT_WORDS, *CLEARS, *PROPAGATION, *(f"r{name}" for name in ATTRIBUTES),
    *(f"r{off}" for off, on in CLEARS.items() if on in ATTRIBUTES),
    "tmpcopyup", "idmap", "ridmap",
)  # fmt: skip


def attribute(name: str, on: bool) -> tuple[MountAttr, MountAttr]:
    """Return what ``mount_setattr`` sets and clears for a word.

    The three about times are one field of the kernel's: it is always cleared first.

    >>> [str(bits) for bits in attribute("noatime", True)]
    ['16', '112']
    """
    bits = ATTRIBUTES[name]
    clear = ANY_ATIME if name in TIMES else MountAttr(0)
    return (bits, clear) if on else (MountAttr(0), clear or bits)


# %% Words
def read_words(options: Iterable[str]) -> Words:
    """Return what mount options mean; of two that contradict, the last one holds.

    >>> words = read_words(["rbind", "ro", "rprivate", "rnosuid", "mode=755"])
    >>> words.flags.strace(), words.below.strace(), words.data
    ('MS_RDONLY|MS_BIND|MS_REC', 'MOUNT_ATTR_NOSUID', 'mode=755')
    """
    flags, clear, below, clear_below = 0, 0, MountAttr(0), MountAttr(0)
    propagation, data, special = [], [], set()
    for word in options:
        recursive = word.removeprefix("r")
        if word in MOUNT_WORDS:
            flags, clear = flags | MOUNT_WORDS[word], clear & ~MOUNT_WORDS[word]
        elif word in CLEARS:
            bits = MOUNT_WORDS[CLEARS[word]]
            flags, clear = flags & ~bits, clear | bits
        elif word in PROPAGATION:
            propagation.append(PROPAGATION[word])
        elif word[:1] == "r" and recursive in (*ATTRIBUTES, *CLEARS):
            on = recursive in ATTRIBUTES
            plus, minus = attribute(recursive if on else CLEARS[recursive], on)
            below, clear_below = below & ~minus | plus, clear_below & ~plus | minus
        elif word in ("tmpcopyup", "idmap", "ridmap"):
            special.add(word)
        else:
            data.append(word)
    return Words(
        MountFlags(flags),
        MountFlags(clear),
        tuple(propagation),
        below,
        clear_below,
        ",".join(data),
        "tmpcopyup" in special,
        next((word for word in ("ridmap", "idmap") if word in special), ""),
    )


# %% Words
def cleared(plus: MountAttr, minus: MountAttr) -> MountAttr:
    """Return what is to be cleared beside ``plus``: the field of times only whole."""
    times = ANY_ATIME if (plus | minus) & ANY_ATIME else MountAttr(0)
    return minus & ~plus | times


def attributes_of(flags: MountFlags) -> MountAttr:
    """Return the flags of mount(2) that are attributes of one mount."""
    found = MountAttr(0)
    for name, bits in ATTRIBUTES.items():
        if MOUNT_WORDS[name] & flags:
            found |= bits
    return found


# %% The steps
class Attach(MountStep):
    """Show a path of the host below the root, as a bundle's ``bind`` asks for it.

    With ``uids`` or ``gids`` its files have other owners, and ``tree`` is the copy,
    which was taken beforehand.
    """

    source: str
    target: str
    words: Words
    uids: tuple[IdRange, ...] = ()
    gids: tuple[IdRange, ...] = ()
    tree: int = -1

    def copy(self) -> int:
        """Return a detached copy of the source's mounts, with its attributes."""
        words = self.words
        deep = AT_RECURSIVE if words.flags & MountFlags.REC else 0
        try:
            tree = open_tree(AT_FDCWD, self.source, OPEN_TREE_CLONE | deep)
        except SysError as why:
            if why.errno != errno.ENOENT:
                raise
            what = f'mount source "{self.source}": no such file or directory'
            raise RuntimeFault(what, where=self.target) from why
        plus, minus = attributes_of(words.flags), attributes_of(words.clear)
        if plus & ANY_ATIME or words.flags & MountFlags.RELATIME:
            minus |= ANY_ATIME
        if plus or minus:
            clear = cleared(plus, minus)
            mount_setattr(tree, "", plus, clear=clear, flags=AT_EMPTY_PATH)
        return tree

    def taken(self) -> Attach:
        """Return the step with its copy taken now, and shown with other owners.

        It must be done where the host's rights are: before the container's own user
        namespace. The caller closes the descriptor ``tree``.
        """
        tree, userns = self.copy(), user_namespace(self.uids, self.gids)
        deep = AT_RECURSIVE if self.words.idmap == "ridmap" else 0
        flags = AT_EMPTY_PATH | deep
        try:
            mount_setattr(tree, "", MountAttr.IDMAP, userns=userns, flags=flags)
        except SysError as why:
            what = f"the file system cannot show other owners: {why}"
            raise RuntimeFault(what, where=self.source) from why
        finally:
            os.close(userns)
        return self.replace(tree=tree)

    def apply(self, root: int) -> None:
        """Attach the copy; the target is made when missing."""
        tree = self.copy() if self.tree < 0 else self.tree
        place = -1
        try:
            place = place_for(tree, self.source, root, self.target)
            move_mount(tree, "", place)
            finish(tree, self.words)
        finally:
            if place >= 0:
                os.close(place)
            os.close(tree)

    def describe(self) -> tuple[str, str, str]:
        return self.target, "bind", str_of(self.words.flags)


# %% The steps
def finish(mounted: int, words: Words) -> None:
    """Give an attached mount its propagation, and all below it their attributes."""
    if words.below or words.clear_below:
        flags = AT_EMPTY_PATH | AT_RECURSIVE
        clear = cleared(words.below, words.clear_below)
        mount_setattr(mounted, "", words.below, clear=clear, flags=flags)
    for one in words.propagation:
        deep = AT_RECURSIVE if one & MountFlags.REC else AT_EMPTY_PATH
        how = one & ~MountFlags.REC
        flags = AT_EMPTY_PATH | deep
        mount_setattr(mounted, "", MountAttr(0), propagation=how, flags=flags)


# %% The steps
class NewFilesystem(MountStep):
    """Mount a file system as a bundle asks for it; ``source`` is its label."""

    target: str
    fstype: str
    source: str
    words: Words

    def plain(self, flags: MountFlags) -> Filesystem:
        """Return the step that mounts it, with these flags and nothing more."""
        source = "" if self.source == self.fstype else self.source
        links = self.fstype not in ("proc", "sysfs")
        return Filesystem(
            self.target,
            self.fstype,
            flags,
            self.words.data,
            links=links,
            source=source,
        )

    def apply(self, root: int) -> None:
        """Mount it; the directory is made when it is missing."""
        words, covered = self.words, None
        if self.fstype == "tmpfs" and words.copy_up:
            covered = open_if_there(root, self.target)
        late = MountFlags.RDONLY if covered is not None else MountFlags(0)
        self.plain(words.flags & ~late).apply(root)
        place = open_in_root(root, self.target)
        if covered is not None:
            copy_tree(f"{magic(covered)}/.", f"{magic(place)}/.")
            os.close(covered)
        if late & words.flags:
            mount_setattr(place, "", MountAttr.RDONLY, flags=AT_EMPTY_PATH)
        finish(place, words)
        os.close(place)

    def describe(self) -> tuple[str, str, str]:
        how = ",".join(filter(None, [str_of(self.words.flags), self.words.data]))
        return self.target, self.fstype, how


# %% The groups, from inside
class GroupView(MountStep):
    """Show the container its control groups at ``target``.

    With a cgroup namespace of its own (``own``) they are mounted anew, and begin at
    its group; without one, its directories on the host are bound.
    """

    target: str
    group: Group | None
    own: bool
    words: Words

    def apply(self, root: int) -> None:
        """Mount what there is; nothing where the container has no groups."""
        flags = self.words.flags & ~(MountFlags.BIND | MountFlags.REC)
        readonly = flags & MountFlags.RDONLY
        group = self.group
        if group is None or not group.places:
            return
        if group.version == 2:
            self.show(root, "", group.places[0][1], "cgroup2", flags)
            return
        top = Filesystem(self.target, "tmpfs", flags & ~readonly, "mode=755")
        top.apply(root)
        for _, place in group.places:
            self.show(root, tree_of(place, group.id), place, "cgroup", flags)
        self.link_aliases(root, [tree_of(place, group.id) for _, place in group.places])
        if readonly:
            tmpfs = open_in_root(root, self.target)
            mount_setattr(tmpfs, "", MountAttr.RDONLY, flags=AT_EMPTY_PATH)
            os.close(tmpfs)

    def show(
        self, root: int, names: str, place: str, fstype: str, flags: MountFlags
    ) -> None:
        """Mount one tree, or bind the container's own directory of it."""
        target = f"{self.target}/{names}".rstrip("/")
        if self.own:
            known = names.startswith("systemd") or not names
            data = "" if fstype == "cgroup2" else f"name={names}" if known else names
            try:
                Filesystem(target, fstype, flags, data).apply(root)
                return
            except (OSError, RuntimeFault) as why:
                if fstype != "cgroup2":
                    raise RuntimeFault(f"cannot mount: {why}", where=target) from why
        Attach(place, target, Words(flags | MountFlags.BIND)).apply(root)

    def link_aliases(self, root: int, trees: Iterable[str]) -> None:
        """Make a link for each name of a tree that has two, as "cpu,cpuacct"."""
        above = open_in_root(root, self.target)
        for names in trees:
            for name in names.split(",") if "," in names else ():
                if open_if_there(above, name) is None:
                    os.symlink(names, name, dir_fd=above)
        os.close(above)

    def describe(self) -> tuple[str, str, str]:
        return self.target, "cgroup", str_of(self.words.flags)


def tree_of(place: str, path: str) -> str:
    """Return the name of the tree that the group ``path`` of version 1 is in.

    >>> tree_of("/sys/fs/cgroup/cpu,cpuacct/docker/7", "/docker/7")
    'cpu,cpuacct'
    """
    return os.path.basename(place.removesuffix(path))


# %% Devices
CHARACTER, BLOCK, PIPE = stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO
NODE_TYPES = {"c": CHARACTER, "u": CHARACTER, "b": BLOCK, "p": PIPE}


class Node(MountStep):
    """Make a device at ``target``: type ``c``, ``b`` or ``p``, numbers, mode, owner."""

    target: str
    kind: str
    major: int = 0
    minor: int = 0
    mode: int = 0o666
    owner: tuple[int, int] = (0, 0)

    def apply(self, root: int) -> None:
        """Make the node, or bind the host's of that name where that is refused."""
        above, name = os.path.split(self.target)
        place = directory_in_root(root, above or "/")
        number = os.makedev(self.major, self.minor)
        try:
            os.mknod(name, NODE_TYPES[self.kind] | self.mode, number, dir_fd=place)
            os.chown(name, *self.owner, dir_fd=place, follow_symlinks=False)
        except FileExistsError:
            pass
        except PermissionError:
            Attach(self.target, self.target, read_words(["bind"])).apply(root)
        finally:
            os.close(place)

    def describe(self) -> tuple[str, str, str]:
        return self.target, "device", f"{self.kind} {self.major}:{self.minor}"


class DevLink(MountStep):
    """Make a symbolic link in /dev, unless something of that name is there."""

    name: str
    to: str
    replace_it: bool = False

    def apply(self, root: int) -> None:
        """Make the link; /dev may be the image's own directory."""
        place = directory_in_root(root, "/dev")
        try:
            if self.replace_it:
                with suppress(FileNotFoundError):
                    os.unlink(self.name, dir_fd=place)
            os.symlink(self.to, self.name, dir_fd=place)
        except FileExistsError:
            pass
        finally:
            os.close(place)

    def describe(self) -> tuple[str, str, str]:
        return f"/dev/{self.name}", "link", f"-> {self.to}"
