"""highlight.py: shades and attention are what the model did, and the page shows the very text."""

import base64
import hashlib
import io
import itertools
import json
import random
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from toy import CONFIGURATIONS, EOS, build, random_tokens

from fairseq_updown.cli import charts, highlight
from fairseq_updown.cli.highlight_page import (
    Page,
    Word,
    binned,
    escape,
    passages,
    render,
)
from fairseq_updown.data.parallel_text import train_sentencepiece
from fairseq_updown.errors import UserError
from fairseq_updown.inference.summarizer import Summarizer

HOSTILE = (
    "A <script>alert(1)</script> & \"quoted\" 'text' ]]> </script> <!-- {{data}} {{title}} -->\n\n"
    "<img src=x onerror=alert(2)> \u2028 line \u2029 \u202ereversed\u202c \u2066alone\u2069 \x00"
    " \x07\tfeed\x0c\n  caf\u0065\u0301 \ufb01n \u5b57\u5b57 \u0645\u0631\u062d\u0628\u0627 "
    "\U0001f600 \U000e0041 </style></i></section></article> &amp; &#x3c; \ufffe.\n"
)
MODEL = (
    "--task translation -s src -t tgt --arch updown_transformer_tiny --share-all-embeddings "
    "--max-source-positions 600 --max-target-positions 60 --criterion cross_entropy"
)
WORDS = ["the", "sea", "is", "deep", "and", "cold", "ships", "sail", "north,", "south;"]


def sentence_tokens(length: int, seed: int = 0) -> torch.Tensor:
    words = random_tokens(torch.Generator().manual_seed(seed), 1, length - 1)[0]
    return torch.cat((words, words.new_tensor([EOS])))


def test_stages_compose_to_the_encoders_trace_and_shares_sum_to_the_memory(
    configuration: Dict[str, Any],
) -> None:
    model, tokens = build(**configuration), sentence_tokens(43)
    encoder_out, stages = highlight.trace(model, tokens)
    with torch.no_grad():
        expected = model.encoder(tokens.unsqueeze(0), src_lengths=torch.tensor([43]))
    assert expected["encoder_out"][0].equal(encoder_out["encoder_out"][0])
    assert stages[-1].slot.equal(expected["source_slot"][0][0])
    assert stages[-1].weight.equal(expected["source_weight"][0][0])
    assert stages[-1].length == encoder_out["encoder_out"][0].size(0)
    for stage in stages:
        shares = np.bincount(stage.slot.numpy(), stage.weight.numpy(), stage.length)
        np.testing.assert_allclose(shares, 1, atol=1e-5)
    assert float(stages[-1].weight.sum()) == pytest.approx(stages[-1].length, abs=1e-4)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ({}, ["after layer 1", "after layer 2"]),
        ({"updown_pool_layers": "2"}, ["after layer 2"]),
        ({"updown_cross_slots": 4}, ["after layer 1", "after layer 2", "for the decoder"]),
        ({"updown_pool_layers": ""}, ["nothing pooled"]),
        ({"updown_memory_size": 90}, ["nothing pooled"]),
    ],
)
def test_each_pooling_that_takes_place_is_a_stage(flags: Dict[str, Any], names: List[str]) -> None:
    model = build(**flags)
    stages = highlight.trace(model, sentence_tokens(43))[1]
    assert [stage.name for stage in stages] == names
    assert (stages[0].slot.tolist() == list(range(43))) == (names == ["nothing pooled"])
    assert not any(module._forward_hooks for module in model.encoder.modules())


def test_a_trace_that_does_not_add_up_is_not_shown() -> None:
    encoder_out, stages = highlight.trace(build(), sentence_tokens(43))
    last = stages[-1]
    wrongs = dict(weight=last.weight * 1.01, slot=last.slot.flip(0), length=last.length + 1)
    for name, wrong in wrongs.items():
        with pytest.raises(RuntimeError):
            highlight.check([stages[0], last._replace(**{name: wrong})], encoder_out)
    half = stages[0]._replace(weight=stages[0].weight / 2)
    with pytest.raises(RuntimeError, match="do not sum to 1"):
        highlight.check([half, last], encoder_out)


def test_a_model_that_keeps_no_trace_is_refused() -> None:
    with pytest.raises(UserError, match="is a TransformerModel"):
        highlight.trace(build("stock"), sentence_tokens(9))


