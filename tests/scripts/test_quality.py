"""The quality comparison reads what training logged, and runs, resumes and refuses as it says."""

import json
import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Dict, List

import pytest
import quality
import torch

RUN: Dict[str, Any] = {
    "train": {
        "updates": 20,
        "updates per second": 0.5,
        "peak MiB": 500.0,
        "curve": [[10, 8.0, 5.0], [20, 6.0, 9.0]],
    },
    "test": {"rouge1": 10.0, "rouge2": 1.0, "rougeL": 8.0, "rougeLsum": 9.0},
}


def log_line(kind: str, **values: Any) -> str:
    found = {name: str(value) for name, value in values.items()}
    return f"2026-01-01 00:00:00 | INFO | {kind} | {json.dumps(found)}"


def test_speed_is_that_of_undisturbed_intervals_and_a_resumed_part_counts_once(
    tmp_path: Path,
) -> None:
    log = tmp_path / "train.log"
    lines = [
        log_line("train_inner", num_updates=5, wps=100 * 2.0, wpb=100, wall=11),
        log_line("train_inner", num_updates=10, wps=100 * 0.3, wpb=100, wall=31),
        log_line("valid", valid_num_updates=10, valid_nll_loss=7.5, valid_rougeL=4),
        log_line(
            "train_inner", num_updates=15, wps=100 * 9, wpb=100, wall=200
        ),  # killed after this
        log_line("train_inner", num_updates=15, wps=100 * 2.0, wpb=100, wall=9),
        log_line("valid", valid_num_updates=15, valid_nll_loss=7.0, valid_rougeL=6),
        "2026-01-01 00:00:00 | INFO | train | {} not of interest",
    ]
    log.write_text("\n".join(lines))
    found = quality.read_training_log(log)
    assert found == {
        "updates": 15,
        "updates per second": 2.0,
        "curve": [(10, 7.5, 4.0), (15, 7.0, 6.0)],
    }


