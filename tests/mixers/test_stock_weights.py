"""Stock checkpoints on fairseq's command line, where the mixer has other parameters."""

import logging
import sys
from pathlib import Path
from typing import Any, List

import pytest
import torch
from commands import PLUGIN
from fairseq_cli.train import cli_main

SIZES = [
    *("--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24", "--encoder-layers", "2"),
    *("--encoder-attention-heads", "2", "--decoder-embed-dim", "16", "--decoder-layers", "1"),
    *("--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2"),
]


def train(monkeypatch: pytest.MonkeyPatch, work: Path, save_dir: Path, *more: Any) -> Any:
    """The parameters after as many updates as `more` says; the learning rate is 0."""
    arguments: List[Any] = [
        *("fairseq-train", work / "bin", "--user-dir", PLUGIN, "--task", "translation", *SIZES),
        *("--share-all-embeddings", "--optimizer", "sgd", "--lr", "0", "--max-tokens", "500"),
        *("--cpu", "--no-progress-bar", "--disable-validation", "--save-dir", save_dir, *more),
    ]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    cli_main()
    return torch.load(save_dir / "checkpoint_last.pt")["model"]


@pytest.mark.parametrize("mixer", ["csp", "igloo", "luna"])
def test_a_stock_checkpoint_starts_a_training(
    mixer: str,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    stock_args = ("--arch", "transformer", "--max-update", 1)
    stock = train(monkeypatch, work, tmp_path / "stock", *stock_args)
    file = tmp_path / "stock" / "checkpoint_last.pt"
    for start in (["--finetune-from-model", file], ["--restore-file", file, "--reset-optimizer"]):
        caplog.clear()
        ours = ("--arch", "updown_transformer_tiny", "--updown-mixer", mixer, "--max-update", 2)
        tuned = train(monkeypatch, work, tmp_path / start[0], *ours, *start)
        assert "parameters of the checkpoint are dropped" in caplog.text
        shared = stock.keys() & tuned.keys()
        assert all(torch.equal(stock[key], tuned[key]) for key in shared)
        assert "encoder.layers.1.self_attn.out_proj.weight" in shared
