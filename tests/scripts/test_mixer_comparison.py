"""The comparison of mixers keeps each row under all it depends on, resumes, refuses and draws."""

import json
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import cost
import figure_store
import mixer_rows
import mixer_sections
import mixers
import pytest
import systems
from figure_store import PLUGIN, Store, code, data_hash, plugin_source
from mixer_rows import Row
from mixer_sections import SECTIONS
from mixers import KIND

from fairseq_updown.mixers import MIXERS

RECIPE = Path(__file__).resolve().parents[2] / "examples" / "comparison" / "run.sh"
TINY = [
    *("--mixers", "updown", "full", "--lengths", "16", "40", "--target-length", "8"),
    *("--arch", "updown_transformer_tiny", "--stock", "transformer_tiny", "--block-size", "8"),
    *("--slots", "2", "--repeats", "2", "--recall-lengths", "16", "32", "--recall-updates", "4"),
]


def call(folder: Path, *arguments: str) -> int:
    return mixers.main([*TINY, "--work", str(folder), *arguments])


def saved(folder: Path) -> List[Dict[str, Any]]:
    return json.loads((folder / "mixers.json").read_text())["rows"]


class Fake:
    """A section's measurement that counts, and stops or fails where it is told to."""

    def __init__(self) -> None:
        self.labels: List[str] = []
        self.interrupt_at, self.fail = 0, ""

    def __call__(self, rows: Sequence[Row], args: Any) -> List[Dict[str, Any]]:
        if len(self.labels) + 1 == self.interrupt_at:
            raise KeyboardInterrupt
        self.labels.append(rows[0].label())
        if rows[0].mixer == self.fail:
            raise ValueError("no mixing today")
        return [{"accuracy": [[16, 1.0], [32, 0.5]]} for _ in rows]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setattr(SECTIONS["recall"], "measure", found)
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of the sections cost and recall, with its picture."""
    folder = tmp_path_factory.mktemp("mixers")
    picture = ["--picture", str(folder / "new" / "mixers.png")]
    assert call(folder, "--sections", "cost", "recall", "--seeds", "1", *picture) == 0
    return folder


def test_cost_and_recall_have_their_rows_figures_and_picture(
    measured: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = saved(measured)
    keys = [row["key"]["row"] for row in rows]
    assert [(key["section"], key["mixer"], key["length"], key["seed"]) for key in keys] == [
        *(("cost", "updown", 16, None), ("cost", "full", 16, None)),
        *(("cost", "updown", 40, None), ("cost", "full", 40, None)),
        *(("recall", "updown", None, 1), ("recall", "full", None, 1)),
    ]
    for row in rows[:4]:
        for figures in (row["figures"], row["figures"]["stock"]):
            assert len(figures["seconds"]) == 2
            assert figures["peak_mib"] > figures["added_mib"] > 0
    full, stock = rows[1]["figures"], rows[1]["figures"]["stock"]
    assert full["parameters"] > stock["parameters"]  # the decoder's compressor
    for row in rows[4:]:
        assert [length for length, _ in row["figures"]["accuracy"]] == [16, 32]
        assert [update for update, _ in row["figures"]["curve"]] == [1, 2, 3, 4]
    assert (measured / "new" / "mixers.png").read_bytes().startswith(b"\x89PNG")
    arguments = ["--sections", "cost", "recall", "--seeds", "1"]
    assert call(measured, *arguments) == 0
    again = capsys.readouterr()
    assert "0 of 6 rows are to be measured" in again.err
    assert call(measured, *arguments, "--table") == 0
    printed = capsys.readouterr().out
    after_command = "\n\n| mixer | parameters | step, 16 | step, 40 | peak, 16 | peak, 40 | recall"
    assert printed.split(after_command)[1] == again.out.split(after_command)[1]
    assert "`transformer_tiny`, stock" in printed
    assert "- recall at 32 tokens: " in printed


def test_a_table_is_printed_from_another_machine_and_source(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = saved(measured)
    for row in rows:
        row["key"]["environment"].update({"cpu": "an abacus", "source": "another"})
    (tmp_path / "mixers.json").write_text(json.dumps({"kind": KIND, "rows": rows}))
    assert call(tmp_path, "--table", "--sections", "recall", "--seeds", "1") == 0
    printed = capsys.readouterr().out
    assert '"cpu": "an abacus"' in printed
    assert '"threads": {"recall": "1"}' in printed
    assert "recall after 4 updates over all its lengths; seeds 1:" in printed
    with pytest.raises(SystemExit, match="has no row of these sections"):
        call(tmp_path, "--table", "--sections", "recall", "--seeds", "7")


def test_an_interrupted_run_goes_on_where_it_stopped(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--sections", "recall", "--seeds", "1", "2"]
    fake.interrupt_at = 3
    assert call(tmp_path, *arguments) == 130
    assert "interrupted; run it again" in capsys.readouterr().err
    assert len(saved(tmp_path)) == 2
    fake.interrupt_at = 0
    assert call(tmp_path, *arguments) == 0
    assert [label.partition(": ")[2] for label in fake.labels] == [
        *("updown, seed 1", "full, seed 1", "updown, seed 2", "full, seed 2"),
    ]
    assert call(tmp_path, *arguments) == 0
    assert len(fake.labels) == 4
    assert call(tmp_path, *arguments, "--recall-updates", "5") == 0
    assert len(fake.labels) == 8


def test_a_failed_row_says_why_and_is_repeated_on_demand(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fake.fail = "updown"
    arguments = ["--sections", "recall", "--seeds", "1"]
    assert call(tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert "| `updown` | failed | failed |" in printed
    assert "| `full` | 1.00 | 0.50 |" in printed
    assert "- recall: updown, seed 1: ValueError: no mixing today" in printed
    assert call(tmp_path, *arguments) == 0
    assert len(fake.labels) == 2
    fake.fail = ""
    assert call(tmp_path, *arguments, "--retry-failed") == 0
    assert len(fake.labels) == 3
    assert "| `updown` | 1.00 | 0.50 |" in capsys.readouterr().out
    assert len(saved(tmp_path)) == 2


def test_a_mixer_that_is_refused_leaves_the_others_their_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def alone(device: str, function: Any, arch: str, *more: Any) -> Dict[str, float]:
        if '"full"' in arch:
            raise ValueError("--updown-mixer full: not at this length")
        return {"added_mib": 1.0, "peak_mib": 2.0, "parameters": 3e6}

    def time_rounds(figures: Dict[str, Any], *more: Any) -> None:
        for arch in figures:
            figures[arch]["seconds"] = [0.5 if "updown" in arch else 2.0]

    monkeypatch.setattr(mixer_sections.fresh_process, "alone", alone)
    monkeypatch.setattr(cost, "time_rounds", time_rounds)
    mixer_sections.inspect_once.cache_clear()
    assert call(tmp_path, "--sections", "cost", "--lengths", "16") == 0
    mixer_sections.inspect_once.cache_clear()
    printed = capsys.readouterr().out
    assert "| `updown` | 3.0M | 500 ms (4.00x) | 1 MiB |" in printed
    assert "| `full` | failed | failed | failed |" in printed
    assert "ValueError: --updown-mixer full: not at this length" in printed


def test_blockwise_is_compared_by_way_of_its_slots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built: List[Any] = []

    def alone(device: str, function: Any, arch: str, *more: Any) -> Dict[str, float]:
        built.append(systems.build(arch, *more).model.cfg)
        raise ValueError("built")

    monkeypatch.setattr(mixer_sections.fresh_process, "alone", alone)
    args = ["--sections", "cost", "--lengths", "16", "--mixers", "blockwise", "luna=2", "updown"]
    assert call(tmp_path, *args) == 0
    mixers_and_slots = [(cfg.updown_mixer, cfg.updown_slots) for cfg in built[1:]]
    assert mixers_and_slots == [("updown", 0), ("luna=2", 2), ("updown", 2)]
    args = mixers.parse_args([*TINY, "--mixers", "blockwise"])
    for section in ("summaries", "translation"):
        options = SECTIONS[section].rows(args)[0].task["options"]
        slots = [options[i + 1] for i, option in enumerate(options) if option == "--updown-slots"]
        assert slots[-1] == "0"  # the last one counts
        assert "--updown-mixer" not in options


def test_several_processes_fill_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    one, other = (Store(path, KIND) for _ in range(2))
    one.put({"row": 1}, "a")
    other.put({"row": 2}, "b")
    one.put({"row": 1}, "c")
    found = Store(path, KIND).rows
    assert {row["key"]["row"]: row["figures"] for row in found} == {1: "c", 2: "b"}


# ------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("mixer", "changed", "matters"),
    [
        ("full", "mixers/full.py", True),
        ("full", "mixers/base.py", True),
        ("full", "attention/functional.py", True),
        ("full", "models/updown_transformer/layers.py", True),
        ("full", "ops/dropout.py", True),
        ("full", "decoding/beams.py", True),
        ("full", "mass.py", True),
        ("full", "pyramid.py", True),
        ("full", "mixers/luna.py", False),
        ("full", "mixers/__init__.py", False),
        ("full", "scoring/rouge.py", True),
        ("topm=5", "mixers/topm.py", True),
        ("topm=5", "mixers/chosen_keys.py", True),
        ("topm=5", "mixers/full.py", True),
        ("topm=5", "mixers/luna.py", False),
        ("blockwise", "attention/encoder.py", True),
        ("blockwise", "mixers/luna.py", False),
    ],
)
def test_a_row_depends_on_its_mixer_and_what_is_shared(
    mixer: str, changed: str, matters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = PLUGIN / changed
    assert path.is_file()
    before = source_where(monkeypatch, mixer, {})
    assert (before != source_where(monkeypatch, mixer, {path: "new"})) == matters


def source_where(monkeypatch: pytest.MonkeyPatch, mixer: str, changed: Dict[Path, str]) -> str:
    """A mixer's hash, with other content in some files."""
    plugin_source.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(figure_store, "code", lambda path: changed.get(path, str(path)))
        found = mixer_rows.source(mixer)
    plugin_source.cache_clear()
    return found


