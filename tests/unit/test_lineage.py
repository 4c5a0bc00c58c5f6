"""A long family is folded to what has a name or brought a layer."""

from minidocker.layers import Layer
from minidocker.lineage import Fold, Step, folded


LAYER = Layer("sha256:" + "1" * 64, "sha256:" + "2" * 64, None, "cache", 7)


def step(number: int, *tags: str, brings: bool = False) -> Step:
    return Step(f"sha256:{number:064x}", tags, f"ENV A={number}", LAYER, brings)


def test_a_short_family_is_shown_whole() -> None:
    steps = [step(number) for number in range(5)]
    assert folded(steps, most=5) == steps


def test_quiet_steps_of_a_long_one_are_counted() -> None:
    steps = [
        step(0),
        step(1),
        step(2),
        step(3, "named"),
        step(4),
        step(5, brings=True),
        step(6),
    ]
    found = folded(steps, most=3)
    assert found == [steps[0], Fold((steps[1], steps[2])), *steps[3:]]
    assert isinstance(found[1], Fold)
    assert found[1].words == "2 steps: ENV"


def test_the_first_and_the_last_are_never_folded() -> None:
    steps = [step(number) for number in range(100)]
    first, fold, last = folded(steps)
    assert (first, last) == (steps[0], steps[-1])
    assert isinstance(fold, Fold)
    assert len(fold.steps) == 98
