"""What the commands on containers share."""

import pytest

from minidocker.container_verbs import each_named
from minidocker.errors import MinidockerError, NotFoundError, RuntimeFault, UsageError
from minidocker.flags import Given


@pytest.mark.parametrize(
    ("error", "force", "status"),
    [
        (RuntimeFault("no control group"), False, 1),  # 125 is `run`'s
        (UsageError("nonsense"), False, 125),
        (NotFoundError("no such container"), False, 1),
        (NotFoundError("no such container"), True, 0),
    ],
)
def test_what_failed_for_one_is_told_and_the_others_are_done(
    error: MinidockerError, force: bool, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def action(name: str) -> None:
        if name == "bad":
            raise error

    assert each_named(Given({"force": force}, ("bad", "good")), action) == status
    said = capsys.readouterr()
    assert (said.out, said.err) == ("good\n", f"minidocker: {error}\n")
