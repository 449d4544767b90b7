"""docs/options.md has every flag of ours, with the default and the architectures of the code."""

import dataclasses
from typing import Any

import pytest
from pages import ROOT, code, table

from fairseq_updown.attention.pooling import POOLINGS
from fairseq_updown.mixers import MIXERS
from fairseq_updown.models.updown_transformer.architectures import (
    ARCHITECTURES,
    MODEL_NAME,
    UNBOUNDED,
    resolve,
)
from fairseq_updown.models.updown_transformer.options import UPDOWN_OPTIONS
from fairseq_updown.tasks.summarization import SummarizationConfig

PAGE = ROOT / "docs" / "options.md"


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def printed(default: Any) -> str:
    """A default as the page has it."""
    if default is False:
        return "off"
    return "none" if default in ("", None) else f"`{default}`"


def test_the_models_flags_and_defaults() -> None:
    rows = table(PAGE, "Of the model")
    found = [(code(row["flag"]), row["default"]) for row in rows]
    assert found == [
        (flag(name), printed(default)) for name, (_, default, _) in UPDOWN_OPTIONS.items()
    ]


@pytest.mark.parametrize(
    ("name", "choices"), [("updown_mixer", MIXERS), ("updown_pooling", POOLINGS)]
)
def test_every_choice_is_named(name: str, choices: Any) -> None:
    (meaning,) = (
        row["meaning"] for row in table(PAGE, "Of the model") if code(row["flag"]) == flag(name)
    )
    assert [choice for choice in choices if f"`{choice}`" not in meaning] == []


@pytest.mark.parametrize("name", UPDOWN_OPTIONS)
def test_the_architectures_that_set_a_flag(name: str) -> None:
    (row,) = (row for row in table(PAGE, "Of the model") if code(row["flag"]) == flag(name))
    expected = []
    for architecture, preset in ARCHITECTURES.items():
        value = preset.get(name, UPDOWN_OPTIONS[name][1])
        if value != UPDOWN_OPTIONS[name][1]:
            said = "unbounded" if value == UNBOUNDED else value
            expected.append(f"`{architecture[len(MODEL_NAME) :]}` {said}")
    assert row["architectures that set it"] == ", ".join(expected)


def test_the_architectures_sizes() -> None:
    rows = table(PAGE, "Of the architectures")
    assert [code(row["`--arch`"]) for row in rows] == list(ARCHITECTURES)
    for row in rows:
        args = resolve({"_name": code(row["`--arch`"])})
        assert (row["d"], row["feed-forward"], row["heads"], row["layers"]) == (
            str(args.encoder_embed_dim),
            str(args.encoder_ffn_embed_dim),
            str(args.encoder_attention_heads),
            f"{args.encoder_layers}+{args.decoder_layers}",
        )
        assert row["source positions"] == str(getattr(args, "max_source_positions", 1024))


def test_the_tasks_flags_and_defaults() -> None:
    ours = vars(SummarizationConfig)["__annotations__"]
    expected = [
        (flag(f.name), "the model's" if f.name.endswith("_positions") else printed(f.default))
        for f in dataclasses.fields(SummarizationConfig)
        if f.name in ours
    ]
    rows = table(PAGE, "Of `--task summarization`")
    found = [(code(row["flag"]), row["default"]) for row in rows]
    assert sorted(found) == sorted(expected)
