"""`updown-export`: a trained model, computed by programs that do not know this plugin."""

import re
from math import log
from pathlib import Path
from typing import Any, List, Tuple

import ctranslate2
import pytest
import torch
from commands import PLUGIN, run
from fairseq import checkpoint_utils
from stored import parse, redraw, save_checkpoint
from toy import build

from fairseq_updown.cli import export

SMALL: List[str] = [
    *("--encoder-layers", "2", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24"),
    *("--decoder-layers", "2", "--encoder-attention-heads", "2", "--decoder-attention-heads", "2"),
    *("--share-all-embeddings", "--updown-slots", "4", "--updown-block-size", "64"),
    *("--updown-decoder-block-size", "8", "--updown-decoder-slots", "2"),
]


def train(work: Path, path: Path, *flags: str, arch: str = "updown_transformer") -> Path:
    """A checkpoint with weights far from their start, so that no two tokens score alike."""
    return redraw(save_checkpoint(path, parse(work / "bin", arch, *SMALL, *flags)))


def hypotheses(log: str) -> List[Tuple[str, float, str]]:
    """Sample, score and text of every hypothesis."""
    found = re.findall(r"^H-(\d+)\t(\S+)\t(.*)$", log, re.M)
    assert found
    return sorted((number, round(float(score), 4), text) for number, score, text in found)


def generate(work: Path, path: Path, *more: Any) -> List[Tuple[str, float, str]]:
    flags = ["--path", path, "--cpu", "--beam", 3, "--max-len-a", 0, "--max-len-b", 12]
    flags += ["--required-batch-size-multiple", 1]
    return hypotheses(run("fairseq-generate", work / "bin", *flags, *more))


def test_stock_fairseq_writes_the_same(work: Path, tmp_path: Path) -> None:
    stored = train(work, tmp_path / "ours.pt")
    said = run("updown-export", stored, "--to", "fairseq", tmp_path / "stock.pt")
    assert "sources of up to 64 tokens and targets of up to 16" in said
    ours = generate(work, stored, "--user-dir", PLUGIN)
    assert generate(work, tmp_path / "stock.pt") == ours
    assert len({text for _, _, text in ours}) > 3


def test_a_bart_becomes_a_stock_model(work: Path, tmp_path: Path) -> None:
    stored = train(
        work, tmp_path / "ours.pt", "--updown-pool-layers", "", arch="updown_transformer_bart_base"
    )
    run("updown-export", stored, "--to", "fairseq", tmp_path / "stock.pt")
    ours = generate(work, stored, "--user-dir", PLUGIN)
    assert generate(work, tmp_path / "stock.pt") == ours


def test_a_summarizer_validates_in_stock_fairseq(work: Path, tmp_path: Path) -> None:
    stored = train(work, tmp_path / "ours.pt", "--task", "summarization")
    run("updown-export", stored, "--to", "fairseq", tmp_path / "stock.pt")
    printed = run("fairseq-validate", work / "bin", "--path", tmp_path / "stock.pt", "--cpu",
        *("--task", "translation", "--valid-subset", "test", "--max-tokens", 500))  # fmt: skip
    assert "Traceback" not in printed
    assert re.search(r"valid on 'test' subset \| loss \d", printed)


def test_it_trains_on_in_stock_fairseq(work: Path, tmp_path: Path) -> None:
    stored = train(work, tmp_path / "ours.pt")
    run("updown-export", stored, "--to", "fairseq", tmp_path / "stock.pt")
    sizes = [x for x in SMALL if "updown" not in x][:13]
    run(
        *("fairseq-train", work / "bin", "--arch", "transformer", *sizes, "--max-update", 1),
        *("--finetune-from-model", tmp_path / "stock.pt", "--optimizer", "sgd", "--lr", 0),
        *("--max-tokens", 500, "--cpu", "--save-dir", tmp_path / "on", "--disable-validation"),
        *("--data-buffer-size", 0),  # its thread aborts some processes at their end
    )
    before, after = (
        checkpoint_utils.load_checkpoint_to_cpu(str(path))["model"]
        for path in (tmp_path / "stock.pt", tmp_path / "on" / "checkpoint_last.pt")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("learned", [(), ("--encoder-learned-pos", "--decoder-learned-pos")])
def test_ctranslate2_writes_the_same(learned: Tuple[str, ...], work: Path, tmp_path: Path) -> None:
    stored = train(work, tmp_path / "ours.pt", *learned)
    run("updown-export", stored, "--to", "ctranslate2", tmp_path / "ct2")
    ours = generate(work, stored, "--user-dir", PLUGIN, "--beam", 1)
    lines = (work / "test.src").read_text().splitlines()
    sources = [lines[int(number)].split() for number, _, _ in ours]
    texts = [text.split() for _, _, text in ours]
    translator = ctranslate2.Translator(str(tmp_path / "ct2"), inter_threads=1, intra_threads=1)
    found = translator.translate_batch(
        sources, beam_size=1, max_decoding_length=12, suppress_sequences=[["<blank>"]]
    )
    assert [x.hypotheses[0] for x in found] == texts
    # fairseq's score is the mean over the text and its end, to the base of 2
    scores = [sum(x.log_probs) / 13 / log(2) for x in translator.score_batch(sources, texts)]
    assert scores == pytest.approx([score for _, score, _ in ours], abs=2e-4)


def test_int8_for_ctranslate2_is_smaller(work: Path, tmp_path: Path) -> None:
    stored = train(work, tmp_path / "ours.pt")
    for kind in ("float32", "int8"):
        options = ["--quantization", kind]
        run("updown-export", stored, "--to", "ctranslate2", tmp_path / kind, *options)
    size = {kind: (tmp_path / kind / "model.bin").stat().st_size for kind in ("float32", "int8")}
    assert size["int8"] < size["float32"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--updown-pool-layers", "1", "--updown-memory-size", "32"], "longer than 32 tokens"),
        (["--updown-cross-slots", "16"], "longer than 16 tokens"),
        (["--updown-copy"], "--updown-copy"),
    ],
)
def test_what_is_no_transformer_is_refused_unless_forced(
    flags: List[str], reason: str, work: Path, tmp_path: Path
) -> None:
    stored = train(work, tmp_path / "ours.pt", *flags)
    order = ["updown-export", stored, "--to", "fairseq", tmp_path / "stock.pt"]
    said = run(*order, check=False)
    assert reason in said
    assert "Traceback" not in said
    assert not (tmp_path / "stock.pt").exists()
    assert f"but for this: it {'copies' if 'copy' in reason else 'pools'}" in run(*order, "--force")
    generate(work, tmp_path / "stock.pt")


def test_a_pyramid_that_never_pools_is_a_transformer(work: Path, tmp_path: Path) -> None:
    flags = ["--updown-pool-layers", "1", "--updown-memory-size", "2000"]
    stored = train(work, tmp_path / "ours.pt", *flags)
    run("updown-export", stored, "--to", "fairseq", tmp_path / "stock.pt")
    assert generate(work, tmp_path / "stock.pt") == generate(work, stored, "--user-dir", PLUGIN)


def test_bad_orders_are_refused_and_nothing_is_written(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    stored = train(work, tmp_path / "ours.pt")
    mixed = train(work, tmp_path / "mixed.pt", "--updown-mixer", "flow")
    (tmp_path / "taken").write_text("mine")
    out = str(tmp_path / "new")
    for arguments, reason in [
        ([tmp_path / "none.pt", "--to", "fairseq", out], "is no file"),
        ([mixed, "--to", "fairseq", out, "--force"], "mixer flow"),
        ([stored, "--to", "fairseq", tmp_path / "taken"], "is left alone"),
        ([stored, "--to", "fairseq", out, "--quantization", "int8"], "--quantization"),
    ]:
        with pytest.raises(SystemExit, match=reason):
            export.main([str(x) for x in arguments])
    assert (tmp_path / "taken").read_text() == "mine"
    assert not (tmp_path / "new").exists()
    stock = tmp_path / "stock.pt"
    assert export.main([str(stored), "--to", "fairseq", str(stock)]) == 0
    with pytest.raises(SystemExit, match="fairseq has it as it is"):
        export.main([str(stock), "--to", "fairseq", out])


def test_torchscript_and_onnx_are_refused_by_name() -> None:
    model = build()
    with pytest.raises(NotImplementedError, match="no ONNX or TorchScript form"):
        torch.jit.script(model)
    with pytest.raises(NotImplementedError, match="updown-export"):
        model.prepare_for_onnx_export_()
