"""A registry in memory that can be told to misbehave, and remembers all requests."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from minidocker.manifests import Descriptor, Manifest, Media


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    """Answers for the Fake that is its server's ``fake``."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    @property
    def fake(self) -> "Fake":
        return self.server.fake

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, **headers: str) -> None:
        text = json.dumps({"errors": [{"code": code, "message": code.lower()}]})
        self.reply(status, text.encode(), **headers)

    def begin(self, length: int, status: int = 200, **headers: str) -> None:
        """Send the head of an answer; the body is the caller's."""
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def drop(self) -> None:
        """Break the connection."""
        self.close_connection = True
        self.wfile.flush()

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self) -> None:
        fake = self.fake
        with fake.lock:
            fake.asked.append((self.command, self.path, dict(self.headers.items())))
        if fake.fault and fake.fault(self):
            return
        if not fake.lets_in(self):
            return
        path = urlsplit(self.path).path
        for pattern, route in ROUTES:
            if found := re.fullmatch(pattern, path):
                route(self, *found.groups())
                return
        self.error(404, "NAME_UNKNOWN")

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = answer


def without_end(it: Handler, piece: bytes) -> bool:
    """Send a piece again and again, until nobody takes it any more."""
    it.close_connection = True
    try:
        while True:
            it.wfile.write(piece)
    except OSError:
        return True


def ping(it: Handler) -> None:
    it.reply(200, b"{}")


def token(it: Handler) -> None:
    fake, given = it.fake, it.headers.get("Authorization", "")
    it.body()
    if fake.password and given != fake.password:
        it.error(401, "DENIED")
        return
    with fake.lock:
        fake.tokens.append(f"token-{len(fake.tokens)}")
        it.reply(200, json.dumps({"token": fake.tokens[-1]}).encode())


def tags(it: Handler, repository: str) -> None:
    names = sorted(
        ref for repo, ref in it.fake.manifests if repo == repository and ":" not in ref
    )
    last = parse_qs(urlsplit(it.path).query).get("last", [""])[0]
    page = [name for name in names if name > last][:2]
    more = {}
    if page and page[-1] != names[-1]:
        more["Link"] = f'</v2/{repository}/tags/list?last={page[-1]}>; rel="next"'
    it.reply(200, json.dumps({"tags": page}).encode(), **more)


def manifest(it: Handler, repository: str, which: str) -> None:
    fake = it.fake
    if it.command == "PUT":
        data = it.body()
        fake.manifests[repository, which] = it.headers["Content-Type"], data
        fake.manifests[repository, sha256(data)] = it.headers["Content-Type"], data
        it.reply(201, Docker_Content_Digest=sha256(data))
    elif found := fake.manifests.get((repository, which)):
        it.reply(
            200, found[1], Content_Type=found[0], Docker_Content_Digest=sha256(found[1])
        )
    else:
        it.error(404, "MANIFEST_UNKNOWN")


def blob(it: Handler, repository: str, digest: str) -> None:
    found = it.fake.blobs.get((repository, digest))
    if found is None:
        it.error(404, "BLOB_UNKNOWN")
        return
    begins = int(re.sub(r"\D", "", it.headers.get("Range", "")) or 0)
    if begins:
        span = f"bytes {begins}-{len(found) - 1}/{len(found)}"
        it.reply(206, found[begins:], Content_Range=span)
    else:
        it.reply(200, found)


def open_upload(it: Handler, repository: str) -> None:
    fake, query = it.fake, parse_qs(urlsplit(it.path).query)
    digest = query.get("mount", [""])[0]
    known = fake.blobs.get((query.get("from", [""])[0], digest))
    if known is not None:
        fake.blobs[repository, digest] = known
        it.reply(201, Docker_Content_Digest=digest)
        return
    with fake.lock:
        number = str(len(fake.uploads))
        fake.uploads[number] = b""
    it.reply(202, Location=f"/v2/{repository}/blobs/uploads/{number}?s=1", Range="0-0")


def upload(it: Handler, repository: str, number: str) -> None:
    fake = it.fake
    have, place = fake.uploads[number], f"/v2/{repository}/blobs/uploads/{number}?s=1"
    if it.command == "DELETE":
        del fake.uploads[number]
        it.reply(204)
    elif it.command == "GET":
        it.reply(204, Location=place, Range=f"0-{max(len(have) - 1, 0)}")
    elif it.command == "PATCH":
        begins = int(it.headers["Content-Range"].partition("-")[0])
        data = it.body()
        if begins != len(have):
            it.error(416, "RANGE_INVALID")
            return
        fake.uploads[number] = have + data
        it.reply(202, Location=place, Range=f"0-{len(have) + len(data) - 1}")
    else:
        data = have + it.body()
        digest = parse_qs(urlsplit(it.path).query)["digest"][0]
        if sha256(data) != digest:
            it.error(400, "DIGEST_INVALID")
            return
        fake.blobs[repository, digest] = data
        del fake.uploads[number]
        it.reply(201, Docker_Content_Digest=digest)


ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("/v2/", ping),
    ("/token", token),
    ("/v2/(.+)/tags/list", tags),
    ("/v2/(.+)/manifests/([^/]+)", manifest),
    ("/v2/(.+)/blobs/uploads/", open_upload),
    ("/v2/(.+)/blobs/uploads/([^/]+)", upload),
    ("/v2/(.+)/blobs/([^/]+)", blob),
]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: "Fake"

    def process_request(self, *given: object) -> None:
        self.fake.connections += 1
        super().process_request(*given)  # type: ignore[arg-type]

    def handle_error(self, *_: object) -> None:
        pass


class Fake:
    """What is in the registry, what it was asked, and how it misbehaves.

    ``fault`` is called with each request, and returns whether it has answered.
    """

    def __init__(self) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.fault: Callable[[Handler], bool] | None = None
        self.wants = ""  # "basic" or "bearer"
        self.password = ""  # the Authorization header that is right
        self.tokens: list[str] = []
        self.realm = ""
        self.lock = threading.Lock()
        self.connections = 0
        self.host = ""
        self.server: Server

    def lets_in(self, it: Handler) -> bool:
        given, path = it.headers.get("Authorization", ""), urlsplit(it.path).path
        if not self.wants or path == "/token":
            return True
        if self.wants == "basic":
            if given == self.password:
                return True
            it.error(401, "UNAUTHORIZED", WWW_Authenticate='Basic realm="fake"')
            return False
        if self.tokens and given == f"Bearer {self.tokens[-1]}":
            return True
        it.body()
        realm = self.realm or f"http://{self.host}/token"
        it.error(
            401,
            "UNAUTHORIZED",
            WWW_Authenticate=f'Bearer realm="{realm}",service="fake"',
        )
        return False

    def paths(self, method: str) -> list[str]:
        return [path for verb, path, _ in self.asked if verb == method]

    def add_blob(self, repository: str, data: bytes, kind: Media) -> Descriptor:
        self.blobs[repository, sha256(data)] = data
        return Descriptor(kind.value, sha256(data), len(data))

    def add_manifest(self, repository: str, which: str, it: Manifest) -> str:
        data = it.to_json()
        for name in (which, sha256(data)):
            self.manifests[repository, name] = (it.media_type, data)
        return sha256(data)


@contextmanager
def fake_registry() -> Iterator[Fake]:
    """Run a Fake on a port of its own."""
    fake = Fake()
    server = Server(("127.0.0.1", 0), Handler)
    server.fake, fake.server = fake, server
    fake.host = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
