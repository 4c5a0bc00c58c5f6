"""A kernel whose overlayfs renames merged directories by a mark, if it is let to."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from minidocker.drivers import DRIVERS
from minidocker.overlayfs import Overlay, overlay_mounted


DEFAULT = Path("/sys/module/overlay/parameters/redirect_dir")


@pytest.fixture(autouse=True)
def redirecting() -> Iterator[None]:
    before = DEFAULT.read_text()
    DEFAULT.write_text("Y")
    yield
    DEFAULT.write_text(before)


def test_no_container_is_mounted_so(tmp_path: Path) -> None:
    """A layer's tar has no word for a redirect."""
    driver = DRIVERS["overlay2"](str(tmp_path))
    driver.create("a", None)
    with driver.mounted("a", writable=True) as root:
        (Path(root) / "d").mkdir()
        (Path(root) / "d/f").touch()
    driver.create("b", "a")
    with driver.mounted("b", writable=True) as root:
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            os.rename(f"{root}/d", f"{root}/e")
        assert os.listdir(root) == ["d"]


def test_one_that_asks_for_it_is(tmp_path: Path) -> None:
    for name in ("low/d", "up", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    low, up, work, merged = (f"{tmp_path}/{n}" for n in ("low", "up", "work", "merged"))
    with overlay_mounted(Overlay((low,), up, work, redirects=True), merged):
        os.rename(f"{merged}/d", f"{merged}/e")
        assert os.listdir(merged) == ["e"]
    assert os.getxattr(f"{up}/e", "trusted.overlay.redirect") == b"d"
