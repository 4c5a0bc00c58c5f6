"""`explain` says what a build did, and `ids` of which bytes each digest is."""

import gzip
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from workbench import Workbench

from minidocker.changes import ChangeKind
from minidocker.drivers import Overlay2, StorageDriver, Vfs
from minidocker.errors import NotFoundError
from minidocker.explain import Both, JsonChange, both_halves, explain, json_changes
from minidocker.ids import Kind, claims_of, verdict_on, write_bytes
from minidocker.oci import parse_reference


DOCKERFILE = """\
FROM base
ENV A=1
COPY note /srv/
USER 33
RUN rm /etc/secret; chmod 700 /etc; echo more >> /etc/motd
RUN true
LABEL a=b
"""


@pytest.fixture(params=[Vfs, Overlay2])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Workbench:
    driver: type[StorageDriver] = request.param
    bench = Workbench(tmp_path, driver)
    bench.base("base", {"etc": None, "etc/motd": b"hello\n", "etc/secret": b"x" * 4000})
    (bench.context / "note").write_text("a note\n")

    def act(root: Path) -> int:
        if (root / "etc/secret").exists():
            (root / "etc/secret").unlink()
            (root / "etc").chmod(0o700)
            with (root / "etc/motd").open("a") as motd:
                motd.write("more\n")
        return 0

    bench.runner.act = act
    bench.build(DOCKERFILE, tags=("web",))
    return bench


pytestmark = pytest.mark.root  # overlay2 mounts


def halves(bench: Workbench, name: str = "web", limit: int = 12) -> list[Both]:
    id = bench.images.resolve(name)
    return list(both_halves(bench.images, bench.layers, id, limit))


def test_every_step_has_its_number_image_and_words(bench: Workbench) -> None:
    steps = halves(bench)
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert steps[-1].id == bench.images.resolve("web")
    assert steps[3].id == bench.images.resolve("web@4")
    words = [step.words.split()[0] for step in steps[1:]]
    assert words == ["ENV", "COPY", "USER", "RUN", "RUN", "LABEL"]


def test_the_left_half_is_what_the_instruction_wrote(bench: Workbench) -> None:
    steps = halves(bench)
    said = [
        [str(c) for c in step.json or () if c.path.startswith("config.")]
        for step in steps
    ]
    assert '+ config.Env[1]: "A=1"' in said[1]
    assert '+ config.User: "33"' in said[3]
    assert '+ config.Labels.a: "b"' in said[6]
    layers = [
        sum("rootfs.diff_ids" in c.path for c in step.json or ()) for step in steps
    ]
    assert layers == [1, 0, 1, 0, 1, 0, 0]


def test_the_right_half_is_what_the_layer_says(bench: Workbench) -> None:
    steps = halves(bench)
    assert [step.tree.total for step in steps] == [3, 0, 2, 0, 3, 0, 0]
    assert list(map(str, steps[4].tree.shown)) == [
        "C /etc  (directory)", "C /etc/motd  11 B", "D /etc/secret  (whiteout)",
    ]  # fmt: skip
    assert steps[4].tree.whiteouts == 1
    assert [c.kind for c in steps[2].tree.shown] == [ChangeKind.ADDED] * 2


def test_an_empty_layer_is_explained(bench: Workbench) -> None:
    why = [step.why for step in halves(bench)]
    assert why[1].startswith("0 B: ENV is written in the JSON only")
    assert why[1].endswith("the image has the same layer as before.")
    assert why[5].startswith(
        "0 B: RUN ran over an empty read-write layer and left it empty"
    )
    assert why[5].endswith("the same 3 layers as before.")
    assert why[4].startswith(
        "11 bytes: changes 1 directory, 1 file, leaves 1 whiteout."
    )
    assert "frees nothing" in why[4]


def test_a_layer_of_names_only_weighs_nothing(bench: Workbench) -> None:
    bench.runner.act = lambda root: (root / "empty").mkdir() or 0  # type: ignore[func-returns-value]
    bench.build("FROM base\nRUN mkdir /empty\n", tags=("empty",))
    last = halves(bench, "empty")[-1]
    assert last.why.startswith(
        "0 bytes: adds 1 directory. Names, owners and links weigh nothing"
    )


def test_only_so_many_paths_are_shown(bench: Workbench) -> None:
    (few,) = [step.tree for step in halves(bench, limit=1) if step.number == 5]
    assert (len(few.shown), few.total) == (1, 3)
    text = str(
        explain(bench.images, bench.layers, bench.images.resolve("web"), limit=1)
    )
    assert "... and 2 more" in text


def test_without_ancestors_the_right_half_is_there(bench: Workbench) -> None:
    for path in Path(bench.images.metadata).glob("*/parent"):
        path.unlink()
    steps = halves(bench)
    assert [step.json is None for step in steps] == [True] * 7
    assert [step.tree.total for step in steps] == [3, 0, 2, 0, 3, 0, 0]
    with pytest.raises(NotFoundError, match="step 3") as caught:
        bench.images.resolve("web@3")
    assert caught.value.hint == "here are those of its steps 7"


