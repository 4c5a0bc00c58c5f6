"""minidocker: how Docker builds images and runs containers, small enough to read."""

__version__ = "0.1.0"
