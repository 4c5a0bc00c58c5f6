# From book/330-checks.md. Edit there and tangle, or here and tangle --back.

# %% Checks: what is allowed and not wise
"""Check a Dockerfile for what is allowed and unwise: BuildKit's build checks."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping

from minidocker.dockerfile import Dockerfile, Instruction, Word
from minidocker.errors import DockerfileError, MinidockerError, nearest
from minidocker.expansion import check_words, documents_of, expand, texts_of, unset_in
from minidocker.lines import SEPARATOR, directive_error, excerpt, point
from minidocker.oci import parse_reference
from minidocker.records import Enum, Record


# %% The nouns
class Rule(Enum):
    """BuildKit's build checks: their public names, and what they say."""

    StageNameCasing = "Stage name '{}' should be lowercase"
    FromAsCasing = "'{}' and '{}' keywords' casing do not match"
    NoEmptyContinuation = "Empty continuation line"
    ConsistentInstructionCasing = (
        "Command '{}' should match the case of the command majority ({})"
    )
    DuplicateStageName = 'Duplicate stage name "{}", stage names should be unique'
    ReservedStageName = 'Stage name should not use the same name as reserved stage "{}"'
    JSONArgsRecommended = (
        "JSON arguments recommended for {} to prevent unintended behavior related to"
        " OS signals"
    )
    MaintainerDeprecated = (
        "Maintainer instruction is deprecated in favor of using label"
    )
    UndefinedArgInFrom = "FROM argument '{}' is not declared{}"
    WorkdirRelativePath = (
        'Relative workdir "{}" can have unexpected results if the base image changes'
    )
    UndefinedVar = "Usage of undefined variable '${}'{}"
    MultipleInstructionsDisallowed = (
        "Multiple {} instructions should not be used in the same stage because only"
        " the last one will be used"
    )
    LegacyKeyValueFormat = (
        '"{0} key=value" should be used instead of legacy "{0} key value" format'
    )
    RedundantTargetPlatform = (
        "Setting platform to predefined {} in FROM is redundant as this is the default"
        " behavior"
    )
    SecretsUsedInArgOrEnv = (
        'Do not use ARG or ENV instructions for sensitive data ({} "{}")'
    )
    InvalidDefaultArgInFrom = (
        "Default value for ARG {} results in empty or invalid base image name"
    )
    FromPlatformFlagConstDisallowed = (
        'FROM --platform flag should not use constant value "{}"'
    )
    CopyIgnoredFile = 'Attempting to {} file "{}" that is excluded by .dockerignore'
    ExposeInvalidFormat = (
        "EXPOSE instruction should not define an IP address or host-port mapping,"
        " found '{}'"
    )
    ExposeProtoCasing = (
        "Defined protocol '{}' in EXPOSE instruction should be lowercase"
    )


# %% The nouns
class BuildWarning(Record):
    """A rule that is broken: what, and where it stands in the file."""

    rule: Rule
    what: str
    where: str
    line: int
    excerpt: str

    def __str__(self) -> str:
        return f"{self.where}: {self.rule.name}: {self.what}\n{self.excerpt}"


# %% The nouns
class Finding(Record):
    """A broken rule; ``word`` is the one to point at, "" for the instruction's."""

    rule: Rule
    it: Instruction
    fills: tuple[str, ...] = ()
    word: str = ""


class Stage(Record):
    """A FROM, the instructions after it, and the earlier stage it builds upon."""

    head: Instruction
    body: tuple[Instruction, ...]
    base: Stage | None = None

    @property
    def name(self) -> str:
        """The name after AS, as written; "" for none."""
        return self.head.args[2] if len(self.head.args) > 2 else ""


Environment = Callable[[str], Mapping[str, str] | None]
Ignored = Callable[[str], bool]