@pytest.mark.parametrize("name", ["default", "no pool", "cross slots", "mean"])
def test_attention_is_the_mean_of_layers_and_heads_and_sums_to_1(name: str) -> None:
    model, summary = build(**CONFIGURATIONS[name]), sentence_tokens(11, seed=1)
    encoder_out, stages = highlight.trace(model, sentence_tokens(43))
    attention = highlight.summary_attention(model, encoder_out, summary, EOS)
    calls: List[Tuple[Any, Any]] = []
    layers = model.decoder.layers
    for layer in layers:
        layer.encoder_attn.register_forward_pre_hook(lambda *call: calls.append(call))
    inputs = torch.cat((torch.tensor([EOS]), summary[:-1])).unsqueeze(0)
    with torch.no_grad():
        model.decoder(inputs, encoder_out=encoder_out)
        found = [module(*given[:2], need_weights=True)[1] for module, given in list(calls)]
    to_memory = [weights.mean(dim=(0, 1)) for weights in found]
    assert len(to_memory) == len(layers)
    expected = (sum(to_memory) / len(layers))[:, stages[-1].slot] * stages[-1].weight
    torch.testing.assert_close(attention.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(11), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["copy", "copy topk, cross slots"])
def test_copies_are_the_copied_part_of_the_probability_of_a_word(name: str) -> None:
    model, source = build(**CONFIGURATIONS[name]), sentence_tokens(43)
    summary = torch.cat((source[[7, 3, 30, 3]], torch.tensor([EOS])))
    encoder_out, _ = highlight.trace(model, source)
    copies = highlight.summary_copies(model, encoder_out, source, summary, EOS)
    assert copies is not None
    inputs = torch.cat((torch.tensor([EOS]), summary[:-1])).unsqueeze(0)
    with torch.no_grad():
        out = model.decoder(inputs, encoder_out)
        mixed = model.get_normalized_probs(out, log_probs=False)[0]
    generated = out[1]["copy_log_odds"][0][0].sigmoid().unsqueeze(1)
    written = (generated * out[0][0].softmax(dim=1)).gather(1, summary.unsqueeze(1))
    expected = 1 - written / mixed.gather(1, summary.unsqueeze(1))
    torch.testing.assert_close(copies.sum(dim=1, keepdim=True), expected, rtol=0, atol=1e-6)
    is_same = source == summary.unsqueeze(1)
    assert (copies[~is_same] == 0).all()
    assert 0 < int((copies[is_same] > 0).sum()) <= int(is_same.sum())
    assert highlight.summary_copies(build(), encoder_out, source, summary, EOS) is None


