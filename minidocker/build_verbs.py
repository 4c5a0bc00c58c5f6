# From book/638-build-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Build verbs: `build` and its flags
"""The commands `build` and `context ls`: context, Dockerfile, flags."""

from __future__ import annotations

import os
import re

from minidocker.build_inputs import Input, input_of
from minidocker.build_results import (
    OUTPUTS,
    Output,
    fields_of,
    output_of,
    pairs_of,
    verify,
)
from minidocker.container_verbs import Needs, open_engine, print_lines
from minidocker.context import (
    open_context,
)
from minidocker.context import verdicts as every_verdict
from minidocker.engine import Engine
from minidocker.errors import (
    DockerfileError,
    MinidockerError,
    NotFoundError,
    ReferenceFault,
    UnsupportedError,
    UsageError,
    did_you_mean,
)
from minidocker.flags import (
    LIST,
    NUMBER,
    TEXT,
    Command,
    Flag,
    Given,
    check_host,
    refused,
    size,
    ulimit_text,
)
from minidocker.oci import parse_reference
from minidocker.progress import progress_of
from minidocker.stage import BuildOptions, Secret


TYPE_CHECKING = False
if TYPE_CHECKING:
    from minidocker.checks import BuildWarning


# %% What the flags mean
def check_tag(text: str) -> None:
    """Refuse a bad ``--tag`` as Docker does: its command line is at fault."""
    try:
        parse_reference(text)
    except ReferenceFault as why:
        raise UsageError(why.what, where="--tag", hint=why.hint) from why


def secret_of(text: str) -> tuple[str, Secret]:
    """Return id and place of ``--secret id=ID,src=FILE`` or ``id=ID,env=NAME``.

    With ``type=env`` the source is a variable too.
    """
    given = fields_of(text, "secret", ("id", "src", "source", "env", "type"))
    path, variable = given.get("src", given.get("source", "")), given.get("env", "")
    kind = given.get("type", "file")
    if kind not in {"file", "env"}:
        hint = "file or env"
        raise UsageError(f'no type "{kind}"', where="--secret", hint=hint)
    if kind == "env" and not variable:
        path, variable = "", path
    id = given.get("id", os.path.basename(path))
    if not path and not variable and id in os.environ:
        variable = id
    if not id or bool(path) == bool(variable):
        hint = "id=NAME,src=FILE or id=NAME,env=VARIABLE"
        raise UsageError(f'bad secret "{text}"', where="--secret", hint=hint)
    if path and not os.access(path, os.R_OK):
        raise UsageError("no such file, or not ours to read", where=f"--secret: {path}")
    return id, Secret(path, variable)


# %% What the flags mean
LAYOUT = "oci-layout://"


def layout_context(engine: Engine, text: str) -> str:
    """Return an ``oci-layout://DIRECTORY[:TAG][@DIGEST]`` as the image that it has."""
    from minidocker.loading import layout_image
    from minidocker.parcels import directory_source

    path, _, which = text.removeprefix(LAYOUT).partition("@")
    if ":" in path.rpartition("/")[2]:
        path, _, tag = path.rpartition(":")
        which = which or tag
    if not os.path.isdir(path):
        raise NotFoundError("no such directory", where=f"--build-context: {path}")
    with engine.changing(), directory_source(path) as source:
        id = layout_image(engine.images, engine.layers, source, which)
    return f"docker-image://{id}"


def contexts_of(given: Given, engine: Engine) -> dict[str, str]:
    """Return the further contexts by name; an OCI layout becomes an image."""
    found = pairs_of(given.list("build-context"), "build-context")
    return {
        name.lower(): layout_context(engine, text) if text.startswith(LAYOUT) else text
        for name, text in found.items()
    }


CHECK_ARGUMENT = "BUILDKIT_DOCKERFILE_CHECK"
SQUASHED = "an image here keeps the layer of each step, and says which step each is"