# %% The nouns
class Subject(Record):
    """What is checked: ARGs before FROM, stages, and where to ask about the rest."""

    escape: str
    before: tuple[Instruction, ...]
    stages: tuple[Stage, ...]
    environment: Environment
    ignored: Ignored

    def each(self, *words: Word) -> Iterator[Instruction]:
        """Yield the instructions of all stages, or those with one of the words."""
        for stage in self.stages:
            for it in (stage.head, *stage.body):
                if it.word in words or not words:
                    yield it


# %% The nouns
def subject_of(
    dockerfile: Dockerfile, environment: Environment, ignored: Ignored
) -> Subject:
    """Cut a Dockerfile into its stages, each with the stage that it builds upon."""
    all_of = dockerfile.instructions
    heads = [n for n, it in enumerate(all_of) if it.word is Word.FROM]
    stages: list[Stage] = []
    for begin, end in zip(heads, [*heads[1:], len(all_of)], strict=True):
        head, *body = all_of[begin:end]
        named = (s for s in reversed(stages) if s.name.lower() == head.args[0].lower())
        stages.append(Stage(head, tuple(body), next(named, None)))
    before = all_of[: heads[0]]
    return Subject(dockerfile.escape, before, tuple(stages), environment, ignored)


def keyword(it: Instruction) -> str:
    """Return the instruction's word as it is written."""
    return SEPARATOR.split(it.text, maxsplit=1)[0]


# %% Words and their case
def check_names(file: Subject) -> Iterator[Finding]:
    """StageNameCasing, FromAsCasing, DuplicateStageName, ReservedStageName"""
    seen: set[str] = set()
    for head, name in ((stage.head, stage.name) for stage in file.stages if stage.name):
        word, lower = keyword(head), name.lower()
        if name != lower:
            yield Finding(Rule.StageNameCasing, head, (name,), name)
        cased = {word.lower(): str.lower, word.upper(): str.upper}.get(word)
        if cased and head.args[1] != cased(head.args[1]):
            fills = (head.args[1], word)
            yield Finding(Rule.FromAsCasing, head, fills, head.args[1])
        if lower in {"scratch", "context"}:
            yield Finding(Rule.ReservedStageName, head, (lower,), name)
        if lower in seen:
            yield Finding(Rule.DuplicateStageName, head, (lower,), name)
        seen.add(lower)


def check_casing(file: Subject) -> Iterator[Finding]:
    """ConsistentInstructionCasing"""
    words = [keyword(it) for it in file.each()]
    lower = sum(w.islower() for w in words) > sum(w.isupper() for w in words)
    for it, word in zip(file.each(), words, strict=True):
        if not (word.islower() if lower else word.isupper()):
            fills = (word, "lowercase" if lower else "uppercase")
            yield Finding(Rule.ConsistentInstructionCasing, it, fills)


# %% One instruction at a time
def check_shell_forms(file: Subject) -> Iterator[Finding]:
    """JSONArgsRecommended"""
    shells: dict[str, bool] = {}
    for stage in file.stages:
        shell = bool(stage.base) and shells[stage.head.args[0].lower()]
        for it in stage.body:
            shell = shell or it.word is Word.SHELL
            if it.word in {Word.CMD, Word.ENTRYPOINT} and not it.json and not shell:
                yield Finding(Rule.JSONArgsRecommended, it, (keyword(it),))
        shells[stage.name.lower()] = shell


def check_old_forms(file: Subject) -> Iterator[Finding]:
    """NoEmptyContinuation, MaintainerDeprecated, LegacyKeyValueFormat"""
    for it in (*file.before, *file.each()):
        if it.source.empty:
            yield Finding(Rule.NoEmptyContinuation, it)
        if it.word is Word.MAINTAINER:
            yield Finding(Rule.MaintainerDeprecated, it)
        rest = SEPARATOR.split(it.text, maxsplit=1)[-1]
        if it.word in {Word.ENV, Word.LABEL} and not rest.startswith(f"{it.args[0]}="):
            yield Finding(Rule.LegacyKeyValueFormat, it, (keyword(it),), it.args[0])


