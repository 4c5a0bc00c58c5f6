"""States and commands read as in Docker's tables."""

import pytest

from minidocker.containers import State, Status
from minidocker.views import command_words, pretty, status_words


def test_states_in_words() -> None:
    exited = State(Status.EXITED, exit_code=137, finished="1970-01-01T00:00:10Z")
    assert status_words(exited, 130) == "Exited (137) 2 minutes ago"
    assert status_words(State()) == "Created"


def test_a_document_is_indented_and_escaped_as_go_does() -> None:
    assert (
        pretty([{"Cmd": ["a && b"]}]).splitlines()[3]
        == '            "a \\u0026\\u0026 b"'
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [(["sh"], '"sh"'), (["sh", "-c", "a b"], "\"sh -c 'a b'\""), (["a", 'say "x"'], '"a \'say \\"x\\"\'"'),
     (["sh", "-c", "x\ny"], '"sh -c x\\ny"'), (["sh", "-c", "echo one; echo two"], "\"sh -c 'echo one; ec…\"")],
)  # fmt: skip
def test_a_command_is_quoted_as_ps_does(argv: list[str], words: str) -> None:
    assert command_words(argv, 20) == words
