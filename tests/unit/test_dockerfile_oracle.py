"""The parser against the Go parser of Docker, which PyPI's `dockerfile` wraps.

The Go parser leaves it to Docker's next pass to know instructions, flags and numbers of
arguments. So what it refuses must be refused by us, and what we accept it must read the
same. What only we refuse must be an error of that next pass: `NEXT_PASS`.

The differences, each with a file `differs-*` among the golden ones, and its reason:

- json-tail: text behind a JSON list, `CMD ["a"] b`. The wrapped release drops it.
  Today's BuildKit, and we, read such a line in the shell form.
- heredoc-blank: `cat << EOF`. Today's BuildKit takes it for a here-document, and so do
  we; the wrapped release does not know the form.
- arithmetic: `$(( 1<<4 ))`. The Go parser sees a here-document named `4` and misses its
  end. Nobody means that.
- lexer: `RUN echo ${x^^} <<EOF`. A line that Docker's lexer for variables cannot read
  has no here-documents for it, and their lines would be instructions.
- last-escape: an escape character alone on the last line. The Go parser makes an
  instruction without a word of it, which Docker then refuses; we read over it.
- NUL and lines over 64 KiB are refused here. NUL ends the text for the binding.
- Flags that are not ASCII. The Go parser reads bytes, and garbles them.
- The binding forgets the here-documents of an ONBUILD's trigger.
"""

import re
from pathlib import Path

import dockerfile as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minidocker.dockerfile import Instruction, Word, parse
from minidocker.errors import DockerfileError


GOLDEN = Path(__file__).parents[1] / "golden" / "dockerfiles"
NEXT_PASS = re.compile(
    "unknown (instruction|flag|type)|FROM (takes|has too many)|bad name for a stage|"
    ".* needs |.* before the first FROM|the file has no FROM|.* is given twice|"
    "bad (value|duration)|--|NONE takes no|CMD needs a|.* may not be a trigger|"
    '".*" cannot be the name|'
    r"and \d+ more|a here-document cannot be|.* is not of the form NAME=VALUE"
)


def in_go(text: str) -> list[tuple[object, ...]] | None:
    """What the Go parser makes of a text; None when it refuses it."""
    try:
        found = go.parse_string(text)
    except go.GoParseError:
        return None
    return [
        (
            (it.cmd or "").upper(), (it.sub_cmd or "").upper(), it.json, it.start_line,
            it.end_line, it.flags, it.value,
            [(doc.name, doc.file_descriptor, doc.content) for doc in it.heredocs],
        )
        for it in found
    ]  # fmt: skip


def flags_of(it: Instruction) -> tuple[str, ...]:
    """The flags as they were written, except for case and a switch's `=true`."""
    return tuple(f"--{name}={value}" for name, value in it.flags)


def normal(flags: tuple[str, ...]) -> tuple[str, ...]:
    """The Go parser's flags in the form of ours."""
    whole = (flag if "=" in flag else f"{flag}=true" for flag in flags)
    switches = r"(--(?:link|parents|keep-git-dir|unpack)=)(true|false)"
    return tuple(
        re.sub(switches, lambda m: m[1] + m[2].lower(), flag, flags=re.I)
        for flag in whole
    )


def check_same(it: Instruction, theirs: tuple[object, ...]) -> None:
    """Compare one instruction, field by field."""
    word, trigger, is_json, first, _, flags, value, docs = theirs
    inner = it.trigger or it
    args = inner.args
    if inner.word is Word.HEALTHCHECK:
        value = (value[0].upper(), *value[1:])
    assert (it.word.value, inner.json, args) == (word, is_json, value)
    assert (it.trigger.word.value if it.trigger else "") == trigger
    assert it.line == first
    assert flags_of(it) == normal(flags)
    if it.trigger is None:
        assert len(docs) == len(it.heredocs)
        for ours, (name, descriptor, content) in zip(it.heredocs, docs, strict=True):
            whole = re.sub(r"(?m)^\t+", "", content) if ours.strip_tabs else content
            assert (ours.name, ours.descriptor, ours.content) == (
                name, descriptor, whole,
            )  # fmt: skip