def check_repeated(file: Subject) -> Iterator[Finding]:
    """MultipleInstructionsDisallowed"""
    for stage in file.stages:
        for word in (Word.CMD, Word.ENTRYPOINT, Word.HEALTHCHECK):
            for it in [it for it in stage.body if it.word is word][:-1]:
                yield Finding(Rule.MultipleInstructionsDisallowed, it, (keyword(it),))


# %% One instruction at a time
SECRET = re.compile(
    "(?i)(_|^)(apikey|auth|credentials?|key|password|pword|passwd|secret|token)(_|$)"
)
HARMLESS = re.compile("(?i)(_|^)(public|file|version)(_|$)")


def check_secrets(file: Subject) -> Iterator[Finding]:
    """SecretsUsedInArgOrEnv"""
    for it in (*file.before, *file.each(Word.ARG, Word.ENV)):
        words = it.args[::2] if it.word is Word.ENV else it.args
        for name in (word.partition("=")[0] for word in words):
            if SECRET.search(name) and not HARMLESS.search(name):
                fills = (it.word.value, name)
                yield Finding(Rule.SecretsUsedInArgOrEnv, it, fills, name)


def check_ports(file: Subject) -> Iterator[Finding]:
    """ExposeInvalidFormat, ExposeProtoCasing"""
    for it in file.each(Word.EXPOSE):
        for port in (port for port in it.args if "$" not in port):
            number, _, protocol = port.partition("/")
            if ":" in number:
                yield Finding(Rule.ExposeInvalidFormat, it, (port,), port)
            if protocol != protocol.lower():
                yield Finding(Rule.ExposeProtoCasing, it, (port,), port)


# %% Where a stage comes from
PLATFORM_ARGS = frozenset(
    f"{side}{what}"
    for side in ("BUILD", "TARGET")
    for what in ("PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT")
) | {"TARGETSTAGE"}


def defaults(file: Subject) -> dict[str, str]:
    """Return the ARGs before the first FROM, with their defaults, "" for none."""
    known: dict[str, str] = dict.fromkeys(PLATFORM_ARGS, "")
    for word in (word for it in file.before for word in it.args):
        name, _, value = word.partition("=")
        known[name] = quietly(value, known, file.escape)
    return known


def quietly(text: str, known: Mapping[str, str], escape: str) -> str:
    """Expand a text; one that cannot be expanded is an error of the build, not ours."""
    try:
        return expand(text, known, escape)
    except DockerfileError:
        return ""


def check_from(file: Subject) -> Iterator[Finding]:
    """UndefinedArgInFrom, InvalidDefaultArgInFrom"""
    known = defaults(file)
    for head in (stage.head for stage in file.stages):
        for text in (head.args[0], head.flag("platform") or ""):
            for name in unset_names(text, known, file.escape):
                like = nearest(name, known)
                fills = (name, f" (did you mean {like}?)" if like else "")
                yield Finding(Rule.UndefinedArgInFrom, head, fills, text)
        base = head.args[0]
        if "$" in base and not is_reference(quietly(base, known, file.escape)):
            yield Finding(Rule.InvalidDefaultArgInFrom, head, (base,), base)


# %% Where a stage comes from
def unset_names(text: str, known: Mapping[str, str], escape: str | None) -> list[str]:
    """Return the names asked for in vain, each once; no escape is a document's text."""
    try:
        return list(dict.fromkeys(unset_in(text, known, escape)))
    except DockerfileError:
        return []


def is_reference(text: str) -> bool:
    """Say whether a text can be the name of an image."""
    try:
        parse_reference(text)
    except MinidockerError:
        return False
    return True


