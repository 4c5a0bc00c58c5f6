"""Unpacked files belong to whom the archive says, also where others are born."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from minidocker.unpack import apply_layer


pytestmark = pytest.mark.root


def archive(*members: tuple[str, int, int, int]) -> bytes:
    """A tar of (name, mode, uid, gid); a slash at the end is a directory."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, mode, uid, gid in members:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.mode, info.uid, info.gid = mode, uid, gid
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            tar.addfile(info)
    return sink.getvalue()


def test_owners_are_the_archive_s_whatever_the_directory_gives(tmp_path: Path):
    members = [
        ("plain/", 0o755, 0, 0),
        ("plain/ours", 0o644, 0, 0),
        ("plain/theirs", 0o644, 7, 8),
        ("plain/ours too", 0o4755, 0, 0),
        ("given/", 0o2775, 0, 50),
        ("given/ours", 0o644, 0, 0),
        ("given/group", 0o644, 0, 50),
        ("given/theirs", 0o644, 7, 8),
        ("late/ours", 0o644, 0, 0),
        ("late/", 0o2775, 3, 60),
        ("late/ours after", 0o644, 0, 0),
        ("late/group after", 0o6755, 0, 60),
    ]
    apply_layer(io.BytesIO(archive(*members)).read, str(tmp_path))
    for name, mode, uid, gid in members:
        found = os.stat(tmp_path / name)
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (mode, uid, gid)
