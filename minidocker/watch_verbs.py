# From book/626-watch-verbs.md. Edit there and tangle, or here and tangle --back.

# %% Watch verbs: what runs, what it says, who is inside
"""``ps``, ``logs``, ``top``: look at containers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from minidocker.container_verbs import Needs, open_engine, print_lines, print_text
from minidocker.containers import (
    Container,
    ContainerStore,
    State,
    Status,
    tell,
    timestamp,
)
from minidocker.engine import Engine
from minidocker.errors import (
    ConflictError,
    MinidockerError,
    NotFoundError,
    UsageError,
)
from minidocker.filters import (
    Filters,
    all_labels_match,
    moment_said,
    parse_filters,
    truth_of,
)
from minidocker.flags import (
    FILTER,
    FORMAT,
    NO_TRUNC,
    NUMBER,
    QUIET,
    TEXT,
    Command,
    Flag,
    Given,
)
from minidocker.lifecycle import is_torn
from minidocker.logs import LogEntry, fixed_time
from minidocker.logs import logs as log_entries
from minidocker.network_views import network_settings
from minidocker.pausing import members_of
from minidocker.storing import points_of
from minidocker.tables import formatted
from minidocker.views import container_row, ps_view, state_word


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# %% Which containers
Pair = tuple[Container, State]
STATES = ("created", "restarting", "running", "removing", "paused", "exited", "dead")
HEALTHS = ("none", "starting", "healthy", "unhealthy")
PS_FILTERS = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation",
    "label", "name", "network", "publish", "since", "status", "volume",
)  # fmt: skip


def one_of(name: str, values: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise MinidockerError for a value of a filter that can never match."""
    for value in values:
        if value not in known:
            what = f"invalid filter '{name}={value}'"
            raise MinidockerError(what, hint=f"one of {', '.join(known)}")