def test_adding_a_mixer_leaves_the_others_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mixer_rows.source("full")
    monkeypatch.setitem(MIXERS, "another", MIXERS["updown"])
    assert mixer_rows.source("full") == before
    assert mixer_rows.source("another") == mixer_rows.source("updown") != before


def test_comments_and_docstrings_are_no_code(tmp_path: Path) -> None:
    texts = {
        "plain": "def f(x):\n    return x + 1\n",
        "commented": '"""A."""\ndef f(x):  # why\n\n    """B."""\n    return (x + 1)\n',
        "changed": "def f(x):\n    return x + 2\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    plain, commented, changed = (code(tmp_path / name) for name in texts)
    assert plain == commented != changed


def test_a_key_names_all_that_figures_depend_on(tmp_path: Path) -> None:
    arguments = [*TINY, "--sections", "summaries", "--summaries", str(tmp_path), "--seeds", "1"]
    args = mixers.parse_args([*arguments, "--updates", "7", "--", "--lr", "0.1"])
    (tmp_path / "train.src-tgt.src.bin").write_bytes(b"one")
    row = SECTIONS["summaries"].rows(args)[0]
    key = SECTIONS["summaries"].key(row, args)
    assert json.loads(json.dumps(key)) == key
    options = key["row"]["task"]["options"]
    assert options[options.index("--updown-mixer") + 1] == "updown"
    assert options[-2:] == ["--lr", "0.1"]
    assert key["row"]["task"]["updates"] == 7
    assert {"torch", "fairseq", "python", "cpu", "gpu", "threads", "data", "source"} <= set(
        key["environment"]
    )
    data_hash.cache_clear()
    (tmp_path / "train.src-tgt.src.bin").write_bytes(b"two")
    assert SECTIONS["summaries"].key(row, args)["environment"]["data"] != key["environment"]["data"]


def test_costs_of_one_length_are_timed_together_and_all_else_alone() -> None:
    rows = [Row("cost", mixer, length) for length in (1, 2) for mixer in "abc"]
    rows += [Row("recall", mixer, seed=1) for mixer in "ab"]
    groups = mixers.groups(rows, 2)
    assert [[row.mixer for row in group] for group in groups] == [
        *(["a", "b"], ["c"], ["a", "b"], ["c"], ["a"], ["b"]),
    ]


# ------------------------------------------------------------------------------- tasks and scores


def test_translations_are_scored_in_the_order_of_the_references(tmp_path: Path) -> None:
    texts = ["the cat sat on the mat", "it rains again in the north"]
    (tmp_path / "raw").write_text("".join(f"{text}\n" for text in texts))
    generated = tmp_path / "generated"
    generated.write_text(f"H-1\t-1\t▁x\nD-1\t-1\t{texts[1]}\nD-0\t-1\t{texts[0]}\n")
    found = mixer_sections.score_translations(generated, tmp_path / "raw")
    assert found["BLEU"] == pytest.approx(100)
    assert found["chrF2 signature"].startswith("nrefs:1")
    generated.write_text(f"D-1\t-1\t{texts[1]}\n")
    with pytest.raises(ValueError, match="holds 1 of 2 translations"):
        mixer_sections.score_translations(generated, tmp_path / "raw")


@pytest.mark.slow
@pytest.mark.parametrize("section", ["summaries", "translation"])
def test_trainings_run_once_and_are_scored(
    section: str, in_forks: None, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = tmp_path / "translation"
    (data / "corpus" / "raw").mkdir(parents=True)
    (data / "data-bin").symlink_to(work / "bin")
    (data / "corpus" / "raw" / "test.tgt").write_text((work / "test.tgt").read_text())
    arguments = [
        *("--sections", section, "--mixers", "full", "--seeds", "1", "--updates", "4"),
        *("--translation-updates", "4"),
        *("--summaries", str(work / "bin"), "--translation", str(data), "--validations", "1"),
        *("--source-tokens", "30", "--", "--max-tokens", "500"),
    ]
    assert call(tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert f"| mixer | {SECTIONS[section].head} | nll, {section} |" in printed
    assert "failed" not in printed
    (row,) = saved(tmp_path)
    assert row["figures"]["train"]["updates"] == 4
    assert call(tmp_path, *arguments) == 0
    assert "0 of 1 rows" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- mistakes

MISTAKES: List[Tuple[List[str], str]] = [
    (["--mixers", "nonesuch"], "--mixers nonesuch: choose blockwise, updown, full"),
    (["--mixers", "full=8"], "--mixers full=8: full has no size of its own; write full"),
    (["--mixers", "topm=x"], "--mixers topm=x: a size is a whole number above 0"),
    (["--seeds", "-1"], "--seeds -1 is negative"),
    (["--sections", "cost", "--picture", "x.png"], "give --sections cost and one other"),
    (["--picture", "x.jpg"], "--picture x.jpg ends with neither .png nor .svg"),
    (["--picture", "/proc/version/x.png"], "--picture /proc/version/x.png cannot be written"),
    (["--json", "/proc"], "--json /proc cannot be written"),
    (["--recall-lengths", "8"], "--recall-lengths 8 is too short"),
    (["--arch", "nonesuch"], "--arch nonesuch is not known to fairseq"),
    (["--arch", "transformer"], "--arch transformer has no mixers"),
    (["--slots", "9"], "use at most --block-size = 8"),
    (["--pool-layers", "7"], "--pool-layers '7': there is no encoder layer 7"),
    (["--summaries", "/nowhere"], "--summaries /nowhere has no dict.src.txt"),
    (["--sections", "translation", "--translation", "/nowhere"], "/nowhere has no data-bin"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_told_before_anything_runs(
    arguments: List[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        call(tmp_path, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_foreign_json_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mixers.json"
    path.write_text('{"kind": "corpus", "rows": []}')
    with pytest.raises(SystemExit, match=f"is no {KIND}: it is left alone"):
        call(tmp_path, "--sections", "recall")
    assert path.read_text() == '{"kind": "corpus", "rows": []}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--help"], "Usage: run.sh"),
        (["--nonesuch"], "unknown option --nonesuch; see --help"),
        (["--sections", "cost speed"], "--sections speed: choose among cost, recall"),
        (["--work"], "--work needs a value"),
    ],
)
def test_the_recipe_explains_itself_and_refuses(
    arguments: List[str], message: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["bash", str(RECIPE), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert message in done.stdout + done.stderr
    assert (done.returncode == 0) == (arguments == ["--help"])
    assert not list(tmp_path.iterdir())
