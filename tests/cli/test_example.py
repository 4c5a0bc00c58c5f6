"""The main job: the worked example, from a tree on the input to a service that answers."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from minidocker import the_example
from minidocker.the_example import Session


RECORDED = Path(__file__).parent.parent / "golden" / "classic-build"


@pytest.fixture(scope="module")
def example() -> Iterator[tuple[Session, Path]]:
    with the_example.example() as found:
        yield found


@pytest.fixture(scope="module")
def built(example: tuple[Session, Path]) -> Session:
    session, context = example
    answer = session.say("build", "-t", "ss-test-mount", str(context))
    assert answer.status == 0, answer
    return session


def test_the_dockerfile_is_the_source_s() -> None:
    assert (RECORDED / "Dockerfile").read_text() == the_example.DOCKERFILE


def test_the_history_is_docker_s_but_for_ids_and_times(built: Session) -> None:
    recorded = [
        json.loads(line)
        for line in (RECORDED / "history.json").read_text().splitlines()
    ]
    said = built.say(
        "history", "--no-trunc", "--human=false", "--format", "json", "ss-test-mount"
    )
    rows = [json.loads(line) for line in said.text.splitlines()]
    assert len(rows) == len(recorded) == 6
    for ours, theirs in zip(rows, recorded, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["Comment"] == theirs["Comment"]
        assert without_digest(ours["CreatedBy"]) == without_digest(theirs["CreatedBy"])
    assert [row["Size"] for row in rows[:5]] == ["0", "0", "0", "8866", "0"]
    assert rows[5]["Comment"] == "Imported from -"


def without_digest(text: str) -> str:
    words = (w if not w.startswith("file:") else "file:" for w in text.split(" "))
    return " ".join(words)


def test_the_table_reads_as_docker_s(built: Session) -> None:
    recorded = (RECORDED / "history.txt").read_text().splitlines()
    lines = built.say("history", "ss-test-mount").text.splitlines()
    assert [line.split()[0] for line in lines[:1]] == ["IMAGE"]
    told, ours_told = (text[0].index("CREATED BY") for text in (recorded, lines))
    wanted = [line[told:].replace("410117d38a80822a", "*") for line in recorded[1:5]]
    digest = next(line for line in lines if "COPY file:" in line).split("file:")[1][:16]
    ours = [line[ours_told:].replace(digest, "*") for line in lines[1:5]]
    assert ours == wanted


def test_supervisord_runs_as_user_1001_and_answers(built: Session) -> None:
    assert built.say("run", "-d", "--name", "search", "ss-test-mount").status == 0
    try:
        control = ("exec", "search", *the_example.CONTROL, "status")
        found = the_example.eventually(lambda: built.say(*control), "RUNNING")
        assert "RUNNING" in found.text
        python = f"{the_example.PREFIX}/bin/python3"
        fetch = ("exec", "search", python, "-c", the_example.FETCH)
        assert the_example.eventually(lambda: built.say(*fetch), "200").text == "200\n"
        assert built.say("exec", "search", "sh", "-c", "id -u").text == "1001\n"
        assert "supervisord started with pid 1" in built.say("logs", "search").text
    finally:
        built.say("rm", "-f", "search")
