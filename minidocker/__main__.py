"""``python -m minidocker``, and the program ``minidocker``."""

import gc


gc.set_threshold(50_000)  # before anything is imported, see `script`

from minidocker.cli import script  # noqa: E402


if __name__ == "__main__":
    script()
