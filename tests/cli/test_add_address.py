"""`ADD URL`: what was fetched is kept, asked about, and never trusted for too long."""

import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.store import Store


TIME = "Sun, 06 Nov 1994 08:49:37 GMT"


class Shelf:
    """A server's one file, how it is recognised, and what was asked for."""

    def __init__(self) -> None:
        self.body, self.headers = b"first", {"ETag": '"one"'}
        self.asked: list[tuple[str, str, int]] = []
        self.url, self.always = "", 0

    def change(self, body: bytes, **headers: str) -> None:
        self.body = body
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}

    def questions(self) -> list[tuple[str, str, int]]:
        """What was asked since the last time: If-None-Match, If-Modified-Since, 200."""
        found, self.asked = self.asked, []
        return found


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tag = self.headers.get("If-None-Match", "")
            since = self.headers.get("If-Modified-Since", "")
            have = shelf.headers.get("ETag"), shelf.headers.get("Last-Modified")
            same = tag == have[0] if tag else since == have[1]
            status = shelf.always or (304 if same else 200)
            shelf.asked.append((tag, since, status))
            self.send_response(status)
            for name, text in shelf.headers.items():
                self.send_header(name, text)
            self.end_headers()
            if status == 200:
                self.wfile.write(shelf.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shelf.url = f"http://127.0.0.1:{server.server_port}/file?key=secret"
        yield shelf
        server.shutdown()


@pytest.fixture(params=["overlay2", "vfs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of the test's own: what is pruned here is nobody else's."""
    return Store(tmp_path / "store", request.param)


class Desk:
    """Where builds of one ADD are asked for; ``said`` is what the last one printed."""

    def __init__(self, store: Store, where: Path, shelf: Shelf) -> None:
        self.store, self.where, self.shelf = store, where, shelf
        self.count, self.said = 0, ""

    def build(self, *flags: str, checksum: str = "") -> bytes:
        """Build, and return what the image's file has."""
        option = f"--checksum={checksum} " if checksum else ""
        text = f"FROM scratch\nADD {option}{self.shelf.url} /file\n"
        (self.where / "Dockerfile").write_text(text)
        self.count += 1
        out = self.where.with_name(f"out{self.count}")
        self.said = self.store.says("build", *flags, "-o", str(out), str(self.where))
        return (out / "file").read_bytes()

    def kept(self) -> list[Path]:
        """The files that are kept of what was fetched."""
        below = (self.store.root / "buildcache/addresses").rglob("*")
        return [path for path in below if path.is_file()]


@pytest.fixture
def desk(store: Store, tmp_path: Path, shelf: Shelf) -> Desk:
    (tmp_path / "context").mkdir()
    return Desk(store, tmp_path / "context", shelf)


def test_an_address_is_asked_whether_it_has_changed(desk: Desk, shelf: Shelf) -> None:
    assert desk.build() == b"first"
    assert "Using cache" not in desk.said
    assert desk.build() == b"first"
    assert "Not modified" in desk.said
    assert "Using cache" in desk.said
    assert shelf.questions() == [("", "", 200), ('"one"', "", 304)]
    shelf.change(b"second", ETag='"two"')
    assert desk.build() == b"second"
    assert "Not cached: " in desk.said
    assert desk.build() == b"second"
    assert shelf.questions() == [('"one"', "", 200), ('"two"', "", 304)]
    assert len(desk.kept()) == 2  # the body and the note
    assert not [path for path in desk.kept() if b"secret" in path.read_bytes()]


def test_a_time_is_a_question_too_and_that_of_the_file(
    desk: Desk, shelf: Shelf
) -> None:
    shelf.change(b"old", Last_Modified=TIME)
    assert desk.build() == b"old"
    desk.store.says("builder", "prune", "-af", "--filter", "until=1h")  # too young
    assert desk.build() == b"old"
    assert shelf.questions() == [("", "", 200), ("", TIME, 304)]
    [body] = [path for path in desk.kept() if path.name != "note"]
    assert body.stat().st_mtime == 784111777


def test_no_cache_fetches_anew_and_a_prune_forgets(desk: Desk, shelf: Shelf) -> None:
    desk.build()
    assert desk.build("--no-cache") == b"first"
    assert shelf.questions() == [("", "", 200)] * 2
    desk.build()
    assert shelf.questions() == [('"one"', "", 304)]
    gone = desk.store.says("builder", "prune", "-f")
    assert "Deleted build cache objects:" in gone
    assert "Total reclaimed space: " in gone
    assert desk.kept() == []
    assert desk.build() == b"first"
    assert shelf.questions() == [("", "", 200)]


def test_what_has_its_checksum_is_not_asked_for(desk: Desk, shelf: Shelf) -> None:
    right = f"sha256:{sha256(b'first').hexdigest()}"
    shelf.change(b"first")
    assert desk.build(checksum=right) == b"first"
    shelf.change(b"second")
    assert desk.build(checksum=right) == b"first"
    assert shelf.questions() == [("", "", 200)]
    (desk.where / "Dockerfile").write_text(
        f"FROM scratch\nADD --checksum={right[:-8]}{'0' * 8} {shelf.url} /file\n"
    )
    failed = desk.store("build", str(desk.where))
    assert failed.returncode == 1
    assert (
        f"it is sha256:{sha256(b'second').hexdigest()}, not {right[:-8]}"
        in failed.stderr
    )
    assert len(desk.kept()) == 2


def test_what_is_damaged_or_gone_is_fetched_again(desk: Desk, shelf: Shelf) -> None:
    def body() -> Path:
        [found] = [path for path in desk.kept() if path.name != "note"]
        return found

    desk.build()
    body().write_bytes(b"fir")
    assert desk.build() == b"first"
    body().unlink()
    assert desk.build() == b"first"
    [note] = [path for path in desk.kept() if path.name == "note"]
    note.write_text("")
    assert desk.build() == b"first"
    assert shelf.questions() == [("", "", 200)] * 4
    desk.build()
    assert shelf.questions() == [('"one"', "", 304)]


@pytest.mark.parametrize(
    "headers", [{}, {"ETag": '"one"', "Cache_Control": "no-store"}]
)
def test_what_cannot_be_recognised_or_must_not_be_kept_is_not(
    desk: Desk, shelf: Shelf, headers: dict[str, str]
) -> None:
    shelf.change(b"first", **headers)
    desk.build()
    assert desk.build() == b"first"
    assert "Using cache" in desk.said
    assert shelf.questions() == [("", "", 200)] * 2
    assert desk.kept() == []


def test_an_answer_that_nobody_asked_for_is_refused(desk: Desk, shelf: Shelf) -> None:
    (desk.where / "Dockerfile").write_text(f"FROM scratch\nADD {shelf.url} /file\n")
    shelf.always = 304
    failed = desk.store("build", str(desk.where))
    assert failed.returncode == 1
    assert "answers 304" in failed.stderr
    assert desk.kept() == []