def compare(text: str) -> str:
    """Compare the two parsers on a text; say how it went."""
    theirs = in_go(text)
    try:
        ours = parse(text).instructions
    except DockerfileError as why:
        for each in (why, *why.more):
            assert theirs is None or NEXT_PASS.match(each.what), each
        return "refused"
    assert theirs is not None, "only the Go parser refuses it"
    assert len(ours) == len(theirs)
    for it, that in zip(ours, theirs, strict=True):
        check_same(it, that)
    ends = [(it.source.end, that[4]) for it, that in zip(ours, theirs, strict=True)]
    assert all(mine == other for mine, other in ends[:-1])  # the last may be open
    return "the same"


ELSEWHERE = {"bad-nul", "bad-utf8"}
CORPUS = [
    path
    for path in sorted(GOLDEN.glob("*.Dockerfile"))
    if path.stem not in ELSEWHERE and not path.stem.startswith("differs-")
]


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_both_parsers_read_a_golden_file_alike(path: Path):
    with path.open(encoding="utf-8", newline="") as file:
        how = compare(file.read())
    assert how == ("refused" if path.with_suffix(".refused").exists() else "the same")


def test_the_corpus_is_large():
    assert len(CORPUS) >= 80
    words = {it.word for path in CORPUS for it in accepted(path)}
    assert words == set(Word)


def accepted(path: Path) -> tuple[Instruction, ...]:
    """The instructions of a golden file, none for one that is refused."""
    refused = path.with_suffix(".refused").exists()
    return () if refused else parse(path.read_bytes()).instructions


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("differs-*.Dockerfile")), ids=lambda path: path.stem
)
def test_a_known_difference_is_one(path: Path):
    name = path.stem.removeprefix("differs-")
    assert f"\n- {name}: " in __doc__
    with pytest.raises(AssertionError):
        compare(path.read_text(encoding="utf-8"))


# Files that are right or nearly: instructions from pieces of every form.
blank = st.sampled_from([" ", "  ", "\t", " \\\n  ", " \\ \n\t", " \\\n# x\n\n "])
atom = st.sampled_from(
    ["a", "b/c", "$d", "${e:-f}", "'g h'", '"i j"', "k\\ l", 'm"n"', "é", "o=p", "q\\r", "s#r",
     "\\\\", '"s\\"t"', "'u\\'", "[v]", "80/tcp", "w,x", "''", '""', "<y", ">z", "-"]
)  # fmt: skip
pair = st.builds("{}={}".format, st.sampled_from(["A", "b.c", '"D E"', "é"]), atom)
json_text = st.lists(
    st.sampled_from(["a", "b c", "$d", '\\"', "\\u00e9", "\\\\"]),
    min_size=2,
    max_size=3,
).map(lambda found: "[" + ", ".join(f'"{one}"' for one in found) + "]")


def joined(
    item: st.SearchStrategy[str], least: int, most: int
) -> st.SearchStrategy[str]:
    """Items with blanks between them, on one line or on several."""
    gaps = st.lists(blank, min_size=most, max_size=most)
    items = st.lists(item, min_size=least, max_size=most)
    return st.builds(
        lambda found, gaps: "".join(a + b for a, b in zip(gaps, found, strict=False)),
        items, gaps,
    )  # fmt: skip


def flagged(*flags: str) -> st.SearchStrategy[str]:
    """None or some of the flags, each at most once."""
    chosen = st.lists(st.sampled_from(flags), max_size=3, unique=True)
    return chosen.map(lambda found: "".join(f" {flag}" for flag in found))


