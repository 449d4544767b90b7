"""fairseq's hub interface, for programs that have used it with other models."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_summarizer import SEARCH, Toy

from fairseq_updown import Summarizer
from fairseq_updown.models.updown_transformer import UpdownTransformerModel

# In --task translation fairseq's no-repeat does nothing.
OPTIONS = dict(SEARCH, beam=4, lenpen=1.5, no_repeat_ngram_size=0)


COMMANDS = Path(__file__).parents[2] / "docs" / "commands.md"


def hub_of(toy: Toy, checkpoint: Path) -> Any:
    data = toy.folder / "bin"
    return UpdownTransformerModel.from_pretrained(
        str(checkpoint.parent),
        checkpoint_file=checkpoint.name,
        data_name_or_path=str(data),
        bpe="sentencepiece",
        sentencepiece_model=str(data / "spm.model"),
    ).eval()


def test_it_writes_what_the_summarizer_writes(toy: Toy) -> None:
    hub, summarizer = hub_of(toy, toy.checkpoint), toy.load(no_repeat_ngram_size=0)
    fitting = [x for x in toy.documents if len(hub.encode(x)) <= summarizer.max_source_tokens]
    assert 0 < len(fitting) < len(toy.documents)
    expected = [x.text for x in summarizer.summarize(fitting)]
    assert hub.translate(fitting, **OPTIONS) == expected
    assert hub.sample(fitting[0], **OPTIONS) == expected[0]
    with pytest.raises(Exception, match=r"since max_positions=\(32, 40\)"):
        hub.translate(toy.documents[3], **OPTIONS)


def test_it_generates_from_tokens(toy: Toy) -> None:
    hub = hub_of(toy, toy.checkpoint)
    tokens = hub.encode(toy.documents[0])
    hypotheses = hub.generate(tokens, **OPTIONS)
    assert len(hypotheses) == OPTIONS["beam"]
    assert hub.decode(hypotheses[0]["tokens"]) == hub.translate(toy.documents[0], **OPTIONS)


def test_longer_sources_are_cut_where_the_training_was_told_to(toy: Toy, tmp_path: Path) -> None:
    state = torch.load(toy.checkpoint)
    state["cfg"]["task"]["_name"] = "summarization"
    assert state["cfg"]["task"]["truncate_source"]
    torch.save(state, tmp_path / "cuts.pt")
    search = dict(SEARCH, beam=4, lenpen=1.5, no_repeat_ngram_size=3)
    summarizer = Summarizer.load(tmp_path / "cuts.pt", toy.folder / "bin", **search)
    expected = summarizer.summarize([toy.documents[3]], long="truncate")[0].text
    assert hub_of(toy, tmp_path / "cuts.pt").translate(toy.documents[3], **search) == expected


def test_the_programs_of_the_docs_run(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint_best.pt").symlink_to(toy.checkpoint)
    (tmp_path / "data-bin").symlink_to(toy.folder / "bin")
    monkeypatch.chdir(tmp_path)
    programs = re.findall("^```python\n(.*?)^```", COMMANDS.read_text(), re.M | re.S)
    assert len(programs) == 2
    for program in programs:
        exec(program, {})
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3