def options_of(given: Given, engine: Engine) -> BuildOptions:
    """Return the options that flags say. Raises UsageError, UnsupportedError."""
    if given.on("squash"):
        hint = "COPY --from=STAGE / / in a last stage FROM scratch makes one layer"
        raise UnsupportedError(f"--squash is not supported: {SQUASHED}", hint=hint)
    for tag in given.list("tag"):
        check_tag(tag)
    if given.on("push") and not given.list("tag"):
        raise UsageError("a push needs a name", where="--push", hint="-t NAME")
    until = given.number("until")
    if until is not None and until < 1:
        raise UsageError("steps are counted from 1", where="--until")
    strangers = (
        text.removeprefix("type=registry,ref=") for text in given.list("cache-from")
    )
    arguments = pairs_of(given.list("build-arg"), "build-arg", from_environment=True)
    arguments.pop(CHECK_ARGUMENT, None)  # not for the steps
    return BuildOptions(
        tags=given.list("tag"),
        build_args=arguments,
        no_cache=given.on("no-cache"),
        target=given.text("target") or None,
        cache_from=tuple(strangers),
        contexts=contexts_of(given, engine),
        labels=pairs_of(given.list("label"), "label"),
        secrets=dict(map(secret_of, given.list("secret"))),
        until=until,
        pull_first=given.on("pull"),
        shell_on_error=given.on("shell-on-error"),
        platform=given.text("platform"),
        network=network_of(given),
        hosts=tuple(map(check_host, given.list("add-host"))),
        ulimits=tuple(map(ulimit_text, given.list("ulimit"))),
        shm_size=size(given, "shm-size"),
    )


NETWORKS = ("default", "none", "host")


def network_of(given: Given) -> str:
    """Return what ``--network`` says. Raises UsageError."""
    name = given.text("network") or "default"
    if name not in NETWORKS:
        hint = did_you_mean(name, NETWORKS, other=f"there are {', '.join(NETWORKS)}")
        raise UsageError(f'no network "{name}"', where="--network", hint=hint)
    return name


# %% Checks
def warnings_of(found: Input, engine: Engine, given: Given) -> tuple[BuildWarning, ...]:
    """Return what the build checks say; refuse it where the file wants no warnings."""
    from minidocker import checks
    from minidocker.dockerfile import parse

    parsed = parse(found.text, found.name)
    told = pairs_of(given.list("build-arg"), "build-arg").get(CHECK_ARGUMENT)
    options = checks.options_of(parsed) if told is None else checks.read_options(told)
    certain = not any(pattern.keeps for pattern in found.tree.patterns)
    warnings = checks.check(
        parsed,
        environment=lambda image: variables_of(image, engine),
        ignored=lambda path: certain and found.tree.ignores(path),
        options=options,
    )
    if warnings and options.error:
        print_lines(map(str, warnings))
        rules = ", ".join(dict.fromkeys(warning.rule.name for warning in warnings))
        what = f"lint violation found for rules: {rules}"
        hint = 'mend it, or leave "error=true" out of its "# check=" line'
        raise DockerfileError(what, where=found.name, hint=hint)
    return warnings


def variables_of(image: str, engine: Engine) -> dict[str, str] | None:
    """Return the environment of an image, None for one that is not here."""
    from minidocker.stage import environment

    try:
        config = engine.images.get(engine.images.resolve(image)).config
    except MinidockerError:
        return None
    return environment(config.env if config else ())


def tell_warnings(given: Given) -> int:
    """Do ``build --check``; warnings make its status 1, as with BuildKit."""
    from minidocker.checks import summary

    engine = open_engine(given)
    with input_of(given, engine) as found:
        warnings = warnings_of(found, engine, given)
    print_lines([*map(str, warnings), summary(warnings)])
    return 1 if warnings else 0


# %% The commands
def build(given: Given) -> int:
    """``build [OPTIONS] PATH|-``"""
    if given.on("check"):
        return tell_warnings(given)
    outputs = tuple(map(output_of, given.list("output")))
    engine = open_engine(given, Needs.MOUNTS)
    options = options_of(given, engine)
    progress = progress_of(given)
    failed = True
    try:
        with input_of(given, engine) as found:
            if re.search(rb"(?im)^#\s*check\s*=.*error", found.text):
                warnings_of(found, engine, given)

            def made(options: BuildOptions) -> str:
                return engine.build(
                    found.text, found.tree, options, name=found.name,
                    progress=progress, output=progress.output,
                )  # fmt: skip

            id = verify(engine, made, options) if given.on("verify") else made(options)
        failed = False
    finally:
        progress.end(failed=failed)
    if given.on("verify") and not given.on("quiet"):
        print(f"Verified: two builds gave {id}")
    give_out(engine, id, outputs, given.text("iidfile"))
    if given.on("quiet"):
        print(id)
    if given.on("push"):
        push_names(engine, options.tags, quiet=given.on("quiet"))
    return 0


def push_names(engine: Engine, names: tuple[str, ...], *, quiet: bool) -> None:
    """Send the image to the registries of its names; say its digest there."""
    for name in names:
        reference = parse_reference(name).tagged
        sent = engine.push(reference, lambda event: None)
        if not quiet:
            print(f"{reference}: digest: {sent.digest} size: {sent.size}")


