# From book/010-errors.md. Edit there and tangle, or here and tangle --back.

# %% Errors: how minidocker says no
"""The exception tree, the exit statuses, and how a message is phrased.

MinidockerError             1
├── UsageError            125   the command line
│   └── WordFault           1   a word that can be read and cannot be
│       └── ReferenceFault  1   a name that no image can have
├── DockerfileError         1   the text of a Dockerfile
├── BuildError              1   a build step (its RUN's own status)
├── NotFoundError           1   no such image, container, file
├── ConflictError           1   in use, exists already
├── IntegrityError          1   a digest, an archive, a document that lies
├── UnsupportedError        1   the kernel or the user's rights say no
├── RegistryError           1   a registry answered badly
└── RuntimeFault          125   a container could not be started
    ├── NotExecutableError  126   the command is there and cannot be executed
    └── CommandNotFoundError  127 the command is not there
"""

from __future__ import annotations

from collections.abc import Iterable


# %% One message, three parts
class MinidockerError(Exception):
    """A failure that is told to the user in one line, with a hint below it.

    ``where`` is a place: a path, ``Dockerfile:12``, a reference. ``what`` is lower
    case with quoted values. ``hint`` is something to do. ``status`` is the exit
    status of the process that ends with this error. ``excerpt`` is set by whoever
    has the source: its line, and a caret under what is wrong.
    ``more`` are further errors that do not depend on this one, told after it.
    """

    status = 1
    excerpt = ""
    more: tuple[MinidockerError, ...] = ()

    def __init__(
        self, what: str, *, where: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        hint = f"hint: {self.hint}" if self.hint else ""
        parts = (line, self.excerpt, hint, *map(str, self.more))
        return "\n".join(part for part in parts if part)


# %% What can be wrong
class UsageError(MinidockerError):
    """The command line cannot be understood."""

    status = 125


class WordFault(UsageError):
    """The flags can be read, and what they say cannot be, or words are too few.

    Docker's client ends with 125 for a flag that it cannot read, and with 1 for the
    rest, most of which its daemon finds. `run` ends with 125 for all of it.
    """

    status = 1


class ReferenceFault(WordFault):
    """An image cannot have this name."""


class DockerfileError(MinidockerError):
    """The text of a Dockerfile is wrong; ``where`` is ``NAME:LINE``.

    ``word`` is the text at fault, for the caret.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        word: str = "",
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.word = word


# %% What can be wrong
class BuildError(MinidockerError):
    """A build step failed; ``status`` is that of the step's command, or 1."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        status: int = 1,
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.status = status


# %% What can be wrong
class NotFoundError(MinidockerError):
    """No such image, container, layer or file."""


class ConflictError(MinidockerError):
    """The thing is in use, or is there already."""


class IntegrityError(MinidockerError):
    """A digest does not match, or an archive or a document is malformed."""


class UnsupportedError(MinidockerError):
    """The kernel, or the rights of this user, do not allow it."""


class RegistryError(MinidockerError):
    """A registry cannot be reached, or answers what it must not."""


# %% What can be wrong
class RuntimeFault(MinidockerError):
    """A container could not be made or started."""

    status = 125


class NotExecutableError(RuntimeFault):
    """The command is in the image and cannot be executed."""

    status = 126


class CommandNotFoundError(RuntimeFault):
    """The command is not in the image."""

    status = 127


def recast(why: MinidockerError, kind: type[MinidockerError]) -> MinidockerError:
    """Return an error of another kind, and so of another status, that says the same."""
    return kind(why.what, where=why.where, hint=why.hint)


# %% Did you mean
def nearest(word: str, known: Iterable[str]) -> str:
    """Return the one of ``known`` that is most like ``word``; "" when none is.

    >>> nearest("COPPY", ["COPY", "RUN"])
    'COPY'
    """
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, list(known), n=1)), "")


def did_you_mean(word: str, known: Iterable[str], *, other: str = "") -> str | None:
    """Return a hint that names the one of ``known`` nearest to ``word``.

    Without a near one the hint is ``other``, or none.

    >>> did_you_mean("COPPY", ["COPY", "RUN"])
    'did you mean "COPY"?'
    """
    near = nearest(word, known)
    return f'did you mean "{near}"?' if near else other or None