def test_it_can_be_shown_anywhere(bench: Workbench) -> None:
    found = explain(bench.images, bench.layers, bench.images.resolve("web"), width=50)
    assert max(map(len, repr(found).splitlines())) < 200
    assert found._repr_html_().count("<tr>") == 1 + 3 * 7
    document = json.loads(json.dumps(found.to_json()))
    assert document[4]["Whiteouts"] == 1
    env = {"Path": "config.Env[1]", "Before": None, "After": "A=1"}
    assert env in document[1]["Json"]


JSON = st.recursive(
    st.none() | st.integers(1, 3) | st.sampled_from(["a", "b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def emptied(value: object) -> object:
    """What counts as the same: what is empty is nothing."""
    if isinstance(value, dict):
        value = {k: w for k, v in value.items() if (w := emptied(v)) is not None}
    if isinstance(value, list):
        value = [emptied(one) for one in value]
        while value and value[-1] is None:
            value.pop()
    return value or None


@given(JSON, JSON)
def test_documents_that_differ_have_a_change_and_only_they(
    before: object, after: object
) -> None:
    changes = list(json_changes(before, after))
    assert all(
        isinstance(one, JsonChange) and one.before != one.after for one in changes
    )
    if emptied(before) == emptied(after):
        assert not [c for c in changes if emptied(c.before) != emptied(c.after)]
    elif before is not None and after is not None:
        assert changes


# ids


def test_each_digest_is_found_again(bench: Workbench) -> None:
    id = bench.images.resolve("web")
    claims = list(claims_of(bench.images, id, "web"))
    kinds = [claim.kind for claim in claims]
    assert kinds == [Kind.IMAGE, *([Kind.DIFF, Kind.CHAIN] * 3)]
    assert all(
        verdict_on(bench.images, bench.layers, id, claim).right for claim in claims
    )
    for claim in claims:
        sink = bytearray()
        write_bytes(bench.images, bench.layers, id, claim.digest, sink.extend)
        assert f"sha256:{hashlib.sha256(sink).hexdigest()}" == claim.digest


def test_a_blob_is_what_gunzip_turns_into_the_tar(bench: Workbench) -> None:
    id = bench.images.resolve("web")
    claims = list(claims_of(bench.images, id, "web", blobs=bench.layers))
    blobs = [claim for claim in claims if claim.kind is Kind.BLOB]
    assert [claim.layer for claim in blobs] == [1, 2, 3]
    diff_ids = bench.images.get(id).diff_ids
    for claim in blobs:
        assert verdict_on(bench.images, bench.layers, id, claim).right
        sink = bytearray()
        write_bytes(bench.images, bench.layers, id, claim.digest, sink.extend)
        assert f"sha256:{hashlib.sha256(sink).hexdigest()}" == claim.digest
        tar = hashlib.sha256(gzip.decompress(sink)).hexdigest()
        assert f"sha256:{tar}" == diff_ids[claim.layer - 1]


def test_the_commands_give_the_digits(bench: Workbench) -> None:
    id = bench.images.resolve("web")
    checked = 0
    for claim in claims_of(bench.images, id, "web"):
        if "minidocker" not in claim.check:
            said = subprocess.run(
                ["sh", "-c", claim.check], capture_output=True, text=True, check=True
            )
            assert said.stdout.split()[0] == claim.digest.removeprefix("sha256:")
            checked += 1
    assert checked == 3


def test_a_changed_file_is_found_out(bench: Workbench) -> None:
    id = bench.images.resolve("web")
    chain = next(
        c.digest
        for c in claims_of(bench.images, id, "web")
        if c.layer == 2 and c.kind is Kind.CHAIN
    )
    with bench.driver.opened(bench.layers.get(chain).cache_id) as tree:
        Path(tree, "srv/note").write_text("a lie!\n")
    wrong = [
        (claim.kind, claim.layer)
        for claim in claims_of(bench.images, id, "web")
        if verdict_on(bench.images, bench.layers, id, claim).right is False
    ]
    assert wrong[0] == (Kind.DIFF, 2)
    assert (Kind.CHAIN, 2) not in wrong


def test_a_changed_image_json_is_found_out(bench: Workbench) -> None:
    id = bench.images.resolve("web")
    claims = list(claims_of(bench.images, id, "web"))
    path = Path(bench.images.content, id[7:])
    path.write_bytes(path.read_bytes() + b" ")
    verdict = verdict_on(bench.images, bench.layers, id, claims[0])
    assert (verdict.right, verdict.found) == (
        False,
        f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
    )


def test_a_registry_s_digest_is_told_and_not_claimed(bench: Workbench) -> None:
    id, digest = bench.images.resolve("web"), "sha256:" + "5" * 64
    bench.images.note_digest(parse_reference("registry.example/web"), digest, id)
    last = list(claims_of(bench.images, id, "web"))[-1]
    assert (last.kind, last.digest, last.check) == (Kind.MANIFEST, digest, "")
    assert verdict_on(bench.images, bench.layers, id, last).right is None
    with pytest.raises(NotFoundError):
        write_bytes(bench.images, bench.layers, id, digest, lambda data: None)