# %% The commands
def give_out(
    engine: Engine, id: str, outputs: tuple[Output, ...], iidfile: str
) -> None:
    """Write the id, and the tree in the forms that were asked for."""
    for output in outputs:
        with engine.changing():
            OUTPUTS[output.kind](engine, id, output.path)
    if iidfile:
        try:
            with open(iidfile, "w", encoding="ascii") as file:
                file.write(id)
        except OSError as why:
            what = f"cannot be written: {why.strerror}"
            raise MinidockerError(what, where=iidfile) from why


def context_ls(given: Given) -> int:
    """``context ls [--why] [-f DOCKERFILE] PATH``"""
    path, why = given.args[0], given.on("why")
    name = given.text("file")
    inside = os.path.relpath(name, path) if name else "Dockerfile"
    with open_context(path, inside) as tree:
        for file, kept, pattern in every_verdict(tree):
            rule = (
                f"{pattern.where}: {'!' * pattern.keeps}{pattern.text}"
                if pattern
                else "-"
            )
            if why:
                print(f"{'sent' if kept else 'ignored':8} {file}\t{rule}")
            elif kept:
                print(file)
    return 0


# %% The commands
LIMITS = (
    "cgroup-parent", "cpu-period", "cpu-quota", "cpu-shares", "cpuset-cpus",
    "cpuset-mems", "isolation", "memory", "memory-swap", "security-opt",
)  # fmt: skip


def refused_limit(name: str) -> Flag:
    """Return a flag of Docker's that bounds the containers of RUN."""
    why = "a RUN is bounded as the build is; bound the build, or use `run`"
    short = {"cpu-shares": "c", "memory": "m"}.get(name, "")
    return refused(name, why).replace(short=short)


COMMANDS = (
    Command(
        "build", "[OPTIONS] PATH|-", "Build an image from a Dockerfile", build,
        (
            Flag("build-arg", "Set build-time variables", takes=LIST),
            Flag(
                "build-context",
                "NAME=PATH, docker-image://IMAGE or oci-layout://PATH[:TAG]",
                takes=LIST,
            ),
            Flag("add-host", "A further line of /etc/hosts: NAME:ADDRESS", takes=LIST),
            Flag("check", "Only say what the build checks find"),
            Flag("cache-from", "Images whose history counts as cache", takes=LIST),
            Flag("file", "Name of the Dockerfile (default PATH/Dockerfile)", "f", TEXT),
            Flag("iidfile", "Write the image ID to the file", takes=TEXT),
            Flag("label", "Set metadata for an image", takes=LIST),
            Flag("load", "Keep the image in the store (always)"),
            Flag("network", "Of RUN: default, none or host", takes=TEXT),
            Flag("no-cache", "Do not use cache when building the image"),
            Flag("output", "type=local|tar|oci,dest=PATH", "o", LIST),
            Flag("platform", "Of FROM, where that says none: linux/amd64", takes=TEXT),
            Flag("progress", "auto, plain, rich or json", takes=TEXT, default="auto"),
            Flag("pull", "Always attempt to pull a newer version of the image"),
            Flag("push", "Send the image to the registries of its names"),
            Flag("quiet", "Print only the image ID", "q"),
            Flag("rm", "Remove intermediate containers (always)"),
            Flag("force-rm", "Also after a failure (always)"),
            Flag("secret", "Secret for a RUN: id=ID,src=FILE|env=NAME", takes=LIST),
            Flag("shell-on-error", "Open a shell in the container of a failed RUN"),
            Flag("shm-size", "Size of /dev/shm of each RUN", takes=TEXT),
            Flag("squash", "Refused, with the reason"),
            Flag("compress", "Compress the context (there is nobody to send it to)"),
            Flag("disable-content-trust", "Skip image verification (always)"),
            *map(refused_limit, LIMITS),
            Flag("tag", "Name and optionally a tag (format: name:tag)", "t", LIST),
            Flag("target", "Set the target build stage to build", takes=TEXT),
            Flag("ulimit", "Limit of each RUN: NAME=SOFT[:HARD]", takes=LIST),
            Flag("until", "Stop after this step", takes=NUMBER),
            Flag("verify", "Build twice, and say what differs"),
        ),
        least=1, most=1, example="minidocker build -t web .",
    ),
    Command(
        "context ls", "[OPTIONS] PATH", "List the files of a build context", context_ls,
        (
            Flag("file", "Name of the Dockerfile", "f", TEXT),
            Flag("why", "Show all files, and the rule that decided each"),
        ),
        least=1, most=1,
    ),
)  # fmt: skip
