# From book/136-operations.md. Edit there and tangle, or here and tangle --back.

# %% Operations: what becomes of a change
"""A model of a union file system: changes, all of which the top branch takes.

Failures are OSError with the errno that Linux's overlayfs gives. Paths as in union.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from minidocker.union import (
    Branch,
    BranchKind,
    Kind,
    Lookup,
    Node,
    Place,
    directory,
    failure,
    file,
    inside,
    joined,
    names,
    need,
    parent,
    resolve,
    symlink_to,
    visible,
)


# %% Writing: copy-up
class CopyUp(Lookup):
    """Changes to what is there already.

    ``redirects``: a merged directory can be renamed, and leaves its old name in an
    attribute; overlayfs's mount option ``redirect_dir=on``.
    """

    def __init__(self, branches: Iterable[Branch], *, redirects: bool = False) -> None:
        super().__init__(branches)
        self.redirects = redirects

    def writable(self, path: str) -> Branch:
        """Return the branch that takes changes. Raises EROFS where none does."""
        if self.branches and self.branches[0].kind is BranchKind.READ_WRITE:
            return self.branches[0]
        raise failure(errno.EROFS, path)

    def copy_up(self, path: str) -> Branch:
        """Make the top branch hold what is seen at ``path``; idempotent."""
        upper = self.writable(path)
        if upper.get(path) is None:
            need(self, path)
            self.copy_up(parent(path))
            upper.adopt(path, self.stack(path)[0])
        return upper

    def change(self, path: str, **fields: object) -> None:
        """Copy up, and change fields of the inode. ``path`` passes no link."""
        need(self, path)
        self.copy_up(path).change(path, **fields)


# %% Writing: copy-up
class Metadata(CopyUp):
    """Changes to what is known of a file, and to its length."""

    def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits. Follows symbolic links."""
        self.change(resolve(self, path), mode=mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Set the owner; of a symbolic link, its own."""
        self.change(resolve(self, path, follow=False), uid=uid, gid=gid)

    def utime(self, path: str, seconds: int) -> None:
        """Set the time of modification. Follows symbolic links."""
        self.change(resolve(self, path), mtime=seconds)

    def truncate(self, path: str, size: int = 0) -> None:
        """Cut a file to ``size`` bytes, or fill it up with zeros.

        Raises EISDIR, and EINVAL for what is no file.
        """
        data = self.read(path)
        path = resolve(self, path)
        if need(self, path).kind is not Kind.FILE:
            raise failure(errno.EINVAL, path)
        self.change(path, data=data[:size].ljust(size, b"\0"), mtime=None)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        """Set an extended attribute. Raises EPERM for what is no file or directory."""
        path, kept = self.attributes(path)
        kept[name] = value
        self.change(path, xattrs=tuple(sorted(kept.items())))

    def removexattr(self, path: str, name: str) -> None:
        """Remove an extended attribute. Raises EPERM; ENODATA if there is none."""
        path, kept = self.attributes(path)
        if kept.pop(name, None) is None:
            raise failure(errno.ENODATA, path)
        self.change(path, xattrs=tuple(sorted(kept.items())))

    def attributes(self, path: str) -> tuple[str, dict[str, bytes]]:
        """Return the resolved path, and the attributes that may be changed there."""
        path = resolve(self, path)
        node = need(self, path)
        self.writable(path)
        if node.kind not in (Kind.FILE, Kind.DIRECTORY):
            raise failure(errno.EPERM, path)
        return path, dict(node.xattrs)


# %% Creating
class Creation(Metadata):
    """New names."""

    def create(self, path: str, node: Node) -> None:
        """Put a new node at ``path``, which passes no link and is free.

        A directory in the place of a whiteout is opaque; with ``redirects``, each one
        in a merged directory.
        """
        above = parent(path)
        upper = self.copy_up(above)
        hides = upper.get(path) is not None
        hides = hides or (self.redirects and len(self.stack(above)) > 1)
        opaque = node.kind is Kind.DIRECTORY and hides
        upper.put(path, node.replace(opaque=opaque, mtime=None))
        upper.change(above, mtime=None)

    def free(self, path: str) -> str:
        """Return ``path``, resolved. Raises EEXIST where something is seen."""
        path = resolve(self, path, follow=False)
        if self.node(path) is not None:
            raise failure(errno.EEXIST, path)
        self.writable(path)
        return path

    def write(self, path: str, data: str | bytes) -> None:
        """Make or replace the contents of a file. Raises EISDIR; ENXIO for a pipe.

        As open(2) with O_CREAT and O_TRUNC, a symbolic link to nowhere is followed.
        Nobody reads from a pipe of the model.
        """
        path = resolve(self, path)
        node = self.node(path)
        if node is None:
            self.create(path, file(data))
        elif node.kind is not Kind.FILE:
            is_directory = node.kind is Kind.DIRECTORY
            raise failure(errno.EISDIR if is_directory else errno.ENXIO, path)
        else:
            self.change(path, data=os.fsencode(data), mtime=None)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """Make a directory. Raises EEXIST."""
        self.create(self.free(path), directory(mode))

    def mkfifo(self, path: str, mode: int = 0o644) -> None:
        """Make a named pipe. Raises EEXIST."""
        self.create(self.free(path), Node(Kind.PIPE, mode=mode))

    def mknod(self, path: str, device: str, mode: int = 0o600) -> None:
        """Make a device, "c 1 3". Raises EEXIST; EPERM for one that is a whiteout."""
        path = self.free(path)
        if device == "c 0 0":
            raise failure(errno.EPERM, path)
        self.create(path, Node(Kind.DEVICE, device.encode(), mode))

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link. Raises EEXIST."""
        self.create(self.free(path), symlink_to(target))

    def link(self, old: str, new: str) -> None:
        """Give a file one more name. Raises EEXIST; EPERM for a directory."""
        old = resolve(self, old, follow=False)
        node = need(self, old)
        new = self.free(new)
        if node.kind is Kind.DIRECTORY:
            raise failure(errno.EPERM, old)
        upper = self.copy_up(old)
        self.copy_up(parent(new))
        upper.link(old, new)
        upper.change(parent(new), mtime=None)


# %% Deleting
class Removal(Creation):
    """Names that go away."""

    def hide(self, path: str) -> None:
        """Take ``path`` out of sight."""
        above, _, name = path.rpartition("/")
        upper = self.copy_up(above)
        if visible(name, self.stack(above)[1:], self.branches):
            upper.hide(path)
        else:
            upper.remove(path)
        upper.change(above, mtime=None)

    def unlink(self, path: str) -> None:
        """Delete a name of a file or link. Raises EISDIR."""
        path = resolve(self, path, follow=False)
        self.writable(path)
        if need(self, path).kind is Kind.DIRECTORY:
            raise failure(errno.EISDIR, path)
        self.hide(path)

    def rmdir(self, path: str) -> None:
        """Delete an empty directory. Raises ENOTDIR, ENOTEMPTY; EBUSY for the root."""
        path = resolve(self, path, follow=False)
        if not path:
            raise failure(errno.EBUSY, path)
        self.writable(path)
        if need(self, path).kind is not Kind.DIRECTORY:
            raise failure(errno.ENOTDIR, path)
        if names(self, path):
            raise failure(errno.ENOTEMPTY, path)
        self.hide(path)


# %% Renaming
class Union(Removal):
    """A union file system. Branches are top-first; the top one takes the changes."""

    def rename(self, old: str, new: str) -> None:
        """Give ``old`` the name ``new``, and replace what is there.

        Raises EXDEV for a directory that a lower branch has a part of, without
        ``redirects``; EINVAL to move one into itself; EISDIR, ENOTDIR, ENOTEMPTY for
        what ``new`` is. Two names of one inode stay as they are. Source: rename(2).
        """
        old = resolve(self, old, follow=False)
        new = resolve(self, new, follow=False)
        if not old or not new:
            raise failure(errno.EBUSY, old)
        upper = self.writable(old)
        if may_replace(self, old, new):
            self.copy_up(old)
            self.copy_up(parent(new))
            if marks := self.marks(old, new):
                upper.change(old, **marks)
            target = self.node(new)
            if target and target.kind is Kind.DIRECTORY:
                refuse_full(self, new)
            upper.move(old, new)
            self.hide(old)
            upper.change(parent(new), mtime=None)

    def marks(self, old: str, new: str) -> dict[str, object]:
        """Return what must be written on what is moved from ``old`` to ``new``."""
        node = need(self, old)
        if node.kind is not Kind.DIRECTORY:
            return {}
        if len(self.stack(old)) > 1:
            at_home = parent(old) == parent(new)
            if node.redirect.startswith("/") or (at_home and node.redirect):
                return {}
            name = old.rpartition("/")[2]
            return {"redirect": name if at_home else "/" + self.origin(old)}
        return {"opaque": True} if len(self.stack(parent(new))) > 1 else {}

    def origin(self, path: str) -> str:
        """Return the path under which the branches below have what ``path`` shows."""
        if not path:
            return ""
        node = self.branches[0].get(path)
        redirect = node.redirect if node else ""
        if redirect.startswith("/"):
            return redirect[1:]
        name = redirect or path.rpartition("/")[2]
        return joined(self.origin(parent(path)), name)


# %% Renaming
def may_replace(union: Union, old: str, new: str) -> bool:
    """Whether a rename has anything to do; the checks in the kernel's order."""
    node, target, upper = need(union, old), union.node(new), union.branches[0]
    if inside(new, old):
        raise failure(errno.EINVAL, old)
    if inside(old, new):
        raise failure(errno.ENOTEMPTY, new)
    numbers = [upper.number(path) for path in (old, new)]
    if old == new or (target and numbers[0] and numbers[0] == numbers[1]):
        return False
    is_directory = node.kind is Kind.DIRECTORY
    if target and is_directory != (target.kind is Kind.DIRECTORY):
        raise failure(errno.ENOTDIR if is_directory else errno.EISDIR, new)
    pure = union.stack(old) == [Place(upper, old)]
    if is_directory and not pure and not union.redirects:
        raise failure(errno.EXDEV, old)
    if is_directory and target and union.stack(new) != [Place(upper, new)]:
        refuse_full(union, new)
    return True


def refuse_full(union: Union, path: str) -> None:
    """Raise ENOTEMPTY for a directory in which something is seen."""
    if names(union, path):
        raise failure(errno.ENOTEMPTY, path)
