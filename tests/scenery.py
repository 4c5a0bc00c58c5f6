"""Trees of files for tests, and what is in a tree."""

import io
import os
import tarfile
from pathlib import Path


def tar_of(files: dict[str, bytes | str | None], uid: int = 0) -> bytes:
    """A tar: texts are symbolic links, None is a directory, bytes are files."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = 0o755, uid, uid
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            body = content if isinstance(content, bytes) else b""
            tar.addfile(info, io.BytesIO(body))
    return sink.getvalue()


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Write files, with fixed modes and times."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(0o644)
    for path in [root, *sorted(root.rglob("*"))]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
        os.utime(path, (1_000_000, 1_000_000), follow_symlinks=False)
    return root


def listed(root: str) -> list[str]:
    return [str(path.relative_to(root)) for path in Path(root).rglob("*")]


def described(root: str, name: str) -> tuple[str, tuple[str, int, str]]:
    path = Path(root, name)
    mode = path.lstat().st_mode & 0o7777
    if path.is_symlink():
        return name, ("link", mode, os.readlink(path))
    if path.is_dir():
        return name, ("dir", mode, "")
    return name, ("file", mode, path.read_text(errors="replace"))


def sources(root: Path) -> Path:
    """A build context: five files in three directories, with modes of their own."""
    for name in ["a.conf", "b.conf", "src/c.c", "src/deep/d.c", "src/deep/e.h"]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o644)
    for path in (root / "src", root / "src/deep"):
        path.chmod(0o755)
    return root
