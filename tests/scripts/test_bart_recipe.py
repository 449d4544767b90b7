"""examples/bart: a corpus is encoded as fairseq does it; what cannot run is refused first."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from tiny_gpt2 import WORDS, make_files

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "bart"


def run(*command: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def encode(folder: Path, *options: Any) -> "subprocess.CompletedProcess[str]":
    files = ["--encoder-json", folder / "encoder.json", "--vocab-bpe", folder / "vocab.bpe"]
    out = ["--out", folder / "bpe"]
    return run(sys.executable, FOLDER / "encode.py", folder, *out, *files, *options)


def test_a_corpus_is_encoded_line_by_line_once(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    make_files(tmp_path)
    lines = ["", *(" ".join(WORDS[i % 7 :]) for i in range(300))]
    names = [f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")]
    for name in names[:-1]:
        (tmp_path / "raw" / name).write_text("".join(f"{line}\n" for line in lines))
    done = encode(tmp_path)
    assert done.returncode == 1
    assert "no test.tgt" in done.stderr
    (tmp_path / "raw" / "test.tgt").write_text("the cat\n")
    (tmp_path / "bpe").mkdir()
    (tmp_path / "bpe" / "valid.src").write_text("kept\n")
    assert encode(tmp_path).returncode == 0
    bpe = get_encoder(str(tmp_path / "encoder.json"), str(tmp_path / "vocab.bpe"))
    want = [" ".join(map(str, bpe.encode(line))) for line in lines]
    assert (tmp_path / "bpe" / "train.src").read_text() == "".join(f"{line}\n" for line in want)
    assert (tmp_path / "bpe" / "valid.src").read_text() == "kept\n"
    assert sorted(path.name for path in (tmp_path / "bpe").iterdir()) == sorted(names)
    (tmp_path / "encoder.json").unlink()
    assert "encoder.json and vocab.bpe are needed" in encode(tmp_path).stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--bart is missing"),
        (("--tiny", "--bart", "bart.large"), "leave out its files"),
        (("--tiny", "--tokens", "many"), "'many' is no number"),
        (("--size", "small"), "--size small: choose base or large"),
        (
            (*("--bart", "no", "--encoder-json", "e", "--vocab-bpe", "v", "--corpus", "c"),),
            "no/model.pt is not there",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_first(options: Any, said: str, tmp_path: Path) -> None:
    done = run("bash", FOLDER / "run.sh", *options, "--data", tmp_path / "data")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "data").exists()
