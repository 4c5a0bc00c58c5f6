"""Peak memory."""

import os

from bench.measure import Bench, peak_memory


def measure(bench: Bench) -> None:
    """Show the peak memory of committing layers of 1 GiB, by COPY and by RUN."""
    context = bench.where / "gigabyte"
    context.mkdir()
    with (context / "big").open("wb") as big:
        for _ in range(1024):
            big.write(os.urandom(4096) * 256)
    text = "FROM bench\nCOPY big /big\nRUN cp /big /second\n"
    (context / "Dockerfile").write_text(text)
    peak = peak_memory([*bench.ours, "build", "--no-cache", str(context)])
    print(f"| peak memory, COPY and RUN of 1 GiB | {peak:.0f} MiB | | | 100 MiB |")
