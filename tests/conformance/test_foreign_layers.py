"""A layer that came from elsewhere is what it was, whatever the driver."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest

from minidocker.drivers import DRIVERS
from minidocker.durable import Batch
from minidocker.errors import IntegrityError, NotFoundError
from minidocker.layers import LayerStore


pytestmark = pytest.mark.root


@pytest.fixture(params=sorted(DRIVERS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LayerStore:
    batch = Batch(str(tmp_path), str(tmp_path / "tmp"))
    return LayerStore(str(tmp_path), DRIVERS[request.param](str(tmp_path)), batch)


def foreign(*members: tuple[str, bytes | str | None]) -> bytes:
    """A tar of Python's own: bytes are a file, a text is where a link points."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, body in members:
            member = tarfile.TarInfo(name)
            member.uname, member.mtime = "kenny", 1_500_000_000
            if body is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(body, str):
                member.type, member.linkname = tarfile.SYMTYPE, body
            else:
                member.size = len(body)
            tar.addfile(member, io.BytesIO(body if isinstance(body, bytes) else b""))
    return raw.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar_of(store: LayerStore, chain: str) -> bytes:
    out = io.BytesIO()
    store.tar_of(chain, out.write)
    return out.getvalue()


BASE = foreign(
    ("z", b"last first"), ("usr/lib", None), ("lib", "usr/lib"), ("a/b/c", b"c" * 700)
)
ABOVE = foreign(
    ("lib/libc.so", b"through the link"),
    ("a/b/.wh.c", b""),
    ("a/b/d", b"d"),
    ("z", b"another"),
)
OPAQUE = foreign(("a/.wh..wh..opq", b""), ("a/new", b"n" * 513))


def test_layers_keep_their_digests_and_their_bytes(store: LayerStore):
    chain = None
    for tar in (BASE, ABOVE, OPAQUE):
        layer = store.add(io.BytesIO(tar).read, chain, diff_id=digest(tar))
        assert layer.diff_id == digest(tar)
        chain = layer.chain_id
        assert tar_of(store, chain) == tar
        store.batch.publish()
        assert tar_of(store, chain) == tar
    store.create_rw("box", chain)
    with store.rw_mounted("box", writable=False) as root:
        found = {
            os.path.relpath(os.path.join(here, name), root)
            for here, _, names in os.walk(root)
            for name in names
        }
        assert Path(root, "z").read_bytes() == b"another"
    assert found == {"z", "usr/lib/libc.so", "a/new"}


def test_the_size_is_that_of_the_files(store: LayerStore):
    assert store.add(io.BytesIO(BASE).read).size == 10 + 700


def test_what_is_packed_here_needs_no_split(store: LayerStore):
    base = store.add(io.BytesIO(BASE).read)
    store.create_rw("box", base.chain_id)
    with store.rw_mounted("box") as root:
        Path(root, "mine").write_text("mine")
    mine = store.commit_rw("box")
    assert mine is not None
    assert store.split_of(mine) is None
    assert store.split_of(base)
    again = tar_of(store, mine.chain_id)
    assert digest(again) == mine.diff_id


def left(store: LayerStore) -> list[object]:
    return [store.driver.ids(), os.listdir(store.batch.tmp), store.ids()]


@pytest.mark.parametrize(
    "tar",
    [
        BASE[:-5000],
        BASE + b"\0" * 100 + b"x",
        foreign(("../out", b"")),
        foreign(("a", b"1"), ("a", b"2")),
        b"no tar at all" * 100,
        b"",
    ],
)
def test_a_refused_layer_leaves_nothing(store: LayerStore, tar: bytes):
    base = store.add(io.BytesIO(BASE).read)
    before = left(store)
    for parent in (None, base.chain_id):
        with pytest.raises(IntegrityError):
            store.add(io.BytesIO(tar).read, parent, diff_id=digest(BASE))
    assert left(store) == before


def test_limits_and_readers_that_fail_leave_nothing(store: LayerStore):
    base = store.add(io.BytesIO(BASE).read)
    before = left(store)
    with pytest.raises(IntegrityError, match="size limit"):
        store.add(io.BytesIO(ABOVE).read, base.chain_id, limit=3)
    raw = io.BytesIO(ABOVE)

    def breaks(size: int) -> bytes:
        if raw.tell() > 1000:
            raise OSError(5, "Input/output error")
        return raw.read(500)

    with pytest.raises(OSError, match="Input/output"):
        store.add(breaks, base.chain_id)
    with pytest.raises(NotFoundError):
        store.add(io.BytesIO(ABOVE).read, digest(b"no such chain"))
    assert left(store) == before


def test_a_corrupted_tree_is_noticed(store: LayerStore):
    layer = store.add(io.BytesIO(BASE).read)
    with store.driver.opened(layer.cache_id, writable=True) as tree:
        Path(tree, "a/b/c").write_bytes(b"C" * 700)
    with pytest.raises(IntegrityError, match="not those"):
        tar_of(store, layer.chain_id)
    with store.driver.opened(layer.cache_id, writable=True) as tree:
        Path(tree, "a/b/c").unlink()
    with pytest.raises(IntegrityError, match="a/b/c"):
        tar_of(store, layer.chain_id)


def test_a_staged_layer_can_be_forgotten(store: LayerStore):
    base = store.add(io.BytesIO(BASE).read)
    store.batch.publish()
    before = left(store)
    store.forget(store.add(io.BytesIO(ABOVE).read, base.chain_id))
    store.forget(base)
    assert left(store) == before
