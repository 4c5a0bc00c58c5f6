"""Sparse files as GNU tar has written them, in four ways; and names that come twice."""

import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest

from minidocker.drivers import Vfs
from minidocker.durable import Batch
from minidocker.errors import IntegrityError
from minidocker.fields import checked_extents
from minidocker.headers import Entry, Kind, header, sealed
from minidocker.layers import LayerStore
from minidocker.reading import TarReader
from minidocker.unpack import extract


FORMS = {
    "old": ["--format=gnu"],
    "pax 0.0": ["--format=pax", "--sparse-version=0.0"],
    "pax 0.1": ["--format=pax", "--sparse-version=0.1"],
    "pax 1.0": ["--format=pax", "--sparse-version=1.0"],
}
SHAPES: dict[str, list[tuple[int, int]]] = {
    "one piece in the middle": [(1 << 20, 70_000)],
    "a piece at each end": [(0, 4096), (5 << 20, 4096)],
    "more pieces than a header has room for": [(n << 17, 4096) for n in range(70)],
    "nothing but a hole": [],
    "a hole at the end": [(0, 5000)],
}
SIZE = 10 << 20


def sparse_tar(where: Path, form: str, shape: str) -> tuple[bytes, bytes]:
    """A tar by GNU tar of one sparse file and a plain one; the file's contents."""
    where.mkdir()
    chance = random.Random(shape)
    with (where / "holes").open("wb") as file:
        for offset, length in SHAPES[shape]:
            file.seek(offset)
            file.write(chance.randbytes(length))
        file.truncate(SIZE)
    (where / "plain").write_bytes(b"plain")
    argv = ["tar", "-C", str(where), "-S", *FORMS[form], "-cf", "-", "holes", "plain"]
    data = subprocess.run(argv, check=True, capture_output=True).stdout
    return data, (where / "holes").read_bytes()


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    root = str(tmp_path / "store")
    os.makedirs(root)
    return LayerStore(root, Vfs(root), Batch(root, f"{root}/tmp"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_holes_come_back_as_holes(tmp_path: Path, form: str, shape: str) -> None:
    data, contents = sparse_tar(tmp_path / "in", form, shape)
    assert len(data) < SIZE // 4
    out = tmp_path / "out"
    out.mkdir()
    extract(io.BytesIO(data).read, str(out), ignore_owner=True)
    assert (out / "holes").read_bytes() == contents
    assert (out / "plain").read_bytes() == b"plain"
    assert (out / "holes").stat().st_blocks * 512 < SIZE // 4
    st = (tmp_path / "in/holes").stat()
    assert (out / "holes").stat().st_mode == st.st_mode


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_with_holes_gives_back_the_tar_that_came(
    tmp_path: Path, store: LayerStore, form: str
) -> None:
    data, _ = sparse_tar(
        tmp_path / "in", form, "more pieces than a header has room for"
    )
    layer = store.add(io.BytesIO(data).read)
    assert layer.size == SIZE + 5
    got = io.BytesIO()
    store.tar_of(layer.chain_id, got.write)
    assert got.getvalue() == data


def test_a_hole_costs_neither_time_nor_place_and_is_charged(tmp_path: Path) -> None:
    block = bytearray(header(Entry(b"hole", Kind.FILE)))
    block[156:157], block[483:495] = b"S", (0x80 << 88 | 1 << 42).to_bytes(12, "big")
    data = sealed(bytes(block)) + bytes(1024)
    extract(io.BytesIO(data).read, str(tmp_path), ignore_owner=True)
    st = (tmp_path / "hole").stat()
    assert (st.st_size, st.st_blocks) == (1 << 42, 0)
    with pytest.raises(IntegrityError, match="exceed the size limit"):
        extract(
            io.BytesIO(data).read,
            str(tmp_path),
            at="b",
            limit=1 << 30,
            ignore_owner=True,
        )


@pytest.mark.parametrize(
    ("numbers", "size", "stored"),
    [
        ([0, 2, 1, 2], 9, 4), ([5, 2, 0, 2], 9, 4), ([0, 9], 8, 9), ([0, 2], 9, 3),
        ([0, -1, 2, 4], 9, 3), ([-1, 2], 9, 2), ([0, 2, 5], 9, 2), ([], 9, 1),
    ],
)  # fmt: skip
def test_a_map_that_cannot_be_is_refused(
    numbers: list[int], size: int, stored: int
) -> None:
    with pytest.raises(IntegrityError, match="sparse file"):
        checked_extents(numbers, size, stored)


@pytest.mark.parametrize(
    "text",
    [b"", b"x\n", b"1\n0\n", b"9999999\n", b"1\n" * 400, b"2\n0\n1\n0\n1\n", b"-1\n"],
)
def test_a_map_before_the_data_is_not_believed(text: bytes) -> None:
    records = (
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n29 GNU.sparse.realsize=90000\n"
    )
    head = header(Entry(b"x", Kind.FILE, size=len(records)))
    body = text + bytes(-len(text) % 512)
    data = sealed(head[:156] + b"x" + head[157:]) + records + bytes(-len(records) % 512)
    data += header(Entry(b"f", Kind.FILE, size=len(body) + 1)) + body + b"x"
    data += bytes(511 + 1024)
    with pytest.raises(IntegrityError):
        for _ in TarReader(io.BytesIO(data).read):
            pass


def repeated(*members: tuple[str, bytes | None, int]) -> bytes:
    """A tar of members that may have one name; None is a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body, mode in members:
            member = tarfile.TarInfo(name)
            member.mode, member.mtime = mode, 1_500_000_000
            if body is None:
                member.type = tarfile.DIRTYPE
            member.size = len(body or b"")
            tar.addfile(member, io.BytesIO(body or b""))
    return out.getvalue()


TWICE = repeated(
    ("d", None, 0o700), ("d/f", b"first, and longer", 0o600), ("a", b"a", 0o644),
    ("./d/f", b"second", 0o640), ("d/", None, 0o755), ("a", b"", 0o600), ("a", b"3", 0o600),
)  # fmt: skip


def test_the_later_of_two_entries_wins_as_with_gnu_tar(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for where in (ours, theirs):
        where.mkdir()
    extract(io.BytesIO(TWICE).read, str(ours), ignore_owner=True)
    subprocess.run(["tar", "-C", str(theirs), "-xpf", "-"], input=TWICE, check=True)
    for name in ("d", "d/f", "a"):
        assert (ours / name).stat().st_mode == (theirs / name).stat().st_mode
    for name in ("d/f", "a"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_a_layer_with_a_name_twice_gives_back_the_tar_that_came(
    store: LayerStore,
) -> None:
    layer = store.add(io.BytesIO(TWICE).read)
    got = io.BytesIO()
    store.tar_of(layer.chain_id, got.write)
    assert got.getvalue() == TWICE
    from minidocker.splits import damaged_file

    split = store.split_of(layer)
    assert split is not None
    with store.driver.opened(layer.cache_id) as tree:
        assert damaged_file(split, tree) is None
        Path(os.path.dirname(split), "replaced-3").write_bytes(b"x" * 17)
        assert damaged_file(split, tree) == "d/f"