def check_platform(file: Subject) -> Iterator[Finding]:
    """RedundantTargetPlatform, FromPlatformFlagConstDisallowed"""
    for it, name in ((stage.head, stage.name) for stage in file.stages):
        fixed = it.flag("platform") or ""
        if fixed in {"$TARGETPLATFORM", "${TARGETPLATFORM}"}:
            yield Finding(Rule.RedundantTargetPlatform, it, (fixed,), fixed)
        named = any(part in name for part in fixed.lower().split("/")[:2])
        if fixed and "$" not in fixed and not named:
            yield Finding(Rule.FromPlatformFlagConstDisallowed, it, (fixed,), fixed)


# %% What a stage knows
class Scope:
    """The variables of a stage so far; ``whole`` says that no other can be there."""

    __slots__ = ("escape", "known", "placed", "whole")

    def __init__(
        self, known: Mapping[str, str], whole: bool, escape: str, placed: bool = False
    ) -> None:
        self.known = {"PATH": "", **known}
        self.whole, self.escape, self.placed = whole, escape, placed

    def enter(self, it: Instruction, outer: Mapping[str, str]) -> None:
        """Let an ARG, ENV or WORKDIR take its effect."""
        if it.word is Word.ARG:
            for word in it.args:
                name, equals, value = word.partition("=")
                value = quietly(value, self.known, self.escape)
                self.known.setdefault(name, value if equals else outer.get(name, ""))
        elif it.word is Word.ENV:
            values = [quietly(text, self.known, self.escape) for text in it.args]
            self.known.update(zip(values[::2], values[1::2], strict=True))
        elif it.word is Word.WORKDIR:
            self.placed = True


def undefined(it: Instruction, scope: Scope) -> Iterator[Finding]:
    """UndefinedVar"""
    known, escape = scope.known, scope.escape
    names = [(n, t) for t in texts_of(it) for n in unset_names(t, known, escape)]
    names += [(n, "") for d in documents_of(it) for n in unset_names(d, known, None)]
    for name, text in dict(names).items():
        like = nearest(name, scope.known)
        if scope.whole or like:
            fills = (name, f" (did you mean ${like}?)" if like else "")
            yield Finding(Rule.UndefinedVar, it, fills, text)


# %% What a stage knows
def missing_directory(it: Instruction, scope: Scope) -> Iterator[Finding]:
    """WorkdirRelativePath"""
    if it.word is not Word.WORKDIR or scope.placed:
        return
    path = quietly(it.args[0], scope.known, scope.escape)
    if not path.startswith("/"):
        yield Finding(Rule.WorkdirRelativePath, it, (path,), it.args[0])


def left_out(it: Instruction, scope: Scope, ignored: Ignored) -> Iterator[Finding]:
    """CopyIgnoredFile"""
    if it.word not in {Word.COPY, Word.ADD} or it.flag("from"):
        return
    for word in (word for word in it.args[:-1] if not it.heredoc(word)):
        source = quietly(word, scope.known, scope.escape)
        path = posixpath.normpath(source.lstrip("/") or ".")
        if "://" not in source and path != "." and ignored(path):
            fills = (it.word.value.capitalize(), path)
            yield Finding(Rule.CopyIgnoredFile, it, fills, word)


def first_scope(
    stage: Stage, file: Subject, outer: Mapping[str, str], below: Scope | None
) -> Scope:
    """Return what a stage knows at its start, from the stage below it or its image."""
    if below:
        return Scope(below.known, below.whole, below.escape, below.placed)
    name = quietly(stage.head.args[0], outer, file.escape)
    known = {} if name == "scratch" else file.environment(name)
    return Scope(known or {}, known is not None, file.escape)


def check_scopes(file: Subject) -> Iterator[Finding]:
    """UndefinedVar, WorkdirRelativePath, CopyIgnoredFile"""
    outer, scopes = defaults(file), dict[int, Scope]()
    for stage in file.stages:
        below = scopes[stage.base.head.line] if stage.base else None
        scope = first_scope(stage, file, outer, below)
        scopes[stage.head.line] = scope
        for it in stage.body:
            yield from undefined(it, scope)
            yield from missing_directory(it, scope)
            yield from left_out(it, scope, file.ignored)
            scope.enter(it, outer)


