"""`save`, `load`, `import` and `export` said as a user says them."""

import bz2
import gzip
import hashlib
import http.server
import io
import json
import lzma
import os
import pty
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from cli.store import Store

from transfer.conftest import members, write_context


pytestmark = pytest.mark.root
Built = tuple[Store, str]


def a_tar(text: bytes = b"hello\n", form: int = tarfile.GNU_FORMAT) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=form) as tar:
        for name, body in (("z", b"1"), ("etc/motd", text), ("a", b"2")):
            member = tarfile.TarInfo(name)
            member.size, member.uname = len(body), "kenny"
            tar.addfile(member, io.BytesIO(body))
    return raw.getvalue()


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.fixture
def ours(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def layers_of(store: Store, name: str) -> list[str]:
    return json.loads(store.says("inspect", name))[0]["RootFS"]["Layers"]


PRESSES = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("press", PRESSES)
def test_import_keeps_the_digest_of_the_tar(ours: Store, tmp_path: Path, press: str):
    path = tmp_path / "tree.tar"
    path.write_bytes(PRESSES[press](a_tar()))
    ours.says("import", str(path), "tree:v1")
    ours.says("import", "-", "tree:v2", stdin=path.read_bytes())
    assert layers_of(ours, "tree:v1") == [digest(a_tar())]
    assert layers_of(ours, "tree:v2") == [digest(a_tar())]


def test_import_says_in_a_line_what_is_damaged(ours: Store):
    for press in ("gzip", "zstd", "xz", "bzip2"):
        done = ours("import", "-", "tree", stdin=PRESSES[press](a_tar())[:-5])
        assert done.returncode == 1
        assert done.stderr.startswith(f"minidocker: -: the {press} file is damaged")
        assert done.stderr.count("\n") == 1
    assert ours.says("images", "-aq") == ""


def test_import_sets_what_it_is_told(ours: Store):
    words = [
        "--change",
        "CMD /bin/sh",
        "--message",
        "mine",
        "--platform",
        "linux/arm/v7",
    ]
    ours.says("import", *words, "-", "tree", stdin=a_tar())
    (found,) = json.loads(ours.says("inspect", "tree"))
    assert found["Config"]["Cmd"] == ["/bin/sh", "-c", "/bin/sh"]
    assert (found["Architecture"], found["Os"]) == ("arm", "linux")
    assert found["Comment"] == "mine"
    done = ours("import", "--platform", "a/b/c/d", "-", "tree", stdin=a_tar())
    assert done.returncode == 125


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/tree.tar.gz":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(gzip.compress(a_tar()))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_import_fetches_an_address(ours: Store, site: str):
    ours.says("import", f"{site}/tree.tar.gz", "tree")
    assert layers_of(ours, "tree") == [digest(a_tar())]
    done = ours("import", f"{site}/none", "tree")
    assert done.returncode == 1
    assert "404" in done.stderr
    assert not os.path.exists(ours.root / "tmp") or not os.listdir(ours.root / "tmp")


def test_what_was_imported_is_saved_as_it_came(ours: Store, tmp_path: Path):
    ours.says("import", "-", "tree:v1", stdin=a_tar())
    ours.says("save", "-o", str(tmp_path / "out.tar"), "tree:v1")
    found = members(tmp_path / "out.tar")
    assert found[f"blobs/sha256/{digest(a_tar())[7:]}"] == a_tar()


def test_export_and_import_give_the_same_tree(ours: Store, tmp_path: Path):
    ours.says("import", "-", "tree:v1", "--change", "CMD /z", stdin=a_tar())
    name = ours.says("create", "tree:v1").strip() if has(ours, "create") else ""
    if not name:
        ours("run", "--name", "box", "tree:v1")
        name = "box"
    ours.says("export", "-o", str(tmp_path / "out.tar"), name)
    found = members(tmp_path / "out.tar")
    assert found["etc/motd"] == b"hello\n"
    ours.says("rm", name)


def has(store: Store, command: str) -> bool:
    return store(command, "--help").returncode == 0


# save


def test_save_writes_nothing_for_an_image_that_is_not_there(
    built: Built, tmp_path: Path
):
    store, _ = built
    (tmp_path / "old.tar").write_text("precious")
    for path in ("new.tar", "old.tar"):
        done = store("save", "-o", str(tmp_path / path), "site:v1", "nobody:v1")
        assert done.returncode == 1
        assert 'no such image: "nobody:v1"' in done.stderr
    assert os.listdir(tmp_path) == ["old.tar"]
    assert (tmp_path / "old.tar").read_text() == "precious"


def test_save_leaves_the_old_file_when_a_layer_is_damaged(ours: Store, tmp_path: Path):
    ours.says("import", "-", "tree:v1", stdin=a_tar())
    (motd,) = ours.root.glob("overlay2/*/diff/etc/motd")
    motd.write_bytes(b"HELLO\n")
    (tmp_path / "old.tar").write_text("precious")
    done = ours("save", "-o", str(tmp_path / "old.tar"), "tree:v1")
    assert done.returncode == 1
    assert "not those that were committed" in done.stderr
    assert (tmp_path / "old.tar").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["old.tar", "store"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--format", "zip", "site:v1"], "docker-archive, oci-archive, oci-dir"),
        (["--compression", "lzma", "site:v1"], "none, gzip, zstd"),
        (["--compression", "gzip", "--compression-level", "9", "site:v1"], "0 to 3"),
        (["--compression-level", "x", "site:v1"], "no level"),
        (["--format", "oci-dir", "site:v1"], "-o DIRECTORY"),
        ([], "requires at least 1 argument"),
    ],
)
def test_save_says_how_it_is_meant(built: Built, words: list[str], says: str):
    done = built[0]("save", *words)
    assert done.returncode in (1, 125)
    assert says in done.stderr


