"""The protocol against registries that are busy, broken, slow or hostile."""

import io
import random
import resource
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from peers import free_port

from minidocker.credentials import Login
from minidocker.errors import (
    IntegrityError,
    MinidockerError,
    NotFoundError,
    RegistryError,
)
from minidocker.manifests import DOCUMENT_LIMIT, Descriptor, Media, parse_document
from minidocker.registry import Client, Document, Download, get_manifest, put_manifest
from minidocker.uploads import CHUNK, Upload, blob_size, mount_blob
from minidocker.wire import Limits, UnreachableError
from registry.fake import Fake, Handler, fake_registry, sha256, without_end


QUICK = Limits(idle=1.0, pause=0.001)
LAYER = Media.DOCKER_LAYER
BIG = random.Random(7).randbytes(3 << 20)
MOBY = Login("moby", "whale")


def client(fake: Fake, login: Login | None = None, limits: Limits = QUICK) -> Client:
    return Client(fake.host, login, limits)


def download(it: Client, wanted: Descriptor, repository: str = "a/b") -> bytes:
    file = io.BytesIO()
    told: list[int] = []
    Download(it, repository, wanted, file, told.append).run()
    assert sum(told) == len(file.getvalue())
    return file.getvalue()


def upload(it: Client, data: bytes, step: int = 1 << 20) -> None:
    told: list[int] = []
    up = Upload(it, "a/b", told.append)
    for at in range(0, len(data), step):
        up(data[at : at + step])
    up.finish(sha256(data))
    assert sum(told) == len(data)


# finding the registry


def test_a_registry_here_may_speak_http(fake: Fake) -> None:
    one = client(fake)
    one.connect()
    assert one.wire.base == f"http://{fake.host}"


