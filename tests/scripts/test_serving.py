"""A model and what it is exported to: the same texts, timed on the same batches."""

import shutil
from pathlib import Path

import pytest
import serving
from stored import SMALL, parse, redraw, save_checkpoint


def translation(work: Path, folder: Path, references: int) -> Path:
    """A folder as examples/translation leaves it, with a model of random weights."""
    (folder / "checkpoints").mkdir(parents=True)
    blocks = ["--updown-block-size", "64", "--updown-decoder-block-size", "64"]
    args = parse(work / "bin", "updown_transformer", *SMALL, *blocks)
    redraw(save_checkpoint(folder / "checkpoints" / "checkpoint_best.pt", args))
    shutil.copytree(work / "bin", folder / "data-bin")
    (folder / "corpus" / "raw").mkdir(parents=True)
    lines = (work / "test.tgt").read_text().splitlines()[:references]
    (folder / "corpus" / "raw" / "test.tgt").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
def test_exported_models_write_the_same(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = translation(work, tmp_path, 1000)
    sizes = ["--beam", "1", "--max-tokens", "60", "--repeats", "1", "--threads", "1"]
    assert serving.main([str(folder), *sizes]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    systems = [row[1].strip() for row in rows[2:]]
    assert len(systems) == 5
    same = {system: row[6].strip() for system, row in zip(systems, rows[2:])}
    assert same["exported, fairseq's `transformer`"] == "100.0%"
    assert same["exported, ctranslate2"] == "100.0%"
    assert float(rows[2][5]) == float(rows[4][5])


def test_another_number_of_references_is_told(work: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has 3 lines, the test set \d+ sources"):
        serving.main([str(translation(work, tmp_path, 3)), "--threads", "1"])
    with pytest.raises(SystemExit, match=r"checkpoint_best.pt is not there"):
        serving.main([str(tmp_path / "none"), "--threads", "1"])