def test_a_training_shorter_than_an_interval_has_the_speed_of_all_of_it(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(log_line("train", train_num_updates=1, train_ups=0, train_wall=5))
    assert quality.read_training_log(log) == {"updates": 1, "updates per second": 0.2, "curve": []}


def test_table_compares_at_the_time_of_the_fastest() -> None:
    slow = json.loads(json.dumps(RUN))
    slow["train"].update({"updates per second": 0.25, "curve": [[10, 8.0, 5.0], [20, 5.0, 9.0]]})
    disturbed = json.loads(json.dumps(RUN))
    disturbed["train"]["updates per second"] = 0.1
    results = {"fast": [RUN, disturbed], "slow": [slow]}
    lines = quality.table(results, 100.0).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert "nll, 40 s" in cells[0]
    rows = [dict(zip(cells[0], row)) for row in cells[2:]]
    assert rows[0]["ROUGE-1"] == "10.00 ±0.00"
    assert (rows[0]["nll, 40 s"], rows[1]["nll, 40 s"]) == ("6.000 ±0.000", "8.000")
    assert (rows[0]["tokens/s"], rows[1]["tokens/s"]) == ("50", "25")
    assert (rows[0]["valid nll"], rows[1]["valid nll"]) == ("6.000 ±0.000", "5.000")
    slow["train"]["updates per second"] = 0.24  # not one validation in that time
    line = quality.table(results, 100.0).splitlines()[3]
    assert line.split("|")[7:9] == [" - ", " - "]


def arguments(work: Path, out: Path, *more: str) -> List[str]:
    own = ["--updates", "4", "--validations", "1", "--seeds", "1", "--source-tokens", "30"]
    return [str(work / "bin"), "--out", str(out), *own, *more]


def test_a_program_runs_in_its_environment_and_its_memory_is_known(tmp_path: Path) -> None:
    code = "import os; held = bytearray(b'x') * 2**29; print(os.environ['X'], len(held))"
    log = tmp_path / "log"
    order = [Path(sys.executable).name, "-c", code]
    status, peak = quality.run_installed(order, log, {**os.environ, "X": "here"})
    assert (status, log.read_text()) == (0, f"here {2**29}\n")
    assert 2**19 < peak < 2**20
    assert quality.run_installed([*order[:2], "exit(3)"], log, dict(os.environ))[0] != 0


@pytest.mark.slow
def test_systems_run_once_and_other_options_are_refused(
    in_forks: None, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    systems = ["--systems", "updown", "transformer"]
    assert quality.main(arguments(work, tmp_path, *systems, "--jobs", "2")) == 0
    printed = capsys.readouterr().out
    assert "| updown | 1 |" in printed
    assert "| transformer | 1 |" in printed
    stamps = [path.stat().st_mtime for path in tmp_path.rglob("checkpoint_last.pt")]
    assert quality.main(arguments(work, tmp_path, *systems)) == 0
    assert capsys.readouterr().out.split("\n\n")[0] == printed.split("\n\n")[0]
    assert [p.stat().st_mtime for p in tmp_path.rglob("checkpoint_last.pt")] == stamps
    with pytest.raises(SystemExit, match="was made with other options"):
        quality.main(arguments(work, tmp_path, "--systems", "updown", "--", "--lr", "0.1"))
    shutil.copytree(work / "bin", tmp_path / "other" / "bin")
    with (tmp_path / "other" / "bin" / "dict.src.txt").open("a") as dictionary:
        dictionary.write("new 1\n")
    with pytest.raises(SystemExit, match="has runs on other data than"):
        quality.main(arguments(tmp_path / "other", tmp_path, "--systems", "updown"))


@pytest.mark.slow
def test_systems_train_for_the_same_time(
    in_forks: None,
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ["--minutes", "1", "--seeds", "1", "--source-tokens", "30", "--test-part", "2"]
    order = [str(work / "bin"), "--out", str(tmp_path), *own, "--systems", "updown copy"]
    stop = ["--", "--stop-time-hours", "0.001"]
    assert quality.main([*order, *stop]) == 0
    header, _, row = capsys.readouterr().out.splitlines()[:3]
    assert "updates" in header
    assert "nll" not in header
    assert int(row.split("|")[6]) > 0
    run = tmp_path / "updown-copy-1"
    log = (run / "generate-test-part-2.log").read_text()
    written = dict(re.findall(r"^T-(\d+)\t(.*)", log, re.M))
    targets = (work / "test.tgt").read_text().replace(" ", "").splitlines()[::2]
    assert [written[str(index)] for index in range(7)] == targets
    assert len(written) == 7
    stamp = (run / "trained.json").stat().st_mtime
    assert quality.main([*order, "--test-part", "1", *stop]) == 0
    assert len(re.findall(r"^T-", (run / "generate.log").read_text(), re.M)) == 13
    assert (run / "trained.json").stat().st_mtime == stamp
    options = json.loads((run / "options.json").read_text())
    assert "inverse_sqrt" in options
    assert "--max-update" not in options
    with pytest.raises(SystemExit, match="was made with other options"):
        quality.main([*order, "--threads", "2", *stop])
    # A start that took days to train leaves a run as much time as any other.
    start = tmp_path / "start.pt"
    state = torch.load(run / "checkpoints" / "checkpoint_last.pt", weights_only=True)
    state["extra_state"]["previous_training_time"] = 1e6
    torch.save(state, start)
    assert quality.main([*order, "--seeds", "2", "--start", str(start), *stop]) == 0
    trained = json.loads((tmp_path / "updown-copy-2" / "trained.json").read_text())
    assert trained["updates"] > 1
    torch.save({**state, "trained": "on"}, start)
    with pytest.raises(SystemExit, match="was made with other options"):
        quality.main([*order, "--seeds", "2", "--start", str(start), *stop])
    capsys.readouterr()
    monkeypatch.setattr(quality, "plugin_source", lambda: "another")
    assert quality.main([*order, *stop]) == 0
    assert "other code of the plugin than today's: updown-copy-1\n" in capsys.readouterr().out


def test_mistakes_are_told_before_anything_runs(work: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no dict\.src\.txt"):
        quality.main([str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"--start .* does not exist"):
        quality.main(arguments(work, tmp_path, "--start", str(tmp_path / "none.pt")))
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(SystemExit, match=r"text\.pt is no complete fairseq checkpoint"):
        quality.main(arguments(work, tmp_path, "--start", str(tmp_path / "text.pt")))
    with pytest.raises(SystemExit, match="no finished run of these"):
        quality.main(arguments(work, tmp_path, "--seeds", "5", "--table-only"))


def test_a_training_ends_with_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_stopping", Event())
    sleep = [Path(sys.executable).name, "-c", "import time; time.sleep(600)"]

    def stop() -> None:
        with quality.nothing_outlives():
            while not (quality._running or ended.done()):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(quality.run_installed, sleep, tmp_path / "log", dict(os.environ))
        with pytest.raises(KeyboardInterrupt):
            stop()
        assert ended.result()[0] == signal.SIGKILL
