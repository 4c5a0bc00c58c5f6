# From book/464-documents.md. Edit there and tangle, or here and tangle --back.

# %% Documents: JSON that may have any shape
"""Look into a JSON document that is not to be trusted, step by step."""

from __future__ import annotations

from collections.abc import Iterator

from minidocker.errors import RuntimeFault
from minidocker.records import Record


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% A part knows where it is
class Part(Record):
    """A value inside a document, and the way to it; an absent one is None."""

    value: Any
    way: str = ""

    def wrong(self, what: str) -> RuntimeFault:
        """Phrase that this part is not what it must be."""
        return RuntimeFault(f"{self.way.lstrip('.') or 'the document'} {what}")

    def get(self, key: str) -> Part:
        """Return a part of an object; an absent one where this is absent."""
        if self.value is None:
            return Part(None, f"{self.way}.{key}")
        if not isinstance(self.value, dict):
            raise self.wrong("is no object")
        return Part(self.value.get(key), f"{self.way}.{key}")

    def each(self) -> Iterator[Part]:
        """Yield the parts of a list; none where it is absent."""
        if not isinstance(self.value, list | None):
            raise self.wrong("is no list")
        for index, value in enumerate(self.value or ()):
            yield Part(value, f"{self.way}[{index}]")

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield the names and texts of an object; none where it is absent."""
        if not isinstance(self.value, dict | None):
            raise self.wrong("is no object")
        for key in self.value or {}:
            yield key, self.get(key).text()

    def text(self, default: str = "") -> str:
        """Return a text without NUL, or ``default`` where it is absent."""
        if self.value is None:
            return default
        if not isinstance(self.value, str) or "\0" in self.value:
            raise self.wrong("is no text")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(one.text() for one in self.each())

    def number(self, default: int = 0) -> int:
        """Return a whole number, or ``default`` where it is absent."""
        if self.value is None:
            return default
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.wrong("is no whole number")
        return self.value

    def on(self) -> bool:
        """Return a boolean; False where it is absent."""
        if not isinstance(self.value, bool | None):
            raise self.wrong("is neither true nor false")
        return bool(self.value)