def test_save_does_not_write_to_a_terminal(built: Built):
    main, side = pty.openpty()
    done = subprocess.run(
        built[0].argv("save", "site:v1"),
        stdout=side,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(main)
    os.close(side)
    assert done.returncode == 125
    assert b"cowardly" in done.stderr


def test_a_link_stays_and_its_file_is_replaced(built: Built, tmp_path: Path):
    store, _ = built
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    store.says("save", "-o", str(tmp_path / "link"), "site:v1")
    assert (tmp_path / "link").is_symlink()
    assert "manifest.json" in members(tmp_path / "file")
    with (tmp_path / "out").open("wb") as out:
        argv = store.argv("save", "-o", "/dev/stdout", "site:v1")
        subprocess.run(argv, stdout=out, check=True)
    assert "manifest.json" in members(tmp_path / "out")
    assert os.path.islink("/dev/stdout")
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    assert done.stdout == (tmp_path / "out").read_bytes()


def test_a_directory_that_is_not_empty_stays(built: Built, tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "empty").mkdir()
    words = ["save", "--format", "oci-dir", "site:v1", "-o"]
    assert "not empty" in built[0](*words, str(tmp_path / "full")).stderr
    built[0].says(*words, str(tmp_path / "empty"))
    assert (tmp_path / "empty/index.json").exists()
    assert "is a directory" in built[0]("save", "-o", str(tmp_path), "site:v1").stderr


def test_the_same_image_gives_the_same_archive(built: Built, tmp_path: Path):
    store, _ = built
    pipe = subprocess.run(
        store.argv("save", "site:v1"), capture_output=True, check=True
    ).stdout
    for form in ("docker-archive", "oci-archive"):
        for number in (1, 2):
            path = tmp_path / f"{form}{number}"
            store.says("save", "--format", form, "-o", str(path), "site:v1")
        assert (tmp_path / f"{form}1").read_bytes() == path.read_bytes()
    assert (tmp_path / "docker-archive1").read_bytes() == pipe


def test_save_by_id_has_no_name_and_by_repository_all(built: Built, tmp_path: Path):
    store, id = built
    store.says("tag", "site:v1", "site:v2")
    for word, names in ((id, None), ("site", ["site:v1", "site:v2"])):
        store.says("save", "-o", str(tmp_path / "a.tar"), word)
        (line,) = json.loads(members(tmp_path / "a.tar")["manifest.json"])
        assert line["RepoTags"] == names
    store.says("rmi", "site:v2")
    ours = Store(tmp_path / "store")
    store.says("save", "-o", str(tmp_path / "a.tar"), id[7:19])
    told = ours.says("load", "-q", "-i", str(tmp_path / "a.tar"))
    assert told == f"Loaded image ID: {id}\n"


# load


def test_load_says_what_it_needs(ours: Store, tmp_path: Path):
    done = ours("load", "-i", str(tmp_path / "none.tar"))
    assert done.returncode == 1
    assert "No such file" in done.stderr
    with open(os.devnull, "rb") as null:
        done = subprocess.run(
            ours.argv("load"), stdin=null, capture_output=True, check=False
        )
    assert done.returncode == 125
    assert b"stdin is empty" in done.stderr
    done = ours("load", stdin=b"")
    assert done.returncode == 1
    assert "empty" in done.stderr


def test_load_refuses_in_one_line_and_leaves_nothing(built: Built, tmp_path: Path):
    store, _ = built
    path = tmp_path / "a.tar"
    store.says("save", "-o", str(path), "site:v1")
    data = bytearray(path.read_bytes())
    at = data.index(b"hello\n" * 5)
    data[at : at + 5] = b"HELLO"
    ours = Store(tmp_path / "store")
    ours.says("images")
    before = sorted(str(p) for p in ours.root.rglob("*"))
    done = ours("load", stdin=bytes(data))
    assert done.returncode == 1
    assert done.stderr.startswith("minidocker: the input: the layer is sha256:")
    after = sorted(
        str(p)
        for p in ours.root.rglob("*")
        if p.name not in ("lock", "tmp", "changing")
    )
    assert [p for p in after if p not in before and "/overlay2" not in p] == []
    assert not list(ours.root.glob("overlay2/*"))
    assert ours.says("images", "-aq") == ""


def test_two_loads_at_once_agree(built: Built, tmp_path: Path):
    store, id = built
    path = tmp_path / "a.tar"
    store.says("save", "-o", str(path), "site:v1")
    ours = Store(tmp_path / "store")
    ours.says("images")
    argv = ours.argv("load", "-i", str(path))
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(3)]
    assert [one.communicate()[0] for one in both] == [b"Loaded image: site:v1\n"] * 3
    assert ours.says("images", "-q", "--no-trunc").strip() == id
    name = ours.says(
        "run", "-d", "site:v1", "/bin/busybox", "cat", "/site/link"
    ).strip()
    ours.says("wait", name)
    assert ours.says("logs", name).startswith("hello\n")
    ours.says("rm", name)


def test_a_loaded_image_is_no_hit_of_the_cache(tmp_path: Path):
    context = write_context(tmp_path / "context")
    (context / "Dockerfile").write_text("FROM scratch\nCOPY site /site/\n")
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    first.says("build", "-t", "one:v1", str(context))
    first.says("save", "-o", str(tmp_path / "a.tar"), "one:v1")
    second.says("load", "-i", str(tmp_path / "a.tar"))
    assert "Using cache" not in second.says("build", str(context))
    assert "Using cache" in second.says("build", str(context))