def test_the_page_tells_what_was_copied(folder: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(folder, "copying.pt", "--updown-copy")
    (tmp_path / "sea.txt").write_text(document(60))
    call("--checkpoint", checkpoint, "--out", tmp_path / "page.html", tmp_path / "sea.txt")
    data = numbers(Reader((tmp_path / "page.html").read_text(encoding="utf-8")))
    assert len(data["copied"]) == len(data["quoted"]) == len(data["words"]) > 0
    assert any(copied > 0 for copied in data["copied"])
    for copied, quoted in zip(data["copied"], data["quoted"]):
        assert 0 <= sum(mass for _, _, mass in quoted) <= copied + 1e-4 <= 1 + 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model and dictionaries."""
    path = tmp_path_factory.mktemp("highlight")
    rng = random.Random(0)
    words = ["".join(rng.choices("bcdefghiklmnoprstu", k=rng.randrange(2, 6))) for _ in range(40)]
    texts = [" ".join(rng.choices(WORDS + words, k=20)) + " <b> & caf\u00e9." for _ in range(300)]
    model = train_sentencepiece(texts, 50, path / "spm.model")
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size()) if i != model.unk_id()]
    for language in ("src", "tgt"):
        (path / f"dict.{language}.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    return path


def save_checkpoint(folder: Path, name: str, flags: str = "") -> Path:
    """An untrained checkpoint whose pools are moved off their neutral start."""
    arguments = [str(folder), *f"{MODEL} {flags}".split()]
    args = options.parse_args_and_arch(options.get_training_parser(), arguments)
    cfg = convert_namespace_to_omegaconf(args)
    torch.manual_seed(0)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "pool" in key:
                parameter.add_(torch.randn_like(parameter))
    stored = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    history = {
        "num_updates": 1,
        "criterion_name": "",
        "optimizer_name": "",
        "lr_scheduler_state": {},
    }
    state = {"args": None, "cfg": stored, "model": model.state_dict(), "task_state": {}}
    extra = {"optimizer_history": [history], "extra_state": {"epoch": 1}}
    torch.save({**state, **extra}, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    flags = "--updown-pool-layers 1,2 --updown-memory-size 8 --updown-block-size 16"
    return save_checkpoint(folder, "pooled.pt", flags)


@pytest.fixture(scope="module")
def summarizer(checkpoint: Path) -> Summarizer:
    return Summarizer.load(checkpoint, min_len=6, max_len_b=14)


@given(
    text=st.text(
        st.sampled_from("abthe. \n\t\u00a0\u2028\x0b<&\u5b57\u0301\ufb01\u00bd\x00"), max_size=40
    )
)
def test_every_piece_is_found_in_the_text(summarizer: Summarizer, text: str) -> None:
    pieces = summarizer.encode(text).pieces
    spans = summarizer.pieces.spans(text, len(pieces))
    assert len(spans) == len(pieces)
    borders = list(itertools.chain(*spans))
    assert borders == sorted(borders)
    assert "".join(text[begin:end] for begin, end in spans).strip() == text.strip()


def test_pieces_stand_where_they_are_spelt(summarizer: Summarizer) -> None:
    text = "  the sea\n\n\tis caf\u00e9 \u5b57 "
    pieces = summarizer.encode(text).pieces
    spans = summarizer.pieces.spans(text, len(pieces))
    assert ["".join(text[a:b].split()) for a, b in spans] == [p.strip("\u2581") for p in pieces]
    assert summarizer.pieces.spans(text, 3) == spans[:3]


def test_words_are_groups_of_pieces() -> None:
    assert highlight.group_pieces(["\u2581a", "b", "\u2581c"]) == [(0, 2), (2, 3)]
    assert highlight.group_pieces(["a", "\u2581", "\u2581c", "d"]) == [(0, 1), (1, 4)]
    assert highlight.group_pieces(list("abcdefghijklmnopq")) == [(i, i + 1) for i in range(17)]
    assert highlight.group_pieces([]) == []


def test_passages_are_the_strongest_apart_from_each_other() -> None:
    attention = np.zeros(200)
    attention[[20, 30, 120]] = 0.3, 0.3, 0.4
    (first, last, mass), (start, end, less) = passages(attention)
    assert first <= 20 < 30 <= last < start <= 120 <= end
    assert (mass, less) == pytest.approx((0.6, 0.4))
    assert passages(np.full(3, 1 / 3))[0] == (0, 2, pytest.approx(1))


@pytest.mark.parametrize("tokens", [7, 200, 1234])
def test_chart_of_an_even_selection_is_flat(tokens: int) -> None:
    borders, means = binned(np.full(tokens, 0.25))
    assert (borders[0], borders[-1]) == (0, tokens)
    np.testing.assert_allclose(means, 0.25)


class Reader(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and text by element."""

    def __init__(self, page: str):
        super().__init__()
        self.open: List[str] = []
        self.tags: List[Tuple[str, Dict[str, str]]] = []
        self.found: List[Tuple[List[str], str]] = []
        self.feed(page)
        self.close()

    def text(self, element: str) -> str:
        """The text inside the elements of this id, or of this tag if they have no id."""
        return "".join(data for path, data in self.found if element in path)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in ("meta", "img"):
            self.open.append(attributes.get("id") or tag)
        if "data-c" in attributes:
            self.handle_data(chr(int(attributes["data-c"], 16)))

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.found.append((self.open[:], data))


def numbers(reader: Reader) -> Dict[str, Any]:
    """What the page's script works on, decoded."""
    data = json.loads(reader.text("data"))
    kinds = dict(shares="<f4", slots="<i4", starts="<i4", positions="<i4", weights="<f4")
    found = {key: np.frombuffer(base64.b64decode(data[key]), kinds[key]) for key in kinds}
    return {**data, **found}


def make_page(text: str, spans: List[Tuple[int, int]], words: List[str], title: str) -> Page:
    rng, tokens = np.random.default_rng(0), len(spans) + 1
    memory = max(1, tokens // 8)
    slots = np.sort(rng.integers(0, memory, tokens))
    slots[:memory] = np.arange(memory)
    shares = rng.random(tokens)
    shares /= np.bincount(slots, shares)[slots]
    entries = min(tokens, highlight.STRONGEST)

    def word(spelt: str) -> Word:
        positions = np.sort(rng.choice(tokens, entries, replace=False))
        return Word(spelt, True, [(0, 1, 0.5)], positions, rng.dirichlet(np.ones(entries)))

    told = list(map(word, words)), [("Label", "<script>")], ["</script>"]
    return Page(title, text, spans, shares, slots, memory, 64, *told)


@given(text=st.text(st.characters(), max_size=30))
def test_escaped_text_is_recovered_whatever_it_holds(text: str) -> None:
    reader = Reader(f'<article id="doc">{escape(text)}</article>'.encode().decode())
    assert reader.text("doc") == text
    assert {tag for tag, _ in reader.tags} <= {"article", "b"}


def test_hostile_text_appears_only_escaped(summarizer: Summarizer) -> None:
    pieces = summarizer.encode(HOSTILE).pieces
    spans = summarizer.pieces.spans(HOSTILE, len(pieces))
    page = render(make_page(HOSTILE, spans, HOSTILE.split(), "</title><script>x\u202e\x00"))
    reader = Reader(page)
    assert reader.text("doc") == HOSTILE
    assert reader.text("summary") == " ".join(HOSTILE.split())
    tags = [tag for tag, _ in reader.tags]
    assert (tags.count("script"), tags.count("style"), tags.count("article")) == (2, 1, 1)
    assert tags.count("i") == len(pieces) + 2  # end of text, and one in the legend
    assert not {"img", "a", "link", "iframe", "object", "base"} & set(tags)
    for _, attributes in reader.tags:
        assert not {"src", "href", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert page.count("</script") == 2
    assert re.search("[\x00\x07\x0c\u202a-\u202e\u2066-\u2069\ufffe]", page) is None
    assert not set("<>&") & set(reader.text("data"))
    json.loads(reader.text("data"))
    (policy,) = (a["content"] for _, a in reader.tags if a.get("http-equiv"))
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(reader.text(kind).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")


def test_a_page_of_30000_tokens_is_of_reasonable_size() -> None:
    rng = random.Random(0)
    text = " ".join(rng.choices(WORDS, k=30000))
    spans = [match.span() for match in re.finditer(r" ?\S+", text)]
    page = make_page(text, spans, ["word"] * 250, "long")
    html = render(page)
    assert len(html) < 3_000_000
    reader = Reader(html)
    assert reader.text("doc") == text
    assert 20 < sum(tag == "section" for tag, _ in reader.tags) < 80
    data = numbers(reader)
    assert data["shares"].sum(dtype=float) == pytest.approx(page.memory, abs=1e-2)
    assert data["slots"].tolist() == page.slots.tolist()
    assert data["starts"].tolist() == [highlight.STRONGEST * i for i in range(251)]
    last = slice(*data["starts"][-2:])
    assert data["positions"][last].tolist() == page.words[-1].positions.tolist()
    assert data["weights"][last].sum() == pytest.approx(1, abs=1e-5)


def call(*arguments: Any) -> int:
    search = ["--beam", 2, "--min-len", 6, "--max-len-b", 14, "--device", "cpu"]
    return highlight.main([str(argument) for argument in [*search, *arguments]])


def document(words: int) -> str:
    rng = random.Random(1)
    return "".join(rng.choice(WORDS) + rng.choice("   \n") for _ in range(words)) + HOSTILE


def test_half_precision_an_ensemble_and_a_named_chart(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib.image")
    (tmp_path / "sea.txt").write_text(document(60), encoding="utf-8")
    out, png = tmp_path / "page.html", tmp_path / "chart.png"
    several = ("--checkpoint", f"{checkpoint}:{checkpoint}", "--fp16", "--png", png)
    assert call(*several, "--out", out, tmp_path / "sea.txt") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sea.txt", "page.html", "chart.png"}
    assert "2 checkpoints wrote the summary together" in out.read_text(encoding="utf-8")


def test_without_matplotlib_there_is_a_page_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(charts, "has_matplotlib", lambda: False)
    monkeypatch.setattr(highlight, "has_matplotlib", lambda: False)
    (tmp_path / "a.txt").write_text(document(20), encoding="utf-8")
    files = ["--out", tmp_path / "page.html", tmp_path / "a.txt"]
    assert call("--checkpoint", checkpoint, *files) == 0
    assert "no chart, for matplotlib is not installed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="needs matplotlib"):
        call("--checkpoint", checkpoint, "--png", tmp_path / "x.png", *files)


def test_a_checkpoint_and_a_document_make_a_page_and_a_chart(
    checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    image = pytest.importorskip("matplotlib.image")
    text = document(60)
    (tmp_path / "sea.txt").write_bytes(text.replace("\n", "\r\n").encode())
    out = tmp_path / "pages" / "page.html"
    assert call("--checkpoint", checkpoint, "--out", out, tmp_path / "sea.txt") == 0
    assert "memory slots" in capsys.readouterr().out
    assert sorted(path.name for path in out.parent.iterdir()) == ["page.html", "page.png"]
    assert (out.parent / "page.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert image.imread(out.parent / "page.png").std() > 0.05
    reader = Reader(out.read_text(encoding="utf-8"))
    assert reader.text("doc") == text
    data = numbers(reader)
    shares, slots = data["shares"], data["slots"]
    assert len(shares) == sum(tag == "i" for tag, _ in reader.tags) - 1
    np.testing.assert_allclose(np.bincount(slots, shares), 1, atol=1e-4)
    assert data["block"] == 16
    marks = [a["data-n"] for _, a in reader.tags if a.get("class") == "block"]
    assert marks == [str(i + 1) for i in range(-(-len(shares) // 16))]
    assert len(data["words"]) == sum(a.get("class") == "w" for _, a in reader.tags) > 0
    assert str(tmp_path) not in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "words", "more", "note"),
    [
        ("", 10, (), "this model does not pool"),
        ("--updown-cross-slots 500", 10, (), "no longer than the memory"),
        ("", 600, ("--long", "truncate"), "The model read the first 600 of"),
    ],
)
def test_page_says_what_was_kept_and_what_was_not_read(
    folder: Path, tmp_path: Path, flags: Any, words: int, more: Any, note: str, monkeypatch: Any
) -> None:
    path, text = save_checkpoint(folder, "other.pt", flags), document(words)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    call("--checkpoint", path, "--out", tmp_path / "page.html", *more, "-")
    reader = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert reader.text("doc") == text
    assert note in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert (numbers(reader)["shares"] == 1).all()
    assert ("unread" in [a.get("class") for _, a in reader.tags]) == bool(more)


@pytest.mark.parametrize("option", ["--out", "--png"])
def test_the_checkpoint_is_not_replaced(checkpoint: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "a.txt").write_text("the sea")
    before = checkpoint.read_bytes()
    options = {"--out": tmp_path / "page.html", option: checkpoint}
    with pytest.raises(SystemExit, match=f"{option} .* would replace --checkpoint .*: give"):
        call("--checkpoint", checkpoint, *itertools.chain(*options.items()), tmp_path / "a.txt")
    assert checkpoint.read_bytes() == before


def test_a_picture_that_nobody_named_is_not_replaced(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the sea")
    (tmp_path / "page.png").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"page\.png would be replaced by the chart: give --png"):
        call("--checkpoint", checkpoint, "--out", tmp_path / "page.html", tmp_path / "a.txt")
    assert (tmp_path / "page.png").read_bytes() == b"another"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"the sea " * 400, [], "tokens, more than the 600 that the checkpoint takes.*--long"),
        (b" \n ", [], "has no text"),
        (b"\xff", [], "a.txt: not UTF-8: byte 0xff at position 0: convert it"),
        (None, [], "No such file"),
        (b"the sea", ["--out", "."], "--out . cannot be written"),
        (b"the sea", ["--out", "a.txt"], "would replace the document"),
        (b"the sea", ["--png", "page.html"], "are both page.html"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(
    checkpoint: Path, tmp_path: Path, monkeypatch: Any, content: Any, arguments: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("a.txt").write_bytes(content)
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=f"(?s)highlight: error: .*{message}"):
        call("--checkpoint", checkpoint, "--out", "page.html", *arguments, "a.txt")
    assert set(tmp_path.iterdir()) == before
