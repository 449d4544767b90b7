"""fairseq's hub interface, for programs that have used it with other models."""

from typing import Any

import pytest
from tiny_summarizer import SEARCH, Toy

from fairseq_updown.models.updown_transformer import UpdownTransformerModel

# In --task translation fairseq's no-repeat does nothing.
OPTIONS = dict(SEARCH, beam=4, lenpen=1.5, no_repeat_ngram_size=0)


def hub_of(toy: Toy) -> Any:
    data = toy.folder / "bin"
    return UpdownTransformerModel.from_pretrained(
        str(toy.folder),
        checkpoint_file=toy.checkpoint.name,
        data_name_or_path=str(data),
        bpe="sentencepiece",
        sentencepiece_model=str(data / "spm.model"),
    ).eval()


def test_it_writes_what_the_summarizer_writes(toy: Toy) -> None:
    hub, summarizer = hub_of(toy), toy.load(no_repeat_ngram_size=0)
    fitting = [x for x in toy.documents if len(hub.encode(x)) <= summarizer.max_source_tokens]
    assert 0 < len(fitting) < len(toy.documents)
    expected = [x.text for x in summarizer.summarize(fitting)]
    assert hub.translate(fitting, **OPTIONS) == expected
    assert hub.sample(fitting[0], **OPTIONS) == expected[0]
    with pytest.raises(Exception, match=r"since max_positions=\(32, 40\)"):
        hub.translate(toy.documents[3], **OPTIONS)


def test_it_generates_from_tokens(toy: Toy) -> None:
    hub = hub_of(toy)
    tokens = hub.encode(toy.documents[0])
    hypotheses = hub.generate(tokens, **OPTIONS)
    assert len(hypotheses) == OPTIONS["beam"]
    assert hub.decode(hypotheses[0]["tokens"]) == hub.translate(toy.documents[0], **OPTIONS)