texts = st.one_of(joined(atom, 1, 4), json_text.map(" {}".format))
files_of = st.one_of(joined(atom, 2, 4), json_text.map(" {}".format))
TAILS = {
    "ARG": joined(st.one_of(pair, st.just("A")), 1, 3),
    "ENV": st.one_of(joined(pair, 1, 3), joined(atom, 1, 3).map(" A{}".format)),
    "label": st.one_of(joined(pair, 1, 3), joined(atom, 1, 3).map(" A{}".format)),
    "MAINTAINER": joined(atom, 1, 3),
    "COPY": st.builds(
        str.__add__,
        flagged("--from=b", "--chown=1:2", '--chmod="7 5"', "--link", "--parents=False",
                "--exclude=a\\ b", "--exclude='a\"b'", "--"),
        files_of,
    ),
    "ADD": st.builds(str.__add__, flagged("--link=TRUE", "--unpack", "--checksum=x"), files_of),
    "RUN": st.builds(
        str.__add__,
        flagged("--mount=type=x", '--mount=a="b c",d', "--network=none", "\\\n --security=sandbox"),
        texts,
    ),
    "Cmd": texts,
    "ENTRYPOINT": texts,
    "SHELL": json_text.map(" {}".format),
    "USER": joined(atom, 1, 2),
    "WORKDIR": joined(atom, 1, 2),
    "VOLUME": texts,
    "EXPOSE": joined(atom, 1, 3),
    "STOPSIGNAL": joined(atom, 1, 1),
    "HEALTHCHECK": st.builds("{} Cmd{}".format, flagged("--retries=3", "--interval=1m2.5s"), texts),
}  # fmt: skip
right = st.one_of(
    [
        st.builds(
            "{}{}{}\n".format, st.sampled_from(["", "onbuild\t"]), st.just(name), tail
        )
        for name, tail in TAILS.items()
        if name != "MAINTAINER"
    ]
)
nearly = st.builds(
    "{}{}{}\n".format,
    st.sampled_from([*TAILS, "FROM", "ONBUILD", "onbuild run", "RNU", "RUN a\\\n\\\n"]),
    flagged("--from=b", "--retries=3", "--from", "--platform=x/y", "--a"),
    texts,
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A RUN, COPY or ADD with here-documents."""
    head = draw(st.sampled_from(["RUN", "COPY", "ADD", "run"]))
    names = draw(st.lists(st.sampled_from(["A", "b.c", "EOF"]), min_size=1, max_size=3))
    marks, bodies = [], ""
    for name in names:
        dash = draw(st.sampled_from(["", "-"]))
        written = draw(st.sampled_from([name, f"'{name}'", f'"{name}"', f"\\{name}"]))
        marks.append(draw(st.sampled_from(["", "3"])) + f"<<{dash}{written}")
        lines = draw(
            st.lists(
                st.sampled_from(["x", "\ty", "# z", "\\", "", "<<A", "A "]), max_size=3
            )
        )
        bodies += (
            "".join(f"{line}\n" for line in lines) + "\t" * len(dash) + name + "\n"
        )
    return f"{head}{draw(blank)}{' '.join(marks)} /to\n{bodies}"


between = st.sampled_from(["\n", "# c\n", " \t\n", "  # d \\\n", "\\\n", "FROM a\n"])
head = st.sampled_from(["FROM a\n", "ARG a\nFROM b AS c\n"])
end = st.sampled_from(["\n", "\n", "\r\n"])


@settings(max_examples=300, deadline=None)
@given(
    head,
    st.lists(st.one_of(right, right, right, documents(), between), max_size=6),
    end,
)
def test_both_parsers_read_generated_files_alike(head: str, lines: list[str], end: str):
    text = head + "".join(lines) + "RUN end\n"
    assert compare(text.replace("\n", end)) == "the same"


@settings(max_examples=300, deadline=None)
@given(head, st.lists(st.one_of(nearly, right, documents(), between), max_size=6))
def test_both_parsers_agree_on_what_is_nearly_right(head: str, lines: list[str]):
    compare(head + "".join(lines) + "RUN end\n")


def printed(it: Instruction) -> str:
    """An instruction as text again: its logical line, and its here-documents."""
    docs = (doc.content + doc.name + "\n" for doc in it.heredocs)
    return f"{it.text}\n" + "".join(docs)


def meaning(it: Instruction) -> tuple[object, ...]:
    """All of an instruction but its place."""
    trigger = meaning(it.trigger) if it.trigger else None
    return it.word, it.args, it.flags, it.json, it.text, it.heredocs, trigger


@settings(max_examples=200, deadline=None)
@given(head, st.lists(st.one_of(right, documents(), between), max_size=6))
def test_what_is_printed_is_parsed_to_the_same(head: str, lines: list[str]):
    once = parse(head + "".join(lines) + "RUN end\n").instructions
    again = parse("".join(map(printed, once))).instructions
    assert list(map(meaning, again)) == list(map(meaning, once))


SCRAPS = ["FROM a\n", "RUN ", "ENV ", "A=", "COPY ", "CMD ", "--from=", "-- ", "<<EOF", "\nEOF\n",
          "# escape=`\n", "[", '"', "'", "`", "\\", "\n", "\r\n", " ", "\t", "#", "$", "=",
          "{", "}", "a", "ONBUILD ", "HEALTHCHECK ", "\x0b"]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(SCRAPS), max_size=25).map("".join))
def test_both_parsers_agree_on_scraps(text: str):
    compare("FROM a\n" + text + "\nRUN end\n")
