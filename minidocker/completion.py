# From book/619-completion.md. Edit there and tangle, or here and tangle --back.

# %% Completion: the key that knows every flag
"""The tables of commands and flags as completion scripts for bash, zsh and fish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from minidocker.errors import UsageError, did_you_mean
from minidocker.flags import PROGRAM, Command


# %% One script for each shell
FISH_FIRST = "__fish_use_subcommand"


def completion(
    commands: Mapping[str, Command],
    shell: str,
    aliases: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> str:
    """Return the completion script for ``bash``, ``zsh`` or ``fish``."""
    meant = {name: commands[words[0]] for name, words in aliases.items()}
    named = dict(sorted({**commands, **meant}.items()))
    if shell == "fish":
        return "\n".join(fish_lines(named))
    if shell not in ("bash", "zsh"):
        hint = did_you_mean(shell, ["bash", "zsh", "fish"], other="bash, zsh or fish")
        raise UsageError(f'no completion for the shell "{shell}"', hint=hint)
    head = ["autoload -U +X bashcompinit && bashcompinit"] if shell == "zsh" else []
    return "\n".join([*head, *bash_lines(named)])


# %% One script for each shell
def bash_lines(named: Mapping[str, Command]) -> Iterator[str]:
    """Yield the lines of bash's completion; a group is completed by its commands."""
    groups: dict[str, list[str]] = {}
    for name in named:
        first, _, second = name.partition(" ")
        groups.setdefault(first, []).append(second)
    yield f"_{PROGRAM}() {{"
    yield "  local current=${COMP_WORDS[COMP_CWORD]} at=1 words= name"
    yield "  while [[ $at -lt $COMP_CWORD && ${COMP_WORDS[at]} == -* ]]; do"
    yield "    [[ ${COMP_WORDS[at + 1]} == '=' ]] && at=$((at + 1))"
    yield "    at=$((at + 2))  # before the command: --root DIR, --driver NAME"
    yield "  done"
    yield "  name=${COMP_WORDS[at]}"
    for first, seconds in groups.items():
        if "" not in seconds:
            yield f"  if [[ $name == {first} && $COMP_CWORD -gt $at ]]; then"
            yield "    at=$((at + 1))"
            yield '    name+=" ${COMP_WORDS[at]}"'
            yield f"    words='{' '.join(seconds)}'"
            yield "  fi"
    yield f"  : ${{words:='{' '.join(groups)}'}}"
    yield "  if [[ $COMP_CWORD -gt $at ]]; then words=; fi"
    yield '  [[ $COMP_CWORD -gt $at ]] && case "$name" in'
    for name, command in named.items():
        flags = " ".join(f"--{flag.name}" for flag in command.every_flag)
        choice = command.usage.replace("|", " ") if command.usage.islower() else ""
        yield f"    '{name}') words='{choice or flags + ' --help'}' ;;"
    yield "  esac"
    yield "  if [[ $words != [a-z]* && $current != -* || $at -gt $COMP_CWORD ]]; then"
    yield '    COMPREPLY=($(compgen -f -- "$current"))'
    yield '  else COMPREPLY=($(compgen -W "$words" -- "$current")); fi'
    yield "}"
    yield f"complete -F _{PROGRAM} {PROGRAM}"


def fish_lines(named: Mapping[str, Command]) -> Iterator[str]:
    """Yield the lines of fish's completion."""
    for name, command in named.items():
        group, _, second = name.rpartition(" ")
        where = f"'__fish_seen_subcommand_from {group}'" if group else FISH_FIRST
        text = command.help.replace("'", "\\'")
        yield f"complete -c {PROGRAM} -n {where} -a {second} -d '{text}'"
        for flag in () if group else command.every_flag:
            short = f" -s {flag.short}" if flag.short else ""
            yield (
                f"complete -c {PROGRAM} -l {flag.name}{short} "
                f"-n '__fish_seen_subcommand_from {name}'"
            )
