import bz2
import gzip
import io
import lzma
import os
import random
import subprocess
import threading
import zlib
from contextlib import suppress
from hashlib import sha256

import pytest
import zstandard

from minidocker.archive import Aside
from minidocker.compression import Codec, compressing, decompressed, frames
from minidocker.errors import IntegrityError, UsageError
from minidocker.reading import Stream


TEXT = random.Random(1).randbytes(300_000) + b"".join(
    b"line %d\n" % n for n in range(400_000)
)


def sent(data: bytes, codec: Codec, step: int = 1 << 20, level=None) -> bytes:
    pieces: list[bytes] = []
    with compressing(pieces.append, codec, level) as press:
        for at in range(0, len(data), step):
            press(data[at : at + step])
    return b"".join(pieces)


def got(blob: bytes, size: int = 1 << 16) -> bytes:
    read, parts = decompressed(io.BytesIO(blob).read), []
    while data := read(size):
        assert len(data) <= size
        parts.append(data)
    return b"".join(parts)


@pytest.mark.parametrize("step", [1, 511, 65_536, 1 << 20, 3 << 20])
def test_pieces_of_any_size_give_the_same_gzip(step):
    data = TEXT if step > 1 else TEXT[:5000]
    whole = sent(data, Codec.GZIP, len(data))
    assert sent(data, Codec.GZIP, step) == whole
    assert gzip.decompress(whole) == data


def test_one_processor_gives_the_same_gzip_as_many(monkeypatch):
    many = sent(TEXT, Codec.GZIP)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert sent(TEXT, Codec.GZIP) == many


@pytest.mark.parametrize("tool", [["gzip", "-dc"], ["busybox", "gunzip", "-c"]])
def test_gzip_programs_read_what_we_write(tool):
    done = subprocess.run(
        tool, input=sent(TEXT, Codec.GZIP), capture_output=True, check=True
    )
    assert done.stdout == TEXT


def test_zstandard_reads_what_we_write():
    blob = sent(TEXT, Codec.ZSTD)
    assert zstandard.ZstdDecompressor().stream_reader(io.BytesIO(blob)).read() == TEXT


@pytest.mark.parametrize("data", [b"", b"x", TEXT])
@pytest.mark.parametrize(
    "press",
    [
        gzip.compress,
        bz2.compress,
        lzma.compress,
        zstandard.compress,
        lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
        lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
        lambda data: sent(data, Codec.GZIP),
        lambda data: sent(data, Codec.ZSTD),
    ],
)
def test_what_others_compress_is_read_and_no_cut_goes_unnoticed(press, data):
    blob = press(data)
    assert got(blob) == data
    assert got(blob + blob) == data + data
    for cut in {len(blob) - 1, len(blob) - 4, len(blob) // 2, 7}:
        if 6 < cut < len(blob):
            with pytest.raises(IntegrityError):
                got(blob[:cut])


@pytest.mark.parametrize("press", [gzip.compress, bz2.compress, lzma.compress])
def test_a_flipped_bit_is_noticed(press):
    blob = bytearray(press(TEXT))
    blob[len(blob) // 2] ^= 4
    with pytest.raises(IntegrityError, match="damaged"):
        got(bytes(blob))


def test_skippable_frames_are_passed_over():
    skip = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    blob = skip + zstandard.compress(b"one") + skip + zstandard.compress(b"two")
    assert got(blob) == b"onetwo"
    assert b"".join(frames(Stream(io.BytesIO(blob).read))) == blob


def test_a_bomb_is_read_in_small_pieces():
    import resource

    zeros = bytes(1 << 20)
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(press.compress(zeros) for _ in range(512)) + press.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, total = decompressed(io.BytesIO(bomb).read), 0
    while data := read(1 << 18):
        total += len(data)
    assert total == 512 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_window_that_needs_too_much_memory_is_refused():
    params = zstandard.ZstdCompressionParameters(window_log=28)
    press = zstandard.ZstdCompressor(compression_params=params).compressobj()
    blob = press.compress(os.urandom(1 << 16)) + press.flush()
    with pytest.raises(IntegrityError):
        got(blob)


def test_a_level_that_is_not_there_is_a_usage_error():
    with pytest.raises(UsageError, match="no level 9 of gzip"):
        sent(b"", Codec.GZIP, level=9)


@pytest.mark.parametrize(
    "sizes", [[], [5], [1 << 20, 1], [700_000] * 9, [1, 5 << 20, 0, 3]]
)
def test_a_digest_made_aside_is_the_digest(sizes: list[int]) -> None:
    pieces = [os.urandom(size) for size in sizes]
    passed: list[bytes] = []
    with Aside(passed.append) as tally:
        for number, piece in enumerate(pieces, 1):
            tally(piece)
            so_far = b"".join(pieces[:number])
            assert tally.digest == "sha256:" + sha256(so_far).hexdigest()
    whole = b"".join(pieces)
    assert (tally.size, b"".join(passed)) == (len(whole), whole)
    assert tally.digest == "sha256:" + sha256(whole).hexdigest()


def test_whoever_digests_aside_is_gone_after_an_error() -> None:
    before = threading.active_count()
    with suppress(ZeroDivisionError), Aside() as tally:
        for _ in range(40):
            tally(bytes(1 << 20))
        assert threading.active_count() == before + 1
        raise ZeroDivisionError
    assert threading.active_count() == before
    assert tally.digest == "sha256:" + sha256(bytes(40 << 20)).hexdigest()