@pytest.fixture
def tls(fake: Fake, tmp_path: Path) -> Fake:
    """A fake that speaks TLS, with a certificate that nobody has signed."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=x"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    fake.server.socket = context.wrap_socket(fake.server.socket, server_side=True)
    return fake


def test_a_registry_here_may_speak_https_under_any_name(tls: Fake) -> None:
    blob = tls.add_blob("a/b", b"hello", LAYER)
    one = client(tls)
    assert download(one, blob) == b"hello"
    assert one.wire.base == f"https://{tls.host}"


def test_another_machine_must_prove_its_name(
    tls: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minidocker.wire.is_local", lambda url: False)
    monkeypatch.setattr("minidocker.registry.is_local", lambda url: False)
    with pytest.raises(RegistryError, match="CERTIFICATE_VERIFY_FAILED"):
        client(tls).connect()
    assert not tls.asked


def test_where_nobody_listens_one_fails_at_once() -> None:
    before = time.monotonic()
    with pytest.raises(UnreachableError, match="Connection refused"):
        Client(f"127.0.0.1:{free_port()}").connect()
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("status", [200, 401, 404])
def test_a_web_server_that_is_no_registry(fake: Fake, status: int) -> None:
    fake.fault = lambda it: it.reply(status, b"<html>") is None
    with pytest.raises(MinidockerError):
        parse_document(get_manifest(client(fake), "a/b", "latest").data)


# credentials


def test_basic(fake: Fake) -> None:
    fake.wants, fake.password = "basic", MOBY.basic
    blob = fake.add_blob("a/b", b"hello", LAYER)
    assert download(client(fake, MOBY), blob) == b"hello"
    for wrong in (None, Login("moby", "wail")):
        with pytest.raises(
            RegistryError,
            match=r"access is denied: unauthorized\nhint: `minidocker login 127",
        ):
            client(fake, wrong).check_login()


def test_bearer_tokens_are_fetched_for_their_scope_and_kept(fake: Fake) -> None:
    fake.wants, fake.password = "bearer", MOBY.basic
    blob = fake.add_blob("a/b", b"hello", LAYER)
    one = client(fake, MOBY)
    assert download(one, blob) == download(one, blob) == b"hello"
    assert len(fake.tokens) == 1
    asked = next(path for path in fake.paths("GET") if path.startswith("/token"))
    assert "scope=repository%3Aa%2Fb%3Apull" in asked
    assert "service=fake" in asked
    assert "account=moby" in asked
    with pytest.raises(RegistryError, match="access is denied"):
        client(fake, Login("moby", "wail")).check_login()


def test_a_stale_token_is_renewed_once_for_all_threads(fake: Fake) -> None:
    fake.wants = "bearer"
    blobs = [fake.add_blob("a/b", bytes([n]) * 1000, LAYER) for n in range(6)]
    one = client(fake)
    download(one, blobs[0])
    fake.tokens.append("another")  # the one that the client has is good no more
    got: list[bytes] = []
    threads = [
        threading.Thread(target=lambda b=b: got.append(download(one, b))) for b in blobs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [bytes([n]) * 1000 for n in range(6)]
    renewed = [path for path in fake.paths("GET") if path.startswith("/token")]
    assert len(renewed) == 2


def test_a_registry_that_refuses_every_token_is_asked_twice(fake: Fake) -> None:
    fake.wants = "bearer"
    fake.fault = lambda it: bool(
        it.fake.tokens.append("never") if "/token" not in it.path else 0
    )
    with pytest.raises(RegistryError, match="access is denied"):
        get_manifest(client(fake), "a/b", "latest")
    assert len(fake.paths("GET")) < 8


def test_an_identity_token_is_posted(fake: Fake) -> None:
    fake.wants = "bearer"
    client(fake, Login(identity_token="secret-1")).check_login()
    assert fake.paths("POST") == ["/token"]


@pytest.mark.parametrize(
    "realm",
    ["http://registry.example/token", "file:///etc/passwd", "ftp://127.0.0.1/"],
)
def test_a_password_goes_to_no_realm_without_tls(fake: Fake, realm: str) -> None:
    fake.wants = "bearer"
    fake.realm = realm
    with pytest.raises(RegistryError, match="not http"):
        client(fake, MOBY).check_login()


# redirects


def redirect(
    to: Callable[[Handler], str], status: int = 307
) -> Callable[[Handler], bool]:
    def fault(it: Handler) -> bool:
        if "/blobs/" in it.path:
            it.reply(status, Location=to(it))
            return True
        return False

    return fault


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_do_not_follow_to_another_host(fake: Fake, status: int) -> None:
    fake.wants, fake.password = "basic", MOBY.basic
    with fake_registry() as store:
        blob = store.add_blob("a/b", BIG, LAYER)
        fake.fault = redirect(lambda it: f"http://{store.host}{it.path}", status)
        assert download(client(fake, MOBY), blob) == BIG
        assert store.asked
        assert not any("Authorization" in headers for _, _, headers in store.asked)
        assert any("Authorization" in headers for _, _, headers in fake.asked)


def test_a_challenge_from_another_host_is_not_answered(fake: Fake) -> None:
    fake.wants, fake.password = "basic", MOBY.basic
    with fake_registry() as thief:
        thief.wants, thief.password = "basic", MOBY.basic
        blob = thief.add_blob("a/b", b"x", LAYER)
        fake.fault = redirect(lambda it: f"http://{thief.host}{it.path}")
        with pytest.raises(RegistryError, match="access is denied"):
            download(client(fake, MOBY), blob)
        assert len(thief.asked) == 1
        assert "Authorization" not in thief.asked[0][2]


def test_a_redirect_within_the_registry_keeps_credentials(fake: Fake) -> None:
    fake.wants, fake.password = "basic", MOBY.basic
    blob = fake.add_blob("c/d", b"here", LAYER)

    def fault(it: Handler) -> bool:
        if "/a/b/blobs/" in it.path:
            it.reply(302, Location=it.path.replace("a/b", "c/d"))
            return True
        return False

    fake.fault = fault
    assert download(client(fake, MOBY), blob) == b"here"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("file:///etc/passwd", "not http"),
        ("ftp://127.0.0.1/x", "not http"),
        ("http://registry.example/x", "not https"),
        ("http://[::1", "no address"),
        ("", "without end"),
    ],
)  # fmt: skip
def test_redirects_go_only_where_they_may(fake: Fake, target: str, says: str) -> None:
    blob = fake.add_blob("a/b", b"x", LAYER)
    fake.fault = redirect(lambda it: target or it.path)
    with pytest.raises(RegistryError, match=says):
        download(client(fake), blob)
    assert len(fake.asked) < 10


def test_an_upload_is_not_redirected(fake: Fake) -> None:
    fake.fault = redirect(lambda it: "/elsewhere")
    with pytest.raises(RegistryError, match="redirects an upload"):
        upload(client(fake), b"x")


# patience


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_passes_is_tried_again(fake: Fake, status: int) -> None:
    blob, left = fake.add_blob("a/b", b"hello", LAYER), [3]

    def fault(it: Handler) -> bool:
        if "/blobs/" in it.path and left[0]:
            left[0] -= 1
            it.error(status, "LATER", Retry_After="0")
            return True
        return False

    fake.fault = fault
    assert download(client(fake), blob) == b"hello"
    left[0] = 1000
    with pytest.raises(RegistryError, match=f"answers {status}: later"):
        download(client(fake), blob)
    assert left[0] == 1000 - QUICK.attempts


def test_what_does_not_pass_is_not_tried_again(fake: Fake) -> None:
    with pytest.raises(NotFoundError, match="manifest_unknown"):
        get_manifest(client(fake), "a/b", "latest")
    assert len([p for p in fake.paths("GET") if "manifests" in p]) == 1


def test_a_silent_registry_is_given_up(fake: Fake) -> None:
    done = threading.Event()
    fake.fault = lambda it: (
        "/v2/a" in it.path and bool(done.wait(20) or it.drop() is None)
    )
    before = time.monotonic()
    with pytest.raises(RegistryError, match="is silent"):
        get_manifest(
            client(fake, limits=Limits(idle=0.1, attempts=2, pause=0.001)), "a", "b"
        )
    done.set()
    assert time.monotonic() - before < 5


def test_a_registry_that_dribbles_is_given_up(fake: Fake) -> None:
    blob = fake.add_blob("a/b", b"x" * 100_000, LAYER)

    def fault(it: Handler) -> bool:
        if "/blobs/" in it.path:
            it.begin(100_000)
            for _ in range(200):
                it.wfile.write(b"x")
                it.wfile.flush()
                time.sleep(0.02)
            return True
        return False

    fake.fault = fault
    before = time.monotonic()
    with pytest.raises(RegistryError, match="all but silent"):
        download(client(fake, limits=Limits(idle=0.3, attempts=2, pause=0.001)), blob)
    assert time.monotonic() - before < 5


# blobs down


def breaking(at: int, times: int, *, ranges: bool = True) -> Callable[[Handler], bool]:
    """Break after ``at`` bytes, some times."""
    left = [times]

    def fault(it: Handler) -> bool:
        if "/blobs/" not in it.path:
            return False
        digest = it.path.rpartition("/")[2]
        data = it.fake.blobs["a/b", digest]
        begins = int(it.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
        if not left[0]:
            if not ranges and it.headers.get("Range"):
                it.reply(200, data)
                return True
            return False
        left[0] -= 1
        more = {}
        if begins:
            more["Content_Range"] = f"bytes {begins}-{len(data) - 1}/{len(data)}"
        it.begin(len(data) - begins, 206 if begins else 200, **more)
        it.wfile.write(data[begins : begins + at])
        it.drop()
        return True

    return fault


def test_a_broken_download_goes_on_where_it_broke(fake: Fake) -> None:
    blob = fake.add_blob("a/b", BIG, LAYER)
    fake.fault = breaking(1_000_000, 3)
    assert download(client(fake), blob) == BIG
    spans = [h.get("Range") for _, p, h in fake.asked if "/blobs/" in p]
    assert spans == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


def test_where_range_is_ignored_a_download_begins_again(fake: Fake) -> None:
    blob = fake.add_blob("a/b", BIG, LAYER)
    fake.fault = breaking(1_500_000, 2, ranges=False)
    assert download(client(fake), blob) == BIG


def test_a_download_that_never_ends_well_is_given_up(fake: Fake) -> None:
    blob = fake.add_blob("a/b", BIG, LAYER)
    fake.fault = breaking(1_500_000, 10_000, ranges=False)
    with pytest.raises(RegistryError, match="broke"):
        download(client(fake), blob)
    assert len(fake.asked) < 12
    fake.fault = breaking(1, 10_000)
    with pytest.raises(RegistryError, match="broke"):
        download(client(fake), blob)


def test_a_download_that_gets_on_may_break_often(fake: Fake) -> None:
    data = BIG * 4
    blob = fake.add_blob("a/b", data, LAYER)
    fake.fault = breaking(1 << 20, 11)
    assert download(client(fake), blob) == data


@pytest.mark.parametrize(
    ("sent", "size", "says"),
    [
        (b"hallo", 5, "not what was asked for"),
        (b"hello!", 5, "6 bytes, and the manifest says 5"),
        (b"hell", 5, "4 bytes, and the manifest says 5"),
    ],
)
def test_other_bytes_are_refused(fake: Fake, sent: bytes, size: int, says: str) -> None:
    fake.blobs["a/b", sha256(b"hello")] = sent
    with pytest.raises(IntegrityError, match=says):
        download(client(fake), Descriptor(LAYER.value, sha256(b"hello"), size))


def endless(it: Handler) -> bool:
    if it.path == "/v2/":
        return False
    it.send_response(200)
    it.end_headers()
    return without_end(it, b" " * (1 << 20))


def test_an_endless_body_is_cut_off(fake: Fake) -> None:
    fake.fault = endless
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    blob = Descriptor(LAYER.value, sha256(b""), 5_000_000)
    with (
        tempfile.TemporaryFile() as file,
        pytest.raises(IntegrityError, match="more than the 5000000 bytes"),
    ):
        Download(client(fake), "a/b", blob, file, int).run()
    with pytest.raises(IntegrityError, match=f"more than {DOCUMENT_LIMIT} bytes"):
        get_manifest(client(fake), "a/b", "latest")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_an_endless_head_is_cut_off(fake: Fake) -> None:
    def fault(it: Handler) -> bool:
        if it.path == "/v2/":
            return False
        it.wfile.write(b"HTTP/1.1 200 OK\r\n")
        return without_end(it, b"X-Padding: " + b"x" * 60_000 + b"\r\n")

    fake.fault = fault
    with pytest.raises(RegistryError):
        get_manifest(client(fake), "a/b", "latest")


def test_an_endless_error_is_cut_off(fake: Fake) -> None:
    def fault(it: Handler) -> bool:
        if it.path == "/v2/":
            return False
        it.begin(1 << 40, 400)
        return without_end(it, b"x" * (1 << 20))

    fake.fault = fault
    with pytest.raises(RegistryError, match="answers 400"):
        get_manifest(client(fake), "a/b", "latest")


def test_what_a_registry_says_cannot_drive_the_terminal(fake: Fake) -> None:
    fake.fault = lambda it: (
        "/v2/a" in it.path and it.error(400, "\x1b[2J\x07\n") is None
    )
    with pytest.raises(RegistryError) as refused:
        get_manifest(client(fake), "a/b", "latest")
    assert str(refused.value).isprintable()


# manifests


def test_a_manifest_must_have_the_digest_it_was_asked_for_by(fake: Fake) -> None:
    data = b'{"schemaVersion":2}'
    fake.manifests["a/b", sha256(b"else")] = (Media.OCI_MANIFEST.value, data)
    with pytest.raises(IntegrityError, match="the manifest is not"):
        get_manifest(client(fake), "a/b", sha256(b"else"))


def test_a_registry_must_not_contradict_itself(fake: Fake) -> None:
    fake.fault = lambda it: (
        "manifests" in it.path
        and it.reply(200, b"{}", Docker_Content_Digest=sha256(b"")) is None
    )
    with pytest.raises(IntegrityError, match="the manifest is not"):
        get_manifest(client(fake), "a/b", "latest")


def test_a_registry_that_understood_another_manifest(fake: Fake) -> None:
    fake.fault = lambda it: (
        it.command == "PUT" and it.reply(201, Docker_Content_Digest=sha256(b"")) is None
    )
    document = Document(b"{}", Media.OCI_MANIFEST.value, sha256(b"{}"))
    with pytest.raises(IntegrityError, match="the registry got"):
        put_manifest(client(fake), "a/b", "latest", document)


# blobs up


@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK - 1, CHUNK, 2 * CHUNK + 7])
def test_a_blob_goes_up_whole_or_in_chunks(fake: Fake, size: int) -> None:
    data = (BIG * 7)[:size]
    upload(client(fake), data)
    assert fake.blobs == {("a/b", sha256(data)): data}
    assert len(fake.paths("PATCH")) == size // CHUNK + (
        1 if size > CHUNK and size % CHUNK else 0
    )
    assert len(fake.paths("PUT")) == 1
    assert not fake.uploads


def test_a_broken_upload_goes_on_from_where_the_registry_is(fake: Fake) -> None:
    data = (BIG * 10)[: 3 * CHUNK + 5]
    left = [2, 1]  # keeps half of the second chunk twice; loses the answer to a third

    def fault(it: Handler) -> bool:
        if it.command != "PATCH" or it.headers["Content-Range"].startswith("0-"):
            return False
        number = it.path.partition("uploads/")[2].partition("?")[0]
        if left[0]:
            left[0] -= 1
            body = it.body()
            it.fake.uploads[number] += body[: len(body) // 2]
            it.drop()
            return True
        if left[1]:
            left[1] -= 1
            it.fake.uploads[number] += it.body()
            it.drop()
            return True
        return False

    fake.fault = fault
    upload(client(fake), data)
    assert fake.blobs["a/b", sha256(data)] == data
    assert [p for p in fake.paths("GET") if "/uploads/" in p]


def test_an_upload_that_broke_in_its_first_chunk_begins_anew(fake: Fake) -> None:
    data, left = (BIG * 4)[: CHUNK + 5], [1]

    def fault(it: Handler) -> bool:
        if it.command == "PATCH" and left[0]:
            left[0] -= 1
            number = it.path.partition("uploads/")[2].partition("?")[0]
            it.fake.uploads[number] += it.body()[:1]
            it.drop()
            return True
        return False

    fake.fault = fault
    upload(client(fake), data)
    assert fake.blobs["a/b", sha256(data)] == data
    assert len(fake.paths("POST")) == 2


def test_a_registry_that_forgot_an_upload(fake: Fake) -> None:
    def fault(it: Handler) -> bool:
        if it.command == "PATCH" and not it.headers["Content-Range"].startswith("0-"):
            number = it.path.partition("uploads/")[2].partition("?")[0]
            it.fake.uploads[number] = b"x"
            it.body()
            it.drop()
            return True
        return False

    fake.fault = fault
    with pytest.raises(IntegrityError, match="lost what it had"):
        upload(client(fake), (BIG * 7)[: 2 * CHUNK + 1])


def test_the_answer_to_the_last_request_may_get_lost(fake: Fake) -> None:
    data, left = (BIG * 4)[: CHUNK + 5], [1]

    def fault(it: Handler) -> bool:
        if it.command == "PUT" and left[0]:
            left[0] -= 1
            number = it.path.partition("uploads/")[2].partition("?")[0]
            it.fake.blobs["a/b", sha256(data)] = it.fake.uploads.pop(number)
            it.drop()
            return True
        if it.command == "PUT":
            it.error(404, "BLOB_UPLOAD_UNKNOWN")
            return True
        return False

    fake.fault = fault
    upload(client(fake), data)


def test_an_upload_that_the_registry_understood_otherwise(fake: Fake) -> None:
    fake.fault = lambda it: (
        it.command == "PUT" and it.reply(201, Docker_Content_Digest=sha256(b"")) is None
    )
    with pytest.raises(IntegrityError, match="the registry got"):
        upload(client(fake), b"hello")


def test_an_upload_elsewhere_gets_no_credentials(fake: Fake) -> None:
    fake.wants, fake.password = "basic", MOBY.basic
    with fake_registry() as store:
        store.uploads["7"] = b""

        def fault(it: Handler) -> bool:
            if it.command == "POST":
                place = f"http://{store.host}/v2/a/b/blobs/uploads/7"
                it.reply(202, Location=place)
                return True
            return False

        fake.fault = fault
        upload(client(fake, MOBY), b"hello" * 2_000_000)
        assert store.blobs
        assert store.asked
        assert not any("Authorization" in headers for _, _, headers in store.asked)


def test_a_blob_is_mounted_from_another_repository(fake: Fake) -> None:
    blob = fake.add_blob("a/b", b"hello", LAYER)
    one = client(fake)
    assert blob_size(one, "c/d", blob.digest) is None
    assert mount_blob(one, "c/d", blob.digest, "a/b")
    assert blob_size(one, "c/d", blob.digest) == 5
    assert not mount_blob(one, "c/d", sha256(b"else"), "a/b")
    assert not fake.uploads, "the upload that was opened instead is taken back"


# the real thing


def test_the_real_registry_takes_and_gives(real: str) -> None:
    one = Client(real)
    for data in (b"", b"x", BIG * 7):
        upload(one, data)
        assert blob_size(one, "a/b", sha256(data)) == len(data)
        assert download(one, Descriptor(LAYER.value, sha256(data), len(data))) == data
    assert mount_blob(one, "c/d", sha256(BIG * 7), "a/b")
    assert blob_size(one, "c/d", sha256(BIG * 7)) == 21 << 20


def test_the_real_registry_wants_the_right_password(guarded: str) -> None:
    Client(guarded, MOBY).check_login()
    upload(Client(guarded, MOBY), b"hello")
    for wrong in (None, Login("moby", "wail")):
        with pytest.raises(RegistryError, match="access is denied"):
            Client(guarded, wrong).check_login()
