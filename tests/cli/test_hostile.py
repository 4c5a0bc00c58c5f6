"""Hostile archives on the command line: one line, status 1, and nothing is left."""

import io
import os
import tarfile
from pathlib import Path

from cli.store import Store


def member(
    name: str, body: bytes = b"", **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for key, value in more.items():
        setattr(info, key, value)
    return info, body


def link(name: str, to: str, *, hard: bool = False) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE if hard else tarfile.SYMTYPE, linkname=to)


def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, body in (member("before", b"x"), *members):
            archive.addfile(info, io.BytesIO(body))
    return out.getvalue()


WHITEOUT = member("gone", type=tarfile.CHRTYPE, devmajor=0, devminor=0)
SOUND = tar(member("f", b"x"))
HOSTILE = {
    "climbs": tar(member("../out", b"x")),
    "climbs from inside": tar(member("a/../../out", b"x")),
    "twice, once a directory": tar(
        member("f", b"1"), member("f", type=tarfile.DIRTYPE)
    ),
    "a hard link outside": tar(link("h", "../../etc/passwd", hard=True)),
    "a hard link to itself": tar(link("h", "h", hard=True)),
    "a hard link to a later file": tar(link("h", "f", hard=True), member("f", b"x")),
    "a loop of links": tar(link("a", "b"), link("b", "a"), member("a/f", b"x")),
    "below a file": tar(member("f", b"x"), member("f/g", b"x")),
    "a marker without a name": tar(member(".wh.")),
    "a marker of the parent": tar(member("d/.wh...")),
    "overlay's whiteout": tar(WHITEOUT),
    "a name of 256 bytes": tar(member("n" * 256, b"x")),
    "cut short": tar(member("f", b"x" * 5000))[:3000],
    "a damaged header": SOUND[:1024] + SOUND[1024:].replace(b"ustar", b"vstar"),
}


def test_each_is_refused_in_one_line_and_leaves_nothing(
    store: Store, tmp_path: Path
) -> None:
    home = store.root / store.driver
    layers = home / "dir" if store.driver == "vfs" else home
    before = sorted(os.listdir(layers))
    (tmp_path / "Dockerfile").write_text("FROM small:v1\nADD bad.tar /data/\n")
    for name, archive in HOSTILE.items():
        (tmp_path / "bad.tar").write_bytes(archive)
        imported = store("import", str(tmp_path / "bad.tar"), "hostile")
        built = store("build", "-t", "hostile", str(tmp_path))
        for done in (imported, built):
            assert done.returncode == 1, name
            lines = done.stderr.splitlines()
            assert lines[0].startswith("minidocker: "), name
            assert len(lines) <= 2, name
        assert sorted(os.listdir(layers)) == before, name
    assert store("history", "hostile").returncode == 1
    assert sorted(os.listdir(tmp_path)) == ["Dockerfile", "bad.tar"]


def test_a_link_on_the_way_is_resolved_inside(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = tar(
        link("out", f"{tmp_path}/outside"),
        member("etc/f", b"in\n"),
        link("e", "/etc"),
        member("e/g", b"in\n"),
    )
    store.says("import", "-", "inside", stdin=archive)
    (tmp_path / "Dockerfile").write_text(
        "FROM small:v1\nCOPY --from=inside /e/ /copied/\n"
    )
    store.says("build", "-q", "-t", "copied", str(tmp_path))
    assert (
        store.says("run", "--rm", "copied", "cat", "/copied/f", "/copied/g")
        == "in\nin\n"
    )
    store.says("rmi", "copied", "inside")
    assert not os.listdir(outside)
