"""Checkpoints of earlier versions are the same models in today's options."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from fairseq.models import build_model
from omegaconf import OmegaConf
from toy import COMPRESSED, STOCK, build, draw_rows, logits, toy_task

from fairseq_updown.mixers import MIXERS
from fairseq_updown.models.updown_transformer.migration import migrate
from fairseq_updown.models.updown_transformer.model import UpdownTransformerModel

BETWEEN = {
    "updown_mixer_size": None,
    "updown_mixer_ensemble": None,
    "updown_cross_slots": 0,
    "updown_pooling": "tournament",
    "updown_pooling_base": 20.0,
    "updown_no_gate": False,
    "updown_no_reweight": False,
}
OLD = {"updown_mixer": "updown", "updown_mixer_size": 0, "updown_mixer_ensemble": 0}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"updown_mixer": "updown"}),
        (dict(updown_mixer="luna"), {"updown_mixer": "luna"}),
        (dict(updown_mixer="luna", updown_mixer_size=64), {"updown_mixer": "luna=64"}),
        (dict(updown_mixer="ssa", updown_mixer_ensemble=3), {"updown_mixer": "ssa=256x3"}),
        (
            dict(updown_mixer="ssa", updown_mixer_size=8, updown_mixer_ensemble=3),
            {"updown_mixer": "ssa=8x3"},
        ),
        (
            dict(updown_mixer="blockwise", updown_slots=32),
            {"updown_mixer": "updown", "updown_slots": 0},
        ),
        # given anew when the checkpoint was loaded
        (dict(updown_mixer="luna=8", updown_mixer_size=64), {"updown_mixer": "luna=8"}),
    ],
)
def test_old_options_become_todays(old: Dict[str, Any], new: Dict[str, Any]) -> None:
    old = {**OLD, **old}
    kept = dict(old)
    assert migrate(old) == {**new, "updown_pooled_block_size": 0}
    assert old == kept
    assert migrate(new) == new


def test_the_sizes_of_an_ensemble_are_the_default_of_then() -> None:
    assert MIXERS["ssa"].default_size == 256


def stored(weights: Any, arch: str, path: Path, **options: Any) -> Any:
    """The configuration and weights of a checkpoint as an earlier version wrote them."""
    config = {"_name": arch, **STOCK, **COMPRESSED, **OLD, **options}
    torch.save({"cfg": {"model": config}, "model": weights.state_dict()}, path)
    return torch.load(path, weights_only=True)


# fairseq drops options that are no fields for a model's own name, not for other architectures
@pytest.mark.parametrize("arch", ["updown_transformer", "updown_transformer_arxiv"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dict(updown_mixer="luna", updown_mixer_size=5), dict(updown_mixer="luna=5")),
        (
            dict(updown_mixer="ssa", updown_mixer_size=3, updown_mixer_ensemble=2),
            dict(updown_mixer="ssa=3x2"),
        ),
        (dict(updown_mixer="blockwise"), dict(updown_slots=0)),
        # of the day between the end of these two options and the first newer one
        ({**BETWEEN, "updown_mixer": "updown"}, {}),
    ],
    ids=["size", "ensemble", "blockwise", "between"],
)
def test_an_old_checkpoint_loads_and_is_the_same_model(
    arch: str, old: Dict[str, Any], new: Dict[str, Any], tmp_path: Path
) -> None:
    expected = build(**new, updown_pooling=old.get("updown_pooling", "seeded"))
    state = stored(expected, arch, tmp_path / "old.pt", **old)
    config = OmegaConf.create(state["cfg"]["model"])
    model = build_model(config, toy_task(), from_checkpoint=True).double().eval()
    assert isinstance(model, UpdownTransformerModel)
    model.load_state_dict(state["model"], strict=True)
    source, target = torch.stack(draw_rows([23], 0)), torch.stack(draw_rows([6], 1))
    with torch.no_grad():
        assert torch.equal(logits(model, source, target), logits(expected, source, target))


def test_what_is_stored_anew_is_of_today() -> None:
    config = OmegaConf.create({"model": {"_name": "updown_transformer_tiny", **OLD}})
    config.model.update({"updown_mixer": "blockwise", "updown_slots": 4})
    build_model(config.model, toy_task(), from_checkpoint=True)
    assert (config.model.updown_mixer, config.model.updown_slots) == ("updown", 0)
    assert config.model.get("updown_mixer_size") is None
    assert config.model.get("updown_mixer_ensemble") is None