def name_test(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return whether a name or id is matched somewhere by one of the patterns.

    What is no pattern matches only itself.
    """
    tests = []
    for pattern in patterns:
        try:
            tests.append(re.compile(pattern))
        except re.error:
            tests.append(re.compile(rf"{re.escape(pattern)}\Z"))
    return lambda text: any(test.search(text) for test in tests)


# %% Which containers
def with_ancestor(engine: Engine, names: Iterable[str]) -> set[str]:
    """Return the ids of images that are, or stand on, one of those named."""
    wanted = set()
    for name in names:
        try:
            wanted.add(engine.images.resolve(name))
        except NotFoundError:
            continue
    children = {id: engine.images.parent(id) for id in engine.images.ids()}
    found = set(wanted)
    while more := {id for id, parent in children.items() if parent in found} - found:
        found |= more
    return found


def port_keys(text: str) -> set[str]:
    """Return the ports of ``PORT[-PORT][/PROTOCOL]`` as containers name them.

    >>> sorted(port_keys("80-81/udp"))
    ['80/udp', '81/udp']
    """
    ports, _, protocol = text.partition("/")
    low, _, high = ports.partition("-")
    if not (low.isdecimal() and (high or low).isdecimal()):
        raise MinidockerError(f"invalid port: {text}")
    return {f"{n}/{protocol or 'tcp'}" for n in range(int(low), int(high or low) + 1)}


# %% Which containers
def tests_of(engine: Engine, filters: Filters) -> list[Callable[[Pair], bool]]:
    """Return what each filter asks. Raises MinidockerError for one without sense."""
    of = filters.get
    one_of("status", of("status", ()), STATES)
    one_of("health", of("health", ()), HEALTHS)
    codes = set(of("exited", ()))
    for code in codes:
        if not code.isdecimal():
            raise MinidockerError(f"invalid filter 'exited={code}'")
    names, ids = name_test(of("name", ())), name_test(of("id", ()))
    is_task = truth_of(filters, "is-task")
    images = with_ancestor(engine, of("ancestor", ()))
    networks = of("network", ())
    ports = {n: set().union(*map(port_keys, of(n, ()))) for n in ("expose", "publish")}
    known: Mapping[str, Callable[[Pair], bool]] = {
        "name": lambda pair: names(pair[0].name) or names(f"/{pair[0].name}"),
        "id": lambda pair: ids(pair[0].id),
        "status": lambda pair: state_word(pair[1]) in of("status", ()),
        "health": lambda pair: (pair[1].health or "none") in of("health", ()),
        "exited": lambda pair: (
            pair[1].status is Status.EXITED and str(pair[1].exit_code) in codes
        ),
        "ancestor": lambda pair: pair[0].image in images,
        "is-task": lambda pair: not is_task,  # of a swarm, which is not here
        "expose": lambda pair: bool(ports["expose"] & set(ports_of(engine, pair))),
        "publish": lambda pair: bool(ports["publish"] & published_by(engine, pair)),
        "network": lambda pair: not networks_of(engine, pair).isdisjoint(networks),
        "volume": lambda pair: any(
            {point.name, point.source, point.target} & set(of("volume", ()))
            for point in points_of(pair[0])
        ),
        "label": lambda pair: all_labels_match(pair[0].config.labels or {}, filters),
    }
    tests = [known[name] for name in filters if name in known]
    for name in ("before", "since"):
        for text in of(name, ()):
            tests.append(age_test(engine.containers.resolve(text).created, name))
    return tests


def ports_of(engine: Engine, pair: Pair) -> Mapping[str, Any]:
    """Return the ports ``80/tcp`` of a container, each with its places on the host."""
    running = pair[1].status is Status.RUNNING
    found = network_settings(engine.containers, pair[0], running=running)
    ports: Mapping[str, Any] = found["Ports"]
    return ports


def published_by(engine: Engine, pair: Pair) -> set[str]:
    """Return the ports of the host, as ``8080/tcp``, that lead to a container."""
    return {
        f"{place['HostPort']}/{port.partition('/')[2]}"
        for port, places in ports_of(engine, pair).items()
        for place in places or ()
    }


def networks_of(engine: Engine, pair: Pair) -> set[str]:
    """Return the names and ids of the networks that a container is on."""
    running = pair[1].status is Status.RUNNING
    found = network_settings(engine.containers, pair[0], running=running)["Networks"]
    return {*found, *(one["NetworkID"] for one in found.values())}


def age_test(created: str, name: str) -> Callable[[Pair], bool]:
    """Return whether a container was made before, or since, another."""
    moment, before = fixed_time(created), name == "before"

    def test(pair: Pair) -> bool:
        own = fixed_time(pair[0].created)
        return own < moment if before else own > moment

    return test


# %% Which containers
def known_containers(
    given: Given, needs: Needs = Needs.NOTHING
) -> tuple[Engine, list[Pair]]:
    """Open the store and list its containers, without those that a crash left."""
    engine = open_engine(given, needs)
    found = engine.containers.list()
    if has_leftovers(engine.containers, found):
        engine = open_engine(given, Needs.TREES)
        engine.tidy()
        found = engine.containers.list()
    return engine, found


def has_leftovers(store: ContainerStore, found: list[Pair]) -> bool:
    """Say whether there is more than was found, or one with ``--rm`` that has ended.

    The supervisor of such a one was killed, or the power was cut.
    """
    there = os.listdir(store.root) if os.path.isdir(store.root) else []
    return len(there) > len(found) or any(
        box.host.auto_remove and (state.finished or is_torn(store, box.id))
        for box, state in found
    )


def ps(given: Given) -> int:
    """``ps [OPTIONS]``"""
    filters = parse_filters(given.list("filter"), PS_FILTERS)
    form, whole = given.text("format"), given.on("no-trunc")
    size = given.on("size") or ".Size" in form
    engine, found = known_containers(given, Needs.MOUNTS if size else Needs.NOTHING)
    last = given.number("last")
    newest = 1 if given.on("latest") else max(last or 0, 0)
    everything = given.on("all") or bool(newest) or "status" in filters
    tests = tests_of(engine, filters)
    chosen = (
        pair
        for pair in found
        if (everything or pair[1].status is Status.RUNNING)
        and all(test(pair) for test in tests)
    )
    rows = []
    for container, state in islice(chosen, newest or None):
        with suppress(NotFoundError):  # removed meanwhile
            row = container_row(engine, container, state, whole=whole, size=size)
            rows.append(row)
    if given.on("quiet") and not form:
        print_lines(row["ID"] for row in rows)
    else:
        print_text(formatted(ps_view(size=size), rows, form))
    return 0


# %% What it wrote
def log_moment(text: str, flag: str) -> str:
    """Return the moment of ``--since`` or ``--until`` as log times are compared."""
    moment = moment_said(text, flag)
    return fixed_time(timestamp(moment)) if moment else ""


def logs(given: Given) -> int:
    """``logs [OPTIONS] CONTAINER``"""
    tail = given.text("tail")
    if tail not in ("", "all") and not tail.removeprefix("-").isdecimal():
        raise UsageError(f'invalid value "{tail}" for --tail: a number or all')
    since, until = (log_moment(given.text(n), n) for n in ("since", "until"))
    engine = open_engine(given)
    container = engine.containers.resolve(given.args[0])
    if container.host.log_driver == "none":
        raise MinidockerError("configured logging driver does not support reading")
    entries = log_entries(
        engine.containers,
        container,
        tail=int(tail) if tail.isdecimal() else None,
        follow=given.on("follow"),
        since=since,
        until=until,
    )
    for entry in entries:
        show_entry(entry, times=given.on("timestamps"), details=given.on("details"))
    return 0


def show_entry(entry: LogEntry, *, times: bool, details: bool) -> None:
    """Print a line on the stream on which it was written."""
    stream = sys.stdout if entry.stream == "stdout" else sys.stderr
    stamp = f"{entry.moment} " if times else ""
    told = ",".join(f"{k}={v}" for k, v in (entry.details or {}).items())
    stream.write(f"{stamp}{f'{told} ' if details else ''}{entry.log}")
    stream.flush()


# %% Who is inside
def process_table(text: str, pids: Iterable[int]) -> tuple[list[str], list[list[str]]]:
    """Return the heads of what `ps` printed, and the rows of some processes.

    >>> process_table("PID CMD\\n 7 sh -c x\\n 8 ls\\n", [7])
    (['PID', 'CMD'], [['7', 'sh -c x']])
    """
    first, *lines = text.splitlines()
    heads = first.split()
    if "PID" not in heads:
        raise MinidockerError("couldn't find PID field in ps output")
    column, wanted = heads.index("PID"), {str(pid) for pid in pids}
    rows = [line.split(None, len(heads) - 1) for line in lines]
    return heads, [row for row in rows if len(row) > column and row[column] in wanted]


def check_ps_options(options: tuple[str, ...]) -> None:
    """Refuse options that rename PID, by which the rows are chosen."""
    for option in options:
        for name, head in re.findall(r"(\w+)=(\w*)", option):
            if head.upper() == "PID" and name != "pid":
                raise MinidockerError(f'specifying "{name}={head}" is not allowed')


def said_by_ps(options: Sequence[str], pids: Iterable[int]) -> str:
    """Return what `ps` prints of some processes, or where it knows no ``-q`` of all.

    Without ``-q``, and without ``-e``, it shows those of its own terminal only.
    """
    chosen = ("-q", ",".join(map(str, pids)))
    for words in (("ps", *chosen, *options), ("ps", *options)):
        try:
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        except FileNotFoundError as why:
            raise MinidockerError("no program `ps` on this machine") from why
        if not done.returncode:
            return done.stdout
    raise MinidockerError(f"error running ps: {' '.join(done.stderr.split())}")


def top(given: Given) -> int:
    """``top CONTAINER [ps OPTIONS]``"""
    engine, options = open_engine(given), given.args[1:] or ("-ef",)
    container = engine.containers.resolve(given.args[0])
    check_ps_options(options)
    state = engine.containers.state(container.id)
    if state.status is not Status.RUNNING:
        raise ConflictError(f"container {container.name} is not running")
    if state.restarting:
        raise ConflictError(f"container {container.name} is restarting")
    pids = members_of(container.id, state.pid)
    heads, rows = process_table(said_by_ps(options, pids), pids)
    tell(engine.containers, container, "top")
    print_lines(columns([heads, *rows]))
    return 0


def columns(rows: list[list[str]]) -> list[str]:
    """Return rows as `top` aligns them: columns of at least 20, 3 blanks between.

    >>> columns([["PID", "CMD"], ["7", "sh"]])
    ['PID                 CMD', '7                   sh']
    """
    widths = [max(20, max(map(len, column)) + 3) for column in zip(*rows, strict=True)]
    return [
        "".join(
            cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)
        )
        + row[-1]
        for row in rows
    ]


# %% The table
COMMANDS = (
    Command(
        "ps", "[OPTIONS]", "List containers", ps,
        (
            Flag("all", "Show all containers (default shows just running)", "a"),
            FILTER, FORMAT,
            Flag("last", "Show n last created containers", "n", NUMBER),
            Flag("latest", "Show the latest created container", "l"),
            NO_TRUNC, QUIET,
            Flag("size", "Display total file sizes", "s"),
        ),
        most=0, example="minidocker ps -a --filter status=exited",
    ),
    Command(
        "logs", "[OPTIONS] CONTAINER", "Fetch the logs of a container", logs,
        (
            Flag("details", "Show extra details provided to logs"),
            Flag("follow", "Follow log output", "f"),
            Flag("since", "Show logs since a time, or 42m for 42 minutes", takes=TEXT),
            Flag("tail", "Number of lines to show from the end", "n", TEXT, "all"),
            Flag("timestamps", "Show timestamps", "t"),
            Flag("until", "Show logs before a time, or 42m", takes=TEXT),
        ),
        least=1, most=1,
    ),
    Command(
        "top", "CONTAINER [ps OPTIONS]",
        "Display the running processes of a container", top, least=1, greedy=True,
        example="minidocker top web -o pid,cmd",
    ),
)  # fmt: skip
