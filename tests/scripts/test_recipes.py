"""The recipes for translation and summarization, with tools that only note their calls."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from parallel import own_text

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

FAKE_TOOLS = {
    # a finished corpus (--out is its first option) takes seconds to find so
    "python": '[ "$1" = -m ] && echo plugin || [ -e "$3/report.json" ] || exec {python} "$@"',
    "fairseq-preprocess": 'for last; do true; done; while [ "$1" != --destdir ]; do shift; done\n'
    'mkdir "$2"; sleep "${{SLOW:-0}}"',
    "fairseq-train": 'while [ "$1" != --save-dir ]; do shift; done\n'
    'mkdir -p "$2"; touch "$2/checkpoint_best.pt"; exit ${{FAIL_TRAINING:-0}}',
    "fairseq-generate": 'printf "H-1\\t-0.1\\tx\\n"; n=40; [ -z "$LOSE_ONE" ] || n=39\n'
    'while [ $n -gt 0 ]; do n=$((n - 1)); printf "D-$n\\t-0.1\\tline $n\\n"; done',
    "sacrebleu": "echo score",
    "updown-score": "echo score",
}


def make_tools(tmp_path: Path) -> Path:
    """Tools that only note their calls, in the file that is returned."""
    binary = tmp_path / "bin"
    binary.mkdir(exist_ok=True)
    calls = tmp_path / "calls"
    calls.write_text("")
    for name, body in FAKE_TOOLS.items():
        note = "" if name == "python" else f'echo "{name} $*" >> "{calls}"\n'
        (binary / name).write_text("#!/bin/sh\n" + note + body.format(python=sys.executable))
        (binary / name).chmod(0o755)
    return calls


def start_example(
    tmp_path: Path, *options: str, recipe: str = "translation", **variables: str
) -> "subprocess.Popen[str]":
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(EXAMPLES / recipe / "run.sh"), *options],
        env={**os.environ, "PATH": path, **variables},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_example(tmp_path: Path, *options: str, **variables: str) -> tuple[int, list[str], str]:
    """Run run.sh with :func:`make_tools`; return its status, calls and messages."""
    calls = make_tools(tmp_path)
    running = start_example(tmp_path, *options, **variables)
    errors = running.communicate()[1]
    return running.returncode, calls.read_text().splitlines(), errors


def test_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    own_text(tmp_path / "text")
    options = ("--from-text", "text", "--vocab-size", "30", "--updates", "10", "--", "--extra")
    status, calls, _ = run_example(tmp_path, *options, FAIL_TRAINING="3")
    assert status == 3
    assert [call.split()[0] for call in calls] == ["fairseq-preprocess", "fairseq-train"]
    status, calls, errors = run_example(tmp_path, *options)
    assert status == 0, errors
    tools = ["fairseq-train", "fairseq-generate", "sacrebleu"]
    assert [call.split()[0] for call in calls] == tools
    assert "--user-dir plugin" in calls[0]
    assert calls[0].endswith("--extra")
    work = tmp_path / "translation-src-tgt"
    expected = "".join(f"line {i}\n" for i in range(40))
    assert (work / "test.src-tgt.hyp").read_text() == expected
    status, calls, _ = run_example(tmp_path, *options)
    assert [call.split()[0] for call in calls] == ["sacrebleu"]
    status, _, errors = run_example(tmp_path, *options, "--more")
    assert status == 2
    assert "made with other options" in errors


def test_runs_share_data_but_not_with_another_corpus(tmp_path: Path) -> None:
    own_text(tmp_path / "text")
    options = ("--from-text", "text", "--vocab-size", "30", "--updates", "10", "--data", "data")
    assert run_example(tmp_path, *options, "--work", "first")[0] == 0
    shutil.rmtree(tmp_path / "data" / "data-bin")
    calls = make_tools(tmp_path)
    both = [
        start_example(tmp_path, *options, "--work", name, SLOW="0.5") for name in ("one", "two")
    ]
    told = [running.communicate()[1] for running in both]
    assert [running.returncode for running in both] == [0, 0], told
    assert calls.read_text().count("fairseq-preprocess") == 1
    with (tmp_path / "data" / "corpus" / "report.json").open("a") as report:
        report.write("\n")
    status, calls_made, errors = run_example(tmp_path, *options, "--work", "first")
    assert (status, calls_made) == (2, [])
    assert "data/data-bin was made from another corpus than data/corpus is now" in errors


def test_a_corpus_that_is_not_there_is_no_order_to_fetch_another(tmp_path: Path) -> None:
    status, calls, errors = run_example(tmp_path, "--corpus", "mine", recipe="summarization")
    assert (status, calls) == (2, [])
    assert "--corpus mine is not there" in errors


def test_outlines_are_scored_of_the_part_that_was_generated(tmp_path: Path) -> None:
    status, calls, errors = run_example(tmp_path, "--", "--test-part", "2", recipe="outline")
    assert (status, calls) == (2, [])
    assert "give --part N, before the --, in place of --test-part" in errors


@pytest.mark.parametrize(
    ("system", "arch", "tokens"),
    [
        ("arxiv", "updown_transformer_arxiv", 4096),
        ("transformer", "transformer", 1024),
        ("transformer", "transformer", 2048),
    ],
)
def test_the_summarization_recipe_trains_what_was_asked(
    tmp_path: Path, system: str, arch: str, tokens: int
) -> None:
    for name in ("report.json", "spm/spm.model", "spm/dict.txt", "raw/test.src", "raw/test.tgt"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("{}\n")
    asked = ["--corpus", "mine", "--system", system, "--updates", "7"]
    if tokens == 2048:
        asked += ["--tokens", "2048"]
    status, calls, errors = run_example(tmp_path, *asked, recipe="summarization")
    assert status == 0, errors
    names = [call.split()[0] for call in calls]
    assert names == ["fairseq-preprocess", "fairseq-train", "fairseq-generate", "updown-score"]
    for words in (f"--arch {arch} ", f"--max-source-positions {tokens} ", "--max-update 7 "):
        assert words in calls[1]


def test_run_translates_the_other_way_round(tmp_path: Path) -> None:
    own_text(tmp_path / "text")
    options = ("--from-text", "text", "--vocab-size", "30", "--updates", "7", "--reverse")
    status, calls, errors = run_example(tmp_path, *options, WORK="elsewhere", UPDATES="3")
    assert status == 0, errors
    (training,) = (call for call in calls if call.startswith("fairseq-train"))
    assert "--source-lang tgt --target-lang src " in training
    assert "--max-update 7 " in training
    assert not (tmp_path / "elsewhere").exists()


def test_run_trains_for_minutes_and_for_more(tmp_path: Path) -> None:
    own_text(tmp_path / "text")
    options = ("--from-text", "text", "--vocab-size", "30", "--minutes")
    for minutes, hours in (("30", "0.5"), ("90", "1.5")):
        _, calls, errors = run_example(tmp_path, *options, minutes)
        (training,) = (call for call in calls if call.startswith("fairseq-train"))
        assert f"--stop-time-hours {hours} " in training, errors
        assert "--max-update" not in training
    _, calls, _ = run_example(tmp_path, *options, "60")
    assert [call.split()[0] for call in calls] == ["sacrebleu"]


def test_run_trains_the_stock_model_of_the_same_size(tmp_path: Path) -> None:
    own_text(tmp_path / "text")
    options = ("--from-text", "text", "--vocab-size", "30", "--updates", "10", "--data", "data")
    words = []
    for name, switches in (("own", ()), ("stock", ("--stock",))):
        status, calls, errors = run_example(tmp_path, *options, "--work", name, *switches)
        assert status == 0, errors
        (training,) = (call for call in calls if call.startswith("fairseq-train"))
        words.append(training.replace(f"{name}/checkpoints", "checkpoints").split())
    own, stock = words
    assert not [word for word in stock if "updown" in word]
    assert stock.count("--arch") == 1
    at = stock.index("--arch")
    assert stock[at + 1] == "transformer_iwslt_de_en"
    rest, words_left = stock[:at] + stock[at + 2 :], iter(own)
    assert all(word in words_left for word in rest)  # in their order
    given = [word for word in own if word.startswith("--") and "updown" not in word]
    assert [word for word in rest if word.startswith("--")] == [w for w in given if w != "--arch"]
    status, _, errors = run_example(tmp_path, *options, "--work", "own", "--stock")
    assert status == 2
    assert "made with other options" in errors


def test_run_refuses_to_score_an_incomplete_test_set(tmp_path: Path) -> None:
    own_text(tmp_path / "text")
    options = ("--from-text", "text", "--vocab-size", "30", "--updates", "10")
    status, calls, errors = run_example(tmp_path, *options, LOSE_ONE="1")
    assert status == 2
    assert "holds 39 of 40 translations" in errors
    assert not any(call.startswith("sacrebleu") for call in calls)


def test_run_explains_itself(tmp_path: Path) -> None:
    for options, status, message in (
        (("--wrong",), 2, "unknown option --wrong"),
        (("--updates", "many"), 2, "--updates takes a number"),
        (("--minutes", "many"), 2, "--minutes takes a number"),
        (("--minutes", "5", "--updates", "5"), 2, "give one of them"),
        (("--lang",), 2, "--lang needs a value"),
        (("--help",), 0, ""),
    ):
        got, calls, errors = run_example(tmp_path, *options)
        assert (got, calls) == (status, [])
        assert message in errors
