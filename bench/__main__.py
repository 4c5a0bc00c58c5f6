"""Measure minidocker beside its peers, in one run, and print the ratios as a table.

python -m bench            everything
python -m bench run build  only these topics: the modules of bench/topics

Needs root, and Debian's packages that the topics name. A topic is a module with a
function ``measure(bench)``; it prints its rows with ``bench.row``.
"""

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from bench import topics
from bench.measure import Bench


def main(chosen: list[str]) -> None:
    """Measure the topics that are named, or all."""
    if os.geteuid() != 0:
        raise SystemExit("bench needs root")
    known = sorted(module.name for module in iter_modules(topics.__path__))
    if strange := set(chosen) - set(known):
        raise SystemExit(f"no such topic: {' '.join(strange)}; there are {known}")
    print("| what | minidocker | peer | ratio | bound |\n|---|---|---|---|---|")
    for name in chosen or known:
        with tempfile.TemporaryDirectory(prefix="minidocker-bench-") as where:
            import_module(f"bench.topics.{name}").measure(Bench(Path(where)))


if __name__ == "__main__":
    main(sys.argv[1:])
