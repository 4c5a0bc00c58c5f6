"""What tar bytes come out of `archive`, and what `reading` makes of anybody's."""

import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidocker.archive import Tally, TarWriter, pack
from minidocker.errors import IntegrityError
from minidocker.headers import SECOND, Entry, Kind, header
from minidocker.reading import Ahead, TarReader


END = bytes(1024)


def reader(data: bytes, **options: int) -> TarReader:
    return TarReader(io.BytesIO(data).read, **options)


def entries(data: bytes, **options: int) -> list[Entry]:
    return list(reader(data, **options))


def patched(block: bytes, at: int, new: bytes) -> bytes:
    """A header with some bytes replaced and the checksum put right."""
    raw = bytearray(block)
    raw[at : at + len(new)] = new
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def pax(records: bytes, of: bytes = header(Entry(b"f", Kind.FILE))) -> bytes:
    """A pax header with these records, and a file's header after it."""
    before = patched(header(Entry(b"pax", Kind.FILE, size=len(records))), 156, b"x")
    return before + records + bytes(-len(records) % 512) + of + END


FILE = header(Entry(b"f", Kind.FILE))

names = st.binary(min_size=1, max_size=300).filter(
    lambda n: b"\0" not in n and not n.endswith(b"/")
)
xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"security.capability"]),
    st.binary(max_size=40),
)


@settings(deadline=None)
@given(
    name=names,
    link=st.binary(max_size=200).filter(lambda n: b"\0" not in n),
    kind=st.sampled_from([Kind.FILE, Kind.SYMLINK, Kind.HARD_LINK, Kind.FIFO]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    seconds=st.integers(-(2**33), 2**33),
    attributes=xattrs,
)
def test_a_header_is_read_back_as_it_was(
    name, link, kind, mode, uid, gid, seconds, attributes
) -> None:
    entry = Entry(
        name,
        kind,
        mode,
        uid,
        gid,
        0,
        seconds * SECOND,
        link,
        xattrs=tuple(sorted(attributes.items())),
    )
    assert entries(header(entry) + END) == [entry]


@pytest.mark.parametrize(
    "name",
    [
        b"a" * 255,
        b"two\nlines",
        b"\xff\xfe",
        b"d" * 99 + b"/" + b"e" * 99 + b"/" + b"f" * 99,
    ],
)
def test_odd_names_are_exact_for_tarfile_too(name: bytes) -> None:
    data = header(Entry(name, Kind.FILE)) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [os.fsencode(n) for n in tar.getnames()] == [name]
    assert [e.name for e in entries(data)] == [name]


def make_tree(root: Path) -> None:
    (root / "dir").mkdir(parents=True)
    (root / "dir" / "file").write_bytes(b"x" * 700)
    (root / "dir" / "empty").touch()
    os.link(root / "dir" / "file", root / "linked")
    os.symlink("dir/file", root / "symlink")
    (root / ("n" * 200)).write_text("long")
    (root / ("l" * 10)).symlink_to("t" * 150)
    os.setxattr(root / "dir" / "file", "user.mood", b"calm\0")
    os.mkfifo(root / "fifo")
    for path in [*root.rglob("*"), root]:
        os.utime(path, (1_000_000, 1_000_000), follow_symlinks=False)
    os.utime(root / "fifo", (-5, -5))


def packed(root: Path) -> bytes:
    out = io.BytesIO()
    pack(str(root), out.write)
    return out.getvalue()


def test_gnu_tar_and_tarfile_read_what_pack_writes(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    data = packed(tmp_path / "tree")
    (tmp_path / "t.tar").write_bytes(data)
    (tmp_path / "out").mkdir()
    command = [
        "tar",
        "-xpf",
        "t.tar",
        "-C",
        "out",
        "--xattrs",
        "--xattrs-include=user.*",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert packed(tmp_path / "out") == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {m.name: m for m in tar.getmembers()}
    assert found["linked"].islnk()
    assert found["linked"].linkname == "dir/file"
    assert found["dir/file"].pax_headers["SCHILY.xattr.user.mood"] == "calm\0"
    assert found["fifo"].mtime == -5
    assert {m.uname for m in found.values()} == {""}


def test_the_same_tree_gives_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        make_tree(tmp_path / name)
        tally = Tally()
        pack(str(tmp_path / name), tally)
        digests.add((tally.digest, tally.size))
    assert len(digests) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--format=ustar"],
        ["--format=gnu"],
        ["--format=pax"],
        ["--format=v7"],
        ["--format=oldgnu"],
    ],
)
def test_gnu_tars_formats_are_read(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "d").mkdir()
    name = "n" * (90 if "v7" in options[0] or "ustar" in options[0] else 200)
    (tmp_path / "d" / name).write_text("body")
    made = subprocess.run(
        ["tar", "-c", *options, "d"], cwd=tmp_path, check=True, capture_output=True
    )
    tar = reader(made.stdout)
    seen = {e.name: (e.kind, b"".join(tar.pieces())) for e in tar}
    assert seen == {
        b"d/": (Kind.DIRECTORY, b""),
        f"d/{name}".encode(): (Kind.FILE, b"body"),
    }


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_pythons_tars_are_read(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        info = tarfile.TarInfo(
            "d/" + "x" * (150 if form != tarfile.USTAR_FORMAT else 90)
        )
        info.size, info.uid, info.mtime = (
            3,
            3_000_000 if form != tarfile.USTAR_FORMAT else 7,
            12,
        )
        tar.addfile(info, io.BytesIO(b"abc"))
    read = reader(out.getvalue())
    entry = next(iter(read))
    assert (entry.name, entry.uid, entry.mtime) == (
        info.name.encode(),
        info.uid,
        12 * SECOND,
    )
    assert b"".join(read.pieces()) == b"abc"


def test_fractions_of_seconds_are_kept() -> None:
    assert (
        entries(pax(b"20 mtime=1.123456789\n".replace(b"20", b"21")))[0].mtime
        == 1_123_456_789
    )


HOSTILE = {
    "uid -1": patched(FILE, 108, b"\xff" * 8) + END,
    "uid 2^32-1": patched(FILE, 108, b"\x80\0\0\0\xff\xff\xff\xff") + END,
    "uid over 32 bit": pax(b"18 uid=4294967296\n"),
    "NUL in a pax record": pax(b"12 path=a\0b\n"),
    "pax length lies": pax(b"99 path=abc\n"),
    "pax length is no number": pax(b"xx path=abc\n"),
    "pax without a key": pax(b"7 =abc\n"),
    "pax over 1 MiB": pax(b"1100000 path=" + b"a" * (1_100_000 - 14) + b"\n"),
    "negative size": patched(FILE, 124, b"\xff" * 12) + END,
    "negative pax size": pax(b"11 size=-5\n"),
    "huge size": patched(FILE, 124, b"\x80" + b"\x7f" * 11) + END,
    "NaN time": pax(b"13 mtime=nan\n"),
    "infinite time": pax(b"13 mtime=inf\n"),
    "time out of range": pax(
        b"29 mtime=999999999999999999\n"[:1] + b"8 mtime=999999999999999999\n"
    ),
    "bad checksum": FILE[:100] + b"7" + FILE[101:] + END,
    "no octal": patched(FILE, 100, b"00009\0\0\0") + END,
    "nothing at all": b"",
    "no end": FILE,
    "half a header": FILE[:300],
    "half a body": header(Entry(b"f", Kind.FILE, size=1000)) + b"x" * 600,
    "half a pax header": pax(b"12 path=abc\n")[:600],
    "end after pax": pax(b"12 path=abc\n", of=b""),
    "sparse, pax": pax(b"22 GNU.sparse.major=1\n"),
    "unknown type": patched(FILE, 156, b"Z") + END,
    "empty name": patched(FILE, 0, b"\0") + END,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_malformed_archive_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError) as refused:
        entries(data)
    assert "\n" not in refused.value.what


def test_every_truncation_is_refused() -> None:
    out = io.BytesIO()
    writer = TarWriter(out.write)
    for name in (b"a", b"b" * 150):
        writer.add(Entry(name, Kind.FILE))
    writer.finish()
    whole = out.getvalue()
    assert len(entries(whole)) == 2
    for cut in range(0, len(whole) - 1024, 64):
        with pytest.raises(IntegrityError):
            entries(whole[:cut])


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=1200), st.integers(0, 1500))
def test_noise_is_refused_or_read_and_nothing_else(noise: bytes, at: int) -> None:
    base = pax(b"12 path=abc\n")
    try:
        entries(base[:at] + noise + base[at + len(noise) :])
    except IntegrityError:
        pass


