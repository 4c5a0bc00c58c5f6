# From book/628-events.md. Edit there and tangle, or here and tangle --back.

# %% Events: what has happened, and what happens now
"""``events``: tell what happened, as it is written down or later."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial

from minidocker.container_verbs import open_engine
from minidocker.filters import Filters, has_label, moment_said, parse_filters
from minidocker.flags import FILTER, FORMAT, TEXT, Command, Flag, Given
from minidocker.logs import moved_on, open_files
from minidocker.values import Struct, fill, typed
from minidocker.watching import LATE, Sleeper


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Event = Mapping[str, Any]


# %% Reading
def event_in(line: bytes) -> Event | None:
    """Return the event of a line; None for one that a power cut tore."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "timeNano" in found else None


def events_of(path: str, since: int, until: int | None) -> Iterator[Event]:
    """Yield the events of a store between two moments (nanoseconds since 1970).

    ``until`` may be to come: then those of the meantime are yielded as they happen;
    with None there is no end.
    """
    with ExitStack() as stack:
        files = open_files(path, stack)
        if not files:
            files = [stack.enter_context(open(path, "ab+"))]
        sleeper = stack.enter_context(Sleeper(os.path.dirname(path)))
        while True:
            now = time.time_ns()
            for file in tuple(files):
                for event in filter(None, map(event_in, file)):
                    if since <= event["timeNano"] <= (until or event["timeNano"]):
                        yield event
            del files[:-1]
            if until is not None and now >= until:
                return
            if moved_on(path, files[-1]):
                files.append(stack.enter_context(open(path, "rb")))
            else:
                left = LATE if until is None else (until - time.time_ns()) / 1e9
                sleeper.sleep(left)


# %% Filters
EVENT_FILTERS = (
    "container", "event", "image", "label", "network", "scope", "type", "volume",
)  # fmt: skip


def images_of(event: Event) -> set[str]:
    """Return what an image may be called that something happened to, or with.

    What has a tag may be called without it.
    """
    actor = event["Actor"]
    if event["Type"] == "image":
        names = {actor["ID"], actor["Attributes"].get("name", "")}
    else:
        names = {actor["Attributes"].get("image", "")}
    return names | ({name.rpartition(":")[0] for name in names} - {"", "sha256"})


def matches(event: Event, filters: Filters) -> bool:
    """Whether an event is of every kind that the filters name."""
    attributes = event["Actor"]["Attributes"]
    action = event["Action"].partition(":")[0]
    tests: dict[str, Callable[[str], bool]] = {
        "type": lambda value: event["Type"] == value,
        "event": lambda value: value in (event["Action"], action),
        "label": lambda value: has_label(attributes, value),
        "image": lambda value: value in images_of(event),
        "scope": lambda value: value == event["scope"],
    }
    for kind in ("container", "volume", "network"):
        tests[kind] = partial(is_actor, event, kind)
    together = all(tests["label"](value) for value in filters.get("label", ()))
    others = (name for name in filters if name != "label")
    return together and all(any(map(tests[n], filters[n])) for n in others)


def is_actor(event: Event, kind: str, text: str) -> bool:
    """Whether it happened to what a name, an id or its beginning means."""
    actor = event["Actor"]
    name = actor["Attributes"].get("name")
    same = text == name or (bool(text) and actor["ID"].startswith(text))
    return event["Type"] == kind and same


# %% The verb
def event_line(event: Event) -> str:
    """Return an event as Docker prints it."""
    whole, rest = divmod(event["timeNano"], 10**9)
    moment = time.localtime(whole)
    zone = time.strftime("%z", moment)
    zone = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{rest:09}{zone}"
    actor = event["Actor"]
    pairs = sorted(actor["Attributes"].items())
    about = ", ".join(f"{key}={value}" for key, value in pairs)
    text = f"{stamp} {event['Type']} {event['Action']} {actor['ID']}"
    return f"{text} ({about})" if about else text


NAMES_IN_GO = {
    "status": "Status", "id": "ID", "from": "From", "Type": "Type",
    "Action": "Action", "Actor": "Actor", "scope": "Scope", "time": "Time",
    "timeNano": "TimeNano",
}  # fmt: skip


def as_in_go(event: Event) -> Struct:
    """Return an event for a template: its fields have other names than in JSON."""
    fields = {name: event.get(key, "") for key, name in NAMES_IN_GO.items()}
    return Struct(event, {name: typed(one, name) for name, one in fields.items()})


def events(given: Given) -> int:
    """``events [OPTIONS]``"""
    filters = parse_filters(given.list("filter"), EVENT_FILTERS)
    since, until, form = (
        moment_said(given.text("since"), "since"),
        moment_said(given.text("until"), "until"),
        given.text("format"),
    )
    path = f"{open_engine(given).root}/events.json"
    begin = time.time_ns() if since is None else since
    for event in events_of(path, begin, until):
        if not matches(event, filters):
            continue
        if form in ("json", "{{json .}}"):
            print(json.dumps(event, separators=(",", ":"), ensure_ascii=False))
        else:
            print(fill(form, as_in_go(event)) if form else event_line(event))
        sys.stdout.flush()
    return 0


# %% The table
COMMANDS = (
    Command(
        "events", "[OPTIONS]", "Get events from the store as they happen", events,
        (
            FILTER, FORMAT,
            Flag("since", "Show all events created since a time", takes=TEXT),
            Flag("until", "Stream events until this time", takes=TEXT),
        ),
        most=0, example="minidocker events --since 10m --filter event=die",
    ),
)  # fmt: skip
