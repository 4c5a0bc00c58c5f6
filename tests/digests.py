"""Docker's digests of files, by the package and by hand."""

import hashlib
from pathlib import Path

from minidocker.cache import digest_of_source, digest_of_sources
from minidocker.context import find_sources, open_context


def digest(root: Path, *patterns: str) -> str:
    with open_context(str(root)) as context:
        found = find_sources(context, patterns)
        return digest_of_sources([digest_of_source(context, s)[0] for s in found])


def sum_of(
    name: str, mode: int, kind: str, content: bytes = b"", link: str = ""
) -> str:
    head = (
        f"name{name}mode{mode}uid0gid0size{len(content)}typeflag{kind}linkname{link}"
        "unamegnamedevmajor0devminor0"
    )
    return hashlib.sha256(head.encode() + content).hexdigest()
