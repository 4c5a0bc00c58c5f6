"""The package that pip gets: the same bytes from the same text, typed, without git."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path


ROOT = Path(__file__).parent.parent.parent
BUILD = (
    "import sys; from flit_core.buildapi import build_wheel; build_wheel(sys.argv[1])"
)
NEEDED = ("minidocker", "pyproject.toml", "README.md", "LICENSE")


def wheel(where: Path, time: int) -> Path:
    """Build the wheel of a copy of the project whose files are of ``time``."""
    where.mkdir()
    for name in NEEDED:
        source, target = ROOT / name, where / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    for path in where.rglob("*"):
        os.utime(path, (time, time))
    env = os.environ | {"SOURCE_DATE_EPOCH": "1500000000"}
    out = where / "dist"
    out.mkdir()
    subprocess.run([sys.executable, "-c", BUILD, out], cwd=where, env=env, check=True)
    return next(out.iterdir())


def test_a_wheel_is_the_same_whenever_it_is_built(tmp_path: Path) -> None:
    first, second = wheel(tmp_path / "a", 10**9), wheel(tmp_path / "b", 1_600_000_000)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as found:
        names = set(found.namelist())
        points = found.read("minidocker-0.1.0.dist-info/entry_points.txt").decode()
    assert "minidocker=minidocker.__main__:script" in points.replace(" ", "")
    modules = {f"minidocker/{p.name}" for p in (ROOT / "minidocker").glob("*.py")}
    assert modules | {"minidocker/py.typed"} == {
        n for n in names if "dist-info" not in n
    }
