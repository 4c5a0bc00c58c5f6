"""``python -m minidocker``."""

from minidocker.cli import script


if __name__ == "__main__":
    script()
