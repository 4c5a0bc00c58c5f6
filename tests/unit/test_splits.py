import gzip
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidocker.errors import IntegrityError
from minidocker.splits import (
    SplitWriter,
    assemble,
    crc64_folded,
    damaged_file,
    fast_crc64,
    read_split,
)
from minidocker.unpack import apply_layer


def crc64_by_bits(data: bytes) -> int:
    """The textbook's way, for every bit."""
    crc = 2**64 - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xD800000000000000 if crc & 1 else 0)
    return crc ^ 2**64 - 1


@given(st.binary(max_size=700), st.integers(0, 700))
def test_three_ways_to_the_same_crc(data: bytes, cut: int):
    right, fast = crc64_by_bits(data), fast_crc64()
    assert crc64_folded(data) == right
    assert crc64_folded(data[cut:], crc64_folded(data[:cut])) == right
    assert fast(data, 0) == right
    assert fast(data[cut:], fast(data[:cut], 0)) == right


def test_long_messages_fold_to_the_same_crc():
    data = os.urandom(1_000_003)
    assert crc64_folded(data) == fast_crc64()(data, 0)


def test_this_machine_has_the_fast_one():
    assert fast_crc64() is not crc64_folded


def record(tar: bytes, where: Path) -> tuple[str, str]:
    (where / "tree").mkdir()
    split, tree = str(where / "split"), str(where / "tree")
    with SplitWriter(split) as tape:
        apply_layer(io.BytesIO(tar).read, tree, tape=tape, ignore_owner=True)
    return split, tree


def again(split: str, tree: str) -> bytes:
    out = io.BytesIO()
    assemble(split, tree, out.write)
    return out.getvalue()


NAMES = st.lists(
    st.text("abé/.- \n", min_size=1, max_size=120).map(lambda n: n.strip("/. ") or "x"),
    max_size=6,
    unique=True,
)


@settings(max_examples=60, deadline=None)
@given(
    names=NAMES,
    sizes=st.lists(st.integers(0, 5000), min_size=6, max_size=6),
    form=st.sampled_from(
        [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
    ),
    extra=st.integers(0, 9000),
)
def test_any_tar_comes_back_to_the_byte(tmp_path_factory, names, sizes, form, extra):
    raw = io.BytesIO()
    try:
        with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
            for name, size in zip(names, sizes, strict=False):
                member = tarfile.TarInfo(name)
                member.size, member.uname, member.mtime = size, "kenny", 1.5
                tar.addfile(member, io.BytesIO(os.urandom(size)))
    except ValueError:
        return  # ustar cannot say the name
    came = raw.getvalue() + bytes(extra)
    where = tmp_path_factory.mktemp("split")
    try:
        split, tree = record(came, where)
    except IntegrityError:
        return  # a file where another name has a directory
    assert again(split, tree) == came


def test_a_tar_of_gnu_tar_comes_back(tmp_path: Path):
    source = tmp_path / "source"
    (source / "deep" / ("d" * 90)).mkdir(parents=True)
    (source / "deep" / ("d" * 90) / ("f" * 90)).write_bytes(os.urandom(100_000))
    (source / "link").symlink_to("deep")
    (source / "empty").touch()
    os.link(source / "empty", source / "same")
    (source / os.fsdecode(b"bad-\xff")).write_text("not UTF-8")
    for form in ("gnu", "pax", "oldgnu", "ustar"):
        command = ["tar", f"--format={form}", "-C", source, "-c", "."]
        came = subprocess.run(command, capture_output=True, check=True).stdout
        where = tmp_path / form
        where.mkdir()
        split, tree = record(came, where)
        assert again(split, tree) == came
        names = [line.get("name_raw") for line in lines(split)]
        assert "Li9iYWQt/w==" in names


def lines(split: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in gzip.open(split, "rb")]


def small(tmp_path: Path) -> tuple[str, str]:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in ("one", "dir/two"):
            member = tarfile.TarInfo(name)
            member.size = 600
            tar.addfile(member, io.BytesIO(name.encode() * 200))
    return record(raw.getvalue(), tmp_path)


def test_lines_are_as_dockers(tmp_path: Path):
    split, _ = small(tmp_path)
    found = lines(split)
    assert [line["position"] for line in found] == list(range(len(found)))
    assert [line["type"] for line in found] == [2, 1, 2, 1, 2]
    assert found[1] == {
        "type": 1,
        "name": "one",
        "size": 600,
        "payload": found[1]["payload"],
        "position": 1,
    }


def test_another_content_is_named(tmp_path: Path):
    split, tree = small(tmp_path)
    assert damaged_file(split, tree) is None
    with open(f"{tree}/dir/two", "r+b") as file:
        file.write(b"?")
    assert damaged_file(split, tree) == "dir/two"


@pytest.mark.parametrize("how", ["gone", "longer", "shorter", "link", "way", "fifo"])
def test_a_file_that_is_not_the_one_that_came_is_an_error(tmp_path: Path, how: str):
    split, tree = small(tmp_path)
    path = Path(tree) / "dir" / "two"
    body = path.read_bytes()
    path.unlink()
    if how in ("longer", "shorter"):
        path.write_bytes(body + b"x" if how == "longer" else body[:-1])
    elif how == "link":
        (tmp_path / "outside").write_bytes(body)
        path.symlink_to(tmp_path / "outside")
    elif how == "way":
        path.parent.rmdir()
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "two").write_bytes(body)
        path.parent.symlink_to(tmp_path / "outside")
    elif how == "fifo":
        os.mkfifo(path)
    with pytest.raises(IntegrityError, match="dir/two: the file is not the one"):
        again(split, tree)


def test_a_damaged_split_is_an_integrity_error(tmp_path: Path):
    split, _ = small(tmp_path)
    whole = Path(split).read_bytes()
    broken = [
        whole[:-9],
        whole[:50] + b"??" + whole[52:],
        b"no gzip",
        gzip.compress(b"{"),
    ]
    broken += [gzip.compress(b'{"type":3,"payload":null}'), gzip.compress(b"[]")]
    broken += [gzip.compress(b'{"type":1,"name":"../x","size":5,"payload":null}')]
    for text in broken:
        Path(split).write_bytes(text)
        with pytest.raises(IntegrityError):
            list(read_split(split))
