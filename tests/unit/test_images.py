"""The image store's names: tags, and digests under which registries know images."""

from pathlib import Path

import pytest

from minidocker.durable import Batch
from minidocker.errors import NotFoundError, ReferenceFault
from minidocker.images import ImageStore
from minidocker.oci import HUB, ImageConfig, Reference, parse_reference


DIGEST = "sha256:" + "5" * 64


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    root = str(tmp_path)
    return ImageStore(root, "vfs", Batch(root, f"{root}/tmp"))


def test_a_digest_is_a_name_but_no_tag(images: ImageStore) -> None:
    id = images.add(ImageConfig(), None)
    name = parse_reference("127.0.0.1:5000/a/b:v1")
    images.tag(name, id)
    images.note_digest(name, DIGEST, id)
    assert images.tags_of(id) == ["127.0.0.1:5000/a/b:v1"]
    assert images.digests_of(id) == [f"127.0.0.1:5000/a/b@{DIGEST}"]
    assert images.resolve(f"127.0.0.1:5000/a/b@{DIGEST}") == id
    assert images.resolve(f"127.0.0.1:5000/a/b:other@{DIGEST}") == id
    images.untag(parse_reference(f"127.0.0.1:5000/a/b@{DIGEST}"))
    assert images.digests_of(id) == []
    with pytest.raises(NotFoundError):
        images.resolve(f"127.0.0.1:5000/a/b@{DIGEST}")


def test_an_id_wins_over_a_name_that_looks_like_it(images: ImageStore) -> None:
    one, two = (images.add(ImageConfig(author=name), None) for name in ("one", "two"))
    with pytest.raises(ReferenceFault, match="64 hexadecimal digits are an id"):
        parse_reference(one[7:])
    images.tag(Reference(HUB, f"library/{one[7:]}", "latest"), two)
    images.tag(Reference(HUB, f"library/{one[7:19]}", "latest"), two)
    assert images.resolve(one) == images.resolve(one[7:]) == one
    assert images.resolve(one[7:18]) == one
    assert images.resolve(one[7:19]) == two  # how an id begins is no id
    gone = "0" * 64
    with pytest.raises(NotFoundError, match="no such image"):
        images.resolve(gone)


def test_a_sweep_removes_metadata_whose_image_a_crash_kept_away(
    images: ImageStore,
) -> None:
    parent = images.add(ImageConfig(author="a"), None)
    child = images.add(ImageConfig(author="b"), parent)
    orphan = Path(images.metadata) / ("0" * 64)
    orphan.mkdir()
    (orphan / "parent").write_text(parent)
    images.sweep()
    assert not orphan.exists()
    assert images.parent(child) == parent
