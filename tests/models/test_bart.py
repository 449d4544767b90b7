"""fairseq's BART, in the layout in which it is published, starts a training of ours as it is."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any, List, Optional

import pytest
import torch
from commands import PLUGIN, run
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.bart.model import bart_base_architecture, bart_large_architecture
from tiny_bart import FLAGS, POSITIONS, make_bart, save_published
from toy import EXACT, logits, random_tokens

from fairseq_updown.models.updown_transformer.pretrained import fit_rows


def words_of(work: Path) -> Path:
    return work / "bin" / "dict.src.txt"


def finetune(work: Path, save_dir: Path, file: Path, *more: Any, check: bool = True) -> str:
    """One update at a learning rate of 0 from a file; what fairseq-train says."""
    return run(
        *("fairseq-train", work / "bin", "--user-dir", PLUGIN, "--task", "summarization"),
        *("--arch", "updown_transformer_bart_base", *FLAGS, "--finetune-from-model", file),
        *("--optimizer", "sgd", "--lr", 0, "--batch-size", 4, "--max-update", 1, "--cpu"),
        *("--truncate-source", "--truncate-target", "--max-target-positions", POSITIONS),
        *("--save-dir", save_dir, "--disable-validation", "--no-progress-bar", *more),
        check=check,
    )


def load(save_dir: Path) -> Any:
    (model,), _ = checkpoint_utils.load_model_ensemble([str(save_dir / "checkpoint_last.pt")])
    return model.double().eval()


def draw(bsz: int, length: int, seed: int = 0) -> torch.Tensor:
    return random_tokens(torch.Generator().manual_seed(seed), bsz, length)


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_presets_are_barts(size: str) -> None:
    stock = Namespace()
    (bart_base_architecture if size == "base" else bart_large_architecture)(stock)
    ours = Namespace()
    ARCH_CONFIG_REGISTRY[f"updown_transformer_bart_{size}"](ours)
    assert {name: getattr(ours, name) for name in vars(stock)} == vars(stock)
    assert ours.updown_block_size == ours.updown_decoder_block_size == stock.max_source_positions


@pytest.mark.parametrize("layout", ["in_proj", "split, with a head"])
def test_logits_are_barts_while_a_source_fits_a_block(
    layout: str, work: Path, tmp_path: Path
) -> None:
    bart = make_bart(words_of(work), madeupwords=2)
    kind = dict(in_proj=layout == "in_proj", heads=layout != "in_proj")
    file = save_published(tmp_path / "bart.pt", bart, **kind)
    said = finetune(work, tmp_path / "out", file, "--max-source-positions", 40)
    assert "3 at the end, <mask> among them, are cut" in said
    assert re.search("--max-source-positions 40, the checkpoint has 10: .*repeated", said)
    assert ("classification heads are dropped" in said) is kind["heads"]
    source, target = draw(2, POSITIONS), draw(2, POSITIONS, seed=1)
    ours, words = load(tmp_path / "out"), len(Dictionary.load(str(words_of(work))))
    with torch.no_grad():
        expected = logits(bart.double(), source, target)[..., :words]
        torch.testing.assert_close(logits(ours, source, target), expected, **EXACT)
        longer = logits(ours, draw(2, 40), target)
    assert longer.isfinite().all()


def test_without_slots_and_pools_each_block_is_what_bart_makes_of_it_alone(
    work: Path, tmp_path: Path
) -> None:
    bart = make_bart(words_of(work))
    file = save_published(tmp_path / "bart.pt", bart)
    alone = ["--updown-block-size", POSITIONS, "--updown-slots", 0, "--updown-pool-layers", ""]
    finetune(work, tmp_path / "out", file, *alone, "--max-source-positions", 35)
    ours, source = load(tmp_path / "out"), draw(2, 35)
    with torch.no_grad():
        found = ours.encoder(source)["encoder_out"][0]
        blocks = [
            bart.double().encoder(block)["encoder_out"][0] for block in source.split(POSITIONS, 1)
        ]
        torch.testing.assert_close(found, torch.cat(blocks), **EXACT)


def test_slots_begin_as_light_as_a_token_and_stay_what_they_were_trained_to(
    work: Path, tmp_path: Path
) -> None:
    file = save_published(tmp_path / "bart.pt", make_bart(words_of(work)))
    longer = ["--max-source-positions", 60, "--updown-block-size", 8, "--updown-slots", 2]
    finetune(work, tmp_path / "out", file, *longer, "--lr", 0.1)
    stored = torch.load(tmp_path / "out" / "checkpoint_last.pt")["model"]
    found = load(tmp_path / "out").state_dict()
    for layer in (0, 1):
        key = f"encoder.layers.{layer}.self_attn.count_bias.score_slope"
        assert found[key].equal(stored[key].double())
        assert (found[key] != -2).any()
        assert ((found[key] + 2).abs() < 0.5).all()


def test_a_bart_that_means_something_else_is_refused(work: Path, tmp_path: Path) -> None:
    options = dict(encoder_attention_heads=2, activation_fn="relu", no_scale_embedding=False)
    bart = make_bart(words_of(work), layernorm_embedding=False, **options)
    file = save_published(tmp_path / "bart.pt", bart)
    printed = finetune(work, tmp_path / "out", file, "--encoder-normalize-before", check=False)
    choose = "out, and choose an --arch that does not set it"
    assert (
        "give --encoder-attention-heads 2 (here it is 4); give --activation-fn relu (here it is "
        f"gelu); leave --no-scale-embedding {choose}; leave --layernorm-embedding {choose}; leave "
        f"--encoder-normalize-before {choose}"
    ) in printed


@pytest.mark.parametrize("form", ["args", "cfg"])
def test_a_stock_transformer_that_means_something_else_is_refused(
    form: str, work: Path, tmp_path: Path
) -> None:
    task = ["--task", "translation", "--source-lang", "src", "--target-lang", "tgt"]
    sizes = ["--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 24, "--encoder-layers", 1]
    sizes += ["--decoder-embed-dim", 16, "--decoder-ffn-embed-dim", 24, "--decoder-layers", 1]
    train = ["--optimizer", "sgd", "--lr", 0, "--batch-size", 4, "--max-update", 1, "--cpu"]
    common = [work / "bin", "--user-dir", PLUGIN, *task, *sizes, *train, "--disable-validation"]
    folder = tmp_path / "stock"
    run("fairseq-train", *common, "--arch", "transformer", "--save-dir", folder)
    file = folder / "checkpoint_last.pt"
    if form == "args":
        state = torch.load(file)
        torch.save({**state, "args": state["cfg"]["model"], "cfg": None}, file)
    other = ["--arch", "updown_transformer", "--activation-fn", "gelu", "--no-scale-embedding"]
    start = ["--finetune-from-model", file, "--save-dir", tmp_path / "out"]
    printed = run("fairseq-train", *common, *start, *other, check=False)
    assert "give --activation-fn relu (here it is gelu); leave --no-scale-embedding out" in printed


# ---------------------------------------------------------------------------------- vocabularies


def rows_for(stored_words: int, words: int, mask: Optional[int], has_mask: bool) -> List[int]:
    """Numbers of stored rows and, negative, initial ones."""
    dictionary = Dictionary()
    for i in range(words):
        dictionary.add_symbol("<mask>" if mask == i else f"w{i}")
    size = 4 + stored_words + has_mask
    stored = torch.arange(float(size)).unsqueeze(1)
    initial = -1 - torch.arange(4.0 + words).unsqueeze(1)
    rows = fit_rows("key", stored, initial, dictionary, has_mask)
    return rows.squeeze(1).int().tolist()


def test_rows_are_cut_extended_and_the_mask_goes_where_the_dictionary_has_it(caplog: Any) -> None:
    assert rows_for(3, 3, None, False) == list(range(7))
    assert rows_for(4, 5, 1, True) == list(range(9))  # both have the mask, before other words
    assert not caplog.records
    assert rows_for(3, 3, None, True) == list(range(7))  # the mask is cut
    assert rows_for(5, 3, None, True) == list(range(7))  # and two rows of no word
    assert rows_for(3, 5, None, False) == [*range(7), -8, -9]
    assert rows_for(3, 4, None, True) == [*range(7), -8]  # a new word is not the mask
    assert rows_for(3, 4, 3, True) == list(range(8))  # the dictionary has it where it was
    assert rows_for(5, 4, 3, True) == [*range(7), 9]  # behind fewer words
    assert rows_for(3, 5, 4, True) == [*range(7), -8, 7]  # behind more
    assert rows_for(3, 8, 3, True) == [*range(8), -9, -10, -11, -12]  # before new words


def test_another_dictionary_is_refused() -> None:
    for stored, words in ((40, 20), (20, 40)):
        with pytest.raises(ValueError, match=r"--srcdict and --tgtdict"):
            rows_for(stored, words, None, True)