# %% The options
class CheckOptions(Record):
    """What ``# check=`` says: names to skip, names to try, whether warnings fail."""

    skip: tuple[str, ...] = ()
    experimental: tuple[str, ...] = ()
    error: bool = False

    def wants(self, rule: Rule) -> bool:
        """Say whether a rule is to be told."""
        if rule is Rule.CopyIgnoredFile:  # on trial
            return bool({rule.name, "all"} & set(self.experimental))
        return not {rule.name, "all"} & set(self.skip)


def read_options(text: str) -> CheckOptions:
    """Read ``skip=A,B;error=true;experimental=C``.

    >>> read_options("skip=StageNameCasing; error=true").error
    True
    """
    found = CheckOptions()
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        names = tuple(name.strip() for name in value.split(","))
        if key == "error" and value.lower() in {"true", "false", "1", "0"}:
            found = found.replace(error=value.lower() in {"true", "1"})
        elif key in {"skip", "experimental"} and value:
            found = found.replace(**{key: names})
        else:
            raise DockerfileError(f'bad check option "{part}"', word=part)
    return found


# %% The options
def options_of(dockerfile: Dockerfile) -> CheckOptions:
    """Return what the ``# check=`` of a file says.

    Raises DockerfileError, with its line, for an option that there is not.
    """
    for told in (it for it in dockerfile.directives if it.name == "check"):
        try:
            return read_options(told.value)
        except DockerfileError as why:
            hint = "such as skip=StageNameCasing;error=true"
            raise directive_error(told, dockerfile.name, why.what, hint) from why
    return CheckOptions()


# %% The verb
CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    check_names,
    check_casing,
    check_shell_forms,
    check_old_forms,
    check_repeated,
    check_secrets,
    check_ports,
    check_from,
    check_platform,
    check_scopes,
)


# %% The verb
def warning_of(found: Finding, name: str) -> BuildWarning:
    """Give a finding its sentence, its place in the file and its excerpt."""
    told = DockerfileError(found.rule.value.format(*found.fills), word=found.word)
    where = point(told, found.it.source, name).where or name
    if found.rule is Rule.NoEmptyContinuation:
        line = found.it.source.empty[0]
        where, told.excerpt = f"{name}:{line}", excerpt("", line, 0, 1)
    line = int(where.rpartition(":")[2])
    return BuildWarning(found.rule, told.what, where, line, told.excerpt)


def check(
    dockerfile: Dockerfile,
    *,
    environment: Environment = lambda image: None,
    ignored: Ignored = lambda path: False,
    options: CheckOptions | None = None,
) -> tuple[BuildWarning, ...]:
    """Return what the build checks say of a Dockerfile, in the order of its lines.

    ``environment`` returns the variables of a base image, or None when the image is
    not known. ``ignored`` says whether ``.dockerignore`` leaves a path out of the
    context. The options are the file's own where none are given.

    Raises DockerfileError for words that cannot be expanded.
    """
    check_words(dockerfile.instructions, dockerfile.escape)
    chosen = options or options_of(dockerfile)
    subject = subject_of(dockerfile, environment, ignored)
    found = (one for each in CHECKS for one in each(subject) if chosen.wants(one.rule))
    warnings = [warning_of(one, dockerfile.name) for one in found]
    return tuple(sorted(warnings, key=lambda it: it.line))


def summary(warnings: tuple[BuildWarning, ...]) -> str:
    """Return the line that ends a check."""
    if not warnings:
        return "Check complete, no warnings have been found."
    count = "1 warning has" if len(warnings) == 1 else f"{len(warnings)} warnings have"
    return f"Check complete, {count} been found!"
