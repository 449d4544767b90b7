"""A build that was killed leaves nothing for ever, and one that lives is left alone."""

import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fairseq_updown.cli import prepare
from fairseq_updown.data.files import atomic_directory
from fairseq_updown.data.workers import available_cores, map_by_workers
from fairseq_updown.errors import UserError


def build_for_ever(out: Path, ready: Any) -> None:
    with atomic_directory(out) as partial:
        (partial / "half").write_text("x")
        ready.set()
        signal.pause()


@pytest.fixture
def builder(tmp_path: Path) -> Any:
    """A living process that builds `tmp_path / "out"`, half done."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=build_for_ever, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_what_a_killed_build_left_goes_with_the_next(builder: Any, tmp_path: Path) -> None:
    builder.kill()
    builder.join()
    assert [path for path in tmp_path.rglob("half")]
    with atomic_directory(tmp_path / "out") as partial:
        assert not list(partial.iterdir())
        (partial / "whole").write_text("x")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["whole"]


def test_a_mount_point_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(UserError, match="is a mount point"), atomic_directory(tmp_path):
        raise AssertionError


def sleep_with_workers(said: Any) -> None:
    def slowly(item: int) -> int:
        time.sleep(60 * (item > 16))
        return os.getpid()

    workers = map_by_workers(slowly, range(99), 2)
    said.put(next(workers))
    next(itertools.islice(workers, 60, None))


def test_workers_end_with_a_parent_that_was_killed() -> None:
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    parent = context.Process(target=sleep_with_workers, args=(said,))
    parent.start()
    worker = said.get(timeout=30)
    parent.kill()
    parent.join()
    end = time.monotonic() + 30
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(process: int) -> bool:
    """It may be dead and still there, if nobody asks how it ended."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_as_many_workers_as_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert available_cores() == 3


def test_a_living_build_is_left_alone(builder: Any, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    busy = pytest.raises(UserError, match="out is being written by another process: wait")
    with busy, atomic_directory(tmp_path / "out"):
        pass
    assert sorted(tmp_path.rglob("*")) == before
    own = tmp_path / "own.tsv"
    own.write_text("".join(f"document {i} of its own\tsummary {i}\n" for i in range(30)))
    with pytest.raises(SystemExit, match="is being written by another process"):
        prepare.main(["--tsv", str(own), "--out", str(tmp_path / "out")])
    builder.terminate()
    builder.join()
    assert os.listdir(tmp_path) == ["own.tsv"]


def test_what_was_moved_away_in_the_instant_of_a_kill_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "old").write_text("x")
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(InterruptedError), atomic_directory(tmp_path / "out"):
        raise InterruptedError
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


@pytest.mark.parametrize("fails", [False, True])
def test_an_output_is_replaced_whole_or_not_at_all(tmp_path: Path, fails: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    try:
        with atomic_directory(out) as partial:
            (partial / "new").write_text("x")
            if fails:
                raise InterruptedError
    except InterruptedError:
        assert fails
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["old" if fails else "new"]
