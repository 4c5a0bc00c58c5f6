"""A store is written so that a crash or a reader never meets half a thing."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minidocker.durable import (
    Batch,
    is_marked,
    marked,
    rename_new,
    store_lock,
    unmark,
    write_lasting,
    write_whole,
)


def test_nothing_is_seen_before_it_is_published(tmp_path: Path) -> None:
    batch = Batch(str(tmp_path), str(tmp_path / "tmp"))
    with batch:
        batch.stage(str(tmp_path / "a/one"), b"1")
        batch.stage(str(tmp_path / "a/two"), b"2")
        assert not (tmp_path / "a").exists()
        assert batch.names(str(tmp_path / "a")) == ["one", "two"]
        assert Path(batch.place(str(tmp_path / "a/one"))).read_bytes() == b"1"
    assert (tmp_path / "a/two").read_bytes() == b"2"
    assert os.listdir(tmp_path / "tmp") == []


def test_a_block_that_fails_still_publishes_what_is_whole(tmp_path: Path) -> None:
    batch = Batch(str(tmp_path), str(tmp_path / "tmp"))
    with pytest.raises(KeyError), batch:  # noqa: PT012
        batch.stage(str(tmp_path / "one"), b"1")
        raise KeyError
    assert (tmp_path / "one").exists()


def test_a_killed_batch_leaves_only_rubbish(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from minidocker.durable import Batch\n"
        f"batch = Batch({str(tmp_path)!r}, {str(tmp_path / 'tmp')!r})\n"
        "with batch:\n"
        f"    batch.stage({str(tmp_path / 'one')!r}, b'1')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["tmp"]


def test_the_second_of_two_equal_directories_is_dropped(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        rename_new(str(tmp_path / name), str(tmp_path / "final"))
    assert os.listdir(tmp_path) == ["final"]
    assert (tmp_path / "final/file").read_text() == "first"


def test_a_replaced_file_is_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "names"
    write_lasting(str(path), b"old")
    write_lasting(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["names"]


def test_what_is_to_last_is_synced_with_the_names_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for name in ("fsync", "rename"):
        real = getattr(os, name)

        def call(*args: Any, name: str = name, real: Any = real) -> None:
            path = (
                os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[1]
            )
            done.append(f"{name} {os.path.relpath(path, tmp_path)}")
            real(*args)

        monkeypatch.setattr(os, name, call)
    write_lasting(str(tmp_path / "a/b/file"), "text")
    assert done == [
        "fsync .",
        "fsync a",
        "fsync a/b/file.new",
        "rename a/b/file",
        "fsync a/b",
    ]
    done.clear()
    write_whole(str(tmp_path / "a/b/file"), "text")
    assert done == ["rename a/b/file"]


def test_a_file_is_written_to_its_end_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    write_whole(str(tmp_path / "file"), "more than three")
    assert (tmp_path / "file").read_text() == "more than three"


def test_the_lock_is_free_when_its_holder_was_killed(tmp_path: Path) -> None:
    code = (
        "import time\nfrom minidocker.durable import store_lock\n"
        f"with store_lock({str(tmp_path)!r}):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with store_lock(str(tmp_path), exclusive=True) as alone:
            assert not alone
        holder.kill()
    with store_lock(str(tmp_path), exclusive=True) as alone:
        assert alone


def test_a_mark_outlives_its_maker_only_when_that_was_killed(tmp_path: Path) -> None:
    with marked(str(tmp_path)):
        assert is_marked(str(tmp_path))
    assert not is_marked(str(tmp_path))
    code = (
        "import os, signal\nfrom minidocker.durable import marked\n"
        f"with marked({str(tmp_path)!r}):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert is_marked(str(tmp_path))
    unmark(str(tmp_path))
    assert not is_marked(str(tmp_path))
