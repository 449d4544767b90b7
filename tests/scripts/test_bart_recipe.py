"""examples/bart: a corpus is encoded as fairseq does it; what cannot run is refused first."""

import importlib.util
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from tiny_gpt2 import WORDS, make_files

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "bart"


def run(*command: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


@pytest.fixture
def encode(tmp_path: Path) -> Callable[[], int]:
    """encode.py on the files of a folder, in this process."""
    spec = importlib.util.spec_from_file_location("encode", FOLDER / "encode.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = ["--encoder-json", tmp_path / "encoder.json", "--vocab-bpe", tmp_path / "vocab.bpe"]
    order = [tmp_path, "--out", tmp_path / "bpe", *files, "--workers", "2"]
    return lambda: module.main(list(map(str, order)))


def test_a_corpus_is_encoded_line_by_line_once(tmp_path: Path, encode: Callable[[], int]) -> None:
    (tmp_path / "raw").mkdir()
    make_files(tmp_path)
    lines = ["", *(" ".join(WORDS[i % 7 :]) for i in range(300))]
    names = [f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")]
    for name in names[:-1]:
        (tmp_path / "raw" / name).write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(SystemExit, match=r"no test\.tgt"):
        encode()
    (tmp_path / "raw" / "test.tgt").write_text("the cat\n")
    with pytest.raises(SystemExit, match=r"has no report\.json"):
        encode()
    (tmp_path / "report.json").write_text("{}")
    assert encode() == 0
    (tmp_path / "bpe" / "valid.src").write_text("kept\n")
    assert encode() == 0
    bpe = get_encoder(str(tmp_path / "encoder.json"), str(tmp_path / "vocab.bpe"))
    want = [" ".join(map(str, bpe.encode(line))) for line in lines]
    assert (tmp_path / "bpe" / "train.src").read_text() == "".join(f"{line}\n" for line in want)
    assert (tmp_path / "bpe" / "valid.src").read_text() == "kept\n"
    assert sorted(path.name for path in (tmp_path / "bpe").iterdir()) == [
        "made-from",
        *sorted(names),
    ]
    (tmp_path / "report.json").write_text('{"options": "others"}')
    with pytest.raises(SystemExit, match="was made from another corpus"):
        encode()
    (tmp_path / "bpe" / "made-from").unlink()
    with pytest.raises(SystemExit, match="does not say what it was made from"):
        encode()
    (tmp_path / "encoder.json").write_text("<html>Not found</html>")
    with pytest.raises(SystemExit, match=r"are not GPT-2's encoder\.json and vocab\.bpe"):
        encode()
    (tmp_path / "encoder.json").unlink()
    with pytest.raises(SystemExit, match=r"encoder\.json and vocab\.bpe are needed"):
        encode()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--bart is missing"),
        (("--tiny", "--bart", "bart.large"), "its own BART: leave out --bart"),
        (("--tiny", "--tokens", "many"), "--tokens takes a number from 1 on, not 'many'"),
        (("--tiny", "--size", "base"), "its own BART: leave out --bart, --size"),
        (("--size", "small"), "--size small: choose base or large"),
        (("--threads", "1"), "--threads is of trainings on CPUs: give it with --tiny"),
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