def test_the_size_limit_counts_all_files_before_their_contents_come() -> None:
    big = header(Entry(b"f", Kind.FILE, size=2**40))
    with pytest.raises(IntegrityError, match="size limit"):
        entries(big, limit=1 << 30)


def test_zeros_after_the_end_count_as_well() -> None:
    with pytest.raises(IntegrityError, match="size limit"):
        entries(END + bytes(10_000), limit=1000)


def test_old_signed_checksums_are_accepted() -> None:
    raw = bytearray(patched(FILE, 0, b"\xe9"))
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in raw)
    assert entries(bytes(raw) + END)[0].name == b"\xe9"


def test_one_gibibyte_takes_no_memory(tmp_path: Path) -> None:
    import resource

    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = Tally()
    pack(str(tmp_path), tally)
    assert tally.size > 1 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000


def test_reading_ahead_gives_the_same_bytes_and_the_same_errors() -> None:
    data = os.urandom(3_000_000)
    with Ahead(io.BytesIO(data).read) as read:
        pieces = []
        while piece := read(1 << 20):
            pieces.append(piece)
        assert read(1) == b""
    assert b"".join(pieces) == data

    def breaks(size: int) -> bytes:
        raise OSError(5, "Input/output error")

    with Ahead(breaks) as read, pytest.raises(OSError, match="Input/output"):
        read(1)


def test_who_reads_ahead_is_not_held_by_a_silent_pipe() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"some")
    started = time.monotonic()
    with Ahead(lambda size: os.read(ours, size)) as read:
        assert read(4) == b"some"
    assert time.monotonic() - started < 30
    os.close(theirs)
    os.close(ours)
