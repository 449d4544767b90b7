"""`--updown-copy` beside the invariants, which run with it too: see CONFIGURATIONS."""

import logging
import re
from argparse import Namespace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import reference
import torch
import torch.nn.functional as F
from commands import PLUGIN, run, train_arguments
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import given
from hypothesis import strategies as st
from toy import CONFIGURATIONS, EOS, EXACT, PAD, STOCK, build, draw_rows, logits, pad_rows, toy_task

from fairseq_updown.attention import copying
from fairseq_updown.attention.copying import (
    LEAST_MASS,
    SourceWords,
    log_mixture,
)
from fairseq_updown.attention.quotation import (
    LONGEST_MATCH,
    SelectiveRead,
    last_written,
    match_lengths,
)
from fairseq_updown.mixers import MIXERS
from fairseq_updown.models.updown_transformer import UpdownTransformerModel
from fairseq_updown.ops import match_lengths as few
from fairseq_updown.ops.log_mixture import log_mixture_once
from fairseq_updown.ops.match_lengths import match_lengths_at_few

SOURCE = pad_rows(draw_rows([23, 7, 16], seed=2), left=True)
TARGET = torch.stack(draw_rows([9, 9, 9], seed=3))
FORMS = [log_mixture, log_mixture_once]


def draw_parts(seed=0, dtype=torch.float64):
    """Logits, mass, log-odds and words; of the last two words, which are one, nothing is copied."""
    generator = torch.Generator().manual_seed(seed)
    normal = dict(generator=generator, dtype=dtype)
    scores, log_odds = 3 * torch.randn(2, 3, 11, **normal), 2 * torch.randn(2, 3, **normal)
    mass = F.pad(torch.randn(2, 3, 4, **normal).softmax(dim=2), (0, 2))
    words = torch.tensor([[3, 5, 7, 10, 0, 0], [1, 2, 4, 6, 10, 10]])
    return scores, mass, log_odds, words.unsqueeze(1).expand(-1, 3, -1)


@pytest.mark.parametrize("form", FORMS)
def test_log_mixture_and_its_gradients_are_those_of_the_equation(form):
    scores, mass, log_odds, words = draw_parts()
    leaves = [t.requires_grad_() for t in (scores, mass, log_odds)]
    generated = log_odds.sigmoid().unsqueeze(-1)
    copied = torch.zeros_like(scores).scatter_add(2, words, mass)
    expected = (generated * scores.softmax(dim=2) + (1 - generated) * copied).log()
    actual = form(scores, mass, log_odds, words)
    torch.testing.assert_close(actual, expected, **EXACT)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    gradients = [torch.autograd.grad((out * weights).sum(), leaves) for out in (actual, expected)]
    for name, ours, theirs in zip(("logits", "mass", "log-odds"), *gradients):
        real = mass > 0 if name == "mass" else torch.ones_like(theirs, dtype=torch.bool)
        torch.testing.assert_close(ours[real], theirs[real], msg=name, **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_little_mass_is_exact_in_single_precision(form):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, 3, 900, generator=generator)
    mass = (4 * torch.randn(2, 3, 300, generator=generator)).softmax(dim=2)
    words = torch.stack([torch.randperm(900, generator=generator)[:300] for _ in range(6)])
    weights, log_odds = torch.randn(2, 3, 900, generator=generator), torch.full((2, 3), 2.0)
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = mass.detach().to(dtype).requires_grad_()
        out = form(scores.to(dtype), leaf, log_odds.to(dtype), words.view(2, 3, 300))
        (out * weights.to(dtype)).sum().backward()
        found.append(leaf.grad.double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extremes_stay_finite_and_rows_sum_to_one(form, dtype):
    scores, mass, log_odds, words = draw_parts(dtype=torch.float32)
    scores = (30 * scores).to(dtype).requires_grad_()
    log_odds = torch.tensor([[-1e4, -90.0, 0.0], [30.0, 90.0, 1e4]], requires_grad=True)
    mass = torch.stack([mass[0], F.one_hot(torch.tensor([0, 1, 2]), 6).float()])
    mass[0, :, 0] = LEAST_MASS / 2
    mass[0, :, 1] += 1 - mass[0].sum(dim=1)
    mass.requires_grad_()
    out = form(scores, mass, log_odds, words)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    sums = out.exp().sum(dim=2).flatten()[1:]  # the first has log g = -10,000, without a digit left
    torch.testing.assert_close(sums, torch.ones(5), rtol=0, atol=3e-5)
    (2.0**15 * out.mean()).backward()  # as fp16 scales a loss
    assert all(t.grad.isfinite().all() for t in (mass, log_odds))
    assert scores.grad.isfinite().all()


def test_the_fast_form_keeps_one_tensor_of_the_vocabulary_size():
    kept = []
    scores, *rest = draw_parts()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t):
        log_mixture_once(scores.requires_grad_(), *rest)
    assert sum(numel >= scores.numel() for numel in kept) == 1


def test_words_of_a_source_are_told_apart():
    tokens = torch.tensor([[PAD, PAD, 7, 5, 7, EOS], [9, 4, 4, 4, 9, EOS]])
    source = SourceWords.of(tokens)
    assert source.words.tolist() == [[PAD, EOS, 5, 7], [EOS, 4, 9, 0]]
    assert source.words.gather(1, source.index).equal(tokens)


# Going on with a quotation


def all_lengths(written, tokens):
    """`(rows, tgt_len, src_len)`, by both forms, which agree."""
    every, expected = match_lengths(written, tokens, PAD)
    assert every is None
    assert expected.shape == (*written.shape[:2], tokens.size(1))
    with patch.object(few, "FEW_MATCHES", 1.0):
        places, lengths = match_lengths_at_few(written, tokens, PAD)
    found = (expected > 0).flatten(0, 1).any(dim=0).nonzero().squeeze(1)
    assert places.equal(found if len(found) else torch.tensor([0]))
    assert torch.zeros_like(expected).index_copy(2, places, lengths).equal(expected)
    return expected


@given(st.data())
def test_runs_of_written_words_are_found(data):
    words = st.integers(4, 5)  # so few that runs come again
    sources = data.draw(st.lists(st.lists(words, min_size=1, max_size=24), min_size=1, max_size=3))
    tokens = pad_rows([torch.tensor([*s, EOS]) for s in sources], left=data.draw(st.booleans()))
    beams, tgt_len = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 22))
    row = st.lists(words, min_size=tgt_len - 1, max_size=tgt_len - 1)
    targets = [[EOS, *data.draw(row)] for _ in range(beams * len(sources))]
    last = data.draw(st.integers(1, tgt_len))
    actual = all_lengths(last_written(torch.tensor(targets), last), tokens)
    assert actual.shape == (len(targets), last, tokens.size(1))
    for index, target in enumerate(targets):
        for t in range(last):
            written = target[: tgt_len - last + t + 1]
            source = tokens[index // beams].tolist()
            expected = reference.runs(source, written)
            real = [n if token != PAD else 0 for n, token in zip(expected, source)]
            assert actual[index, t].tolist() == real


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_many_runs_and_other_devices_have_the_plain_form(device):
    tokens = torch.full((2, 40), 4, device=device)  # "meta" cannot wait for how many there are
    written = last_written(tokens[:, :20], 20)
    assert len(written) * 20 * 40 > few.ALWAYS_FEW
    places, lengths = match_lengths_at_few(written, tokens, PAD)
    assert places is None
    assert lengths.shape == (2, 20, 40)


def test_runs_are_counted_up_to_sixteen():
    source = torch.arange(4, 34).unsqueeze(0)
    target = torch.cat([torch.tensor([EOS]), source[0, 5:25]]).unsqueeze(0)
    lengths = all_lengths(last_written(target, target.size(1)), source)[0]
    assert lengths.amax(dim=1).tolist() == [0, *range(1, 16), *[16] * 5]
    assert lengths.argmax(dim=1)[1:].tolist() == list(range(6, 26))


@pytest.mark.parametrize("name", ["copy", "copy, plain operators", "copy topk, cross slots"])
def test_quotations_equal_the_slow_oracle(name):
    model, options = build(**CONFIGURATIONS[name]), CONFIGURATIONS[name]
    source = draw_rows([23], seed=5)[0]
    # a run of 19 words, twice the same one, one of two words, and words in another order
    runs = [source[2:21], source[3:9], source[3:7], source[12:14], source[:4].flip(0)]
    target = torch.cat(runs)
    found = [
        max(reference.runs(source.tolist(), target[: t + 1].tolist())) for t in range(len(target))
    ]
    assert {1, 2, 3, 16} <= set(found)
    pooling = options.get("updown_pooling", "seeded")
    with torch.no_grad():
        memory = reference.encode(model, source, pooling)
        expected = reference.decode(model, memory, target, pooling)
        actual = logits(model, source.unsqueeze(0), target.unsqueeze(0))[0]
    torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("agreement", [-300.0, -3.0, 0.0, 3.0, 300.0])
def test_what_is_copied_sums_to_one_however_much_attention_decides(agreement):
    model = build(updown_copy=True)
    model.decoder.copy_gate.agreement.data.fill_(agreement)
    copied = model(SOURCE, None, SOURCE[:, :9])[1]["copied"][0].sum(dim=2)
    torch.testing.assert_close(copied, torch.ones_like(copied), **EXACT)


def test_the_end_is_written_and_never_copied():
    model = build(updown_copy=True)
    extra = model(SOURCE, None, torch.cat([TARGET[:, :1], SOURCE[:, -6:-1]], dim=1))[1]
    at_end = SOURCE == EOS
    assert at_end.any()
    assert (extra["copied_from"][0].transpose(1, 2)[at_end] == 0).all()
    only_end = torch.full((1, 1), EOS)
    out = model(only_end, None, TARGET[:1])
    expected = out[0].log_softmax(dim=2)
    torch.testing.assert_close(model.get_normalized_probs(out, True), expected, **EXACT)
    model.decoder.copy_gate.writes_end.zero_()
    assert (model(only_end, None, TARGET[:1])[1]["copied_from"][0] == 1).all()


def test_a_checkpoint_that_copied_ends_still_does():
    old, model = build(seed=3, updown_copy=True), build(seed=4, updown_copy=True)
    stored = old.state_dict()
    del stored["decoder.copy_gate.writes_end"]
    model.load_state_dict(stored)
    source, target = draw_rows([23], seed=5)[0], TARGET[0]
    with torch.no_grad():
        actual = logits(model, source.unsqueeze(0), target.unsqueeze(0))[0]
        now = logits(old, source.unsqueeze(0), target.unsqueeze(0))[0]
        memory = reference.encode(model, source, "seeded")
        expected = reference.decode(model, memory, target, "seeded")
    assert not torch.allclose(actual, now)
    torch.testing.assert_close(actual, expected, **EXACT)


# The mechanism in the model


@pytest.mark.parametrize("mixer", [*MIXERS, "ssa=5x2", "luna=3"])
def test_every_mixer_copies_through_the_pyramid(mixer):
    model = build(updown_copy=True, updown_mixer=mixer)
    out = model(SOURCE, None, TARGET)
    copied = out[1]["copied"][0]
    torch.testing.assert_close(copied.sum(dim=2), torch.ones_like(copied[..., 0]), **EXACT)
    log_probs = model.get_normalized_probs(out, log_probs=True)
    one = torch.ones_like(log_probs[..., 0])
    torch.testing.assert_close(log_probs.exp().sum(dim=2), one, **EXACT)
    torch.testing.assert_close(model.get_normalized_probs(out, False), log_probs.exp(), **EXACT)
    log_probs.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        encoder_out, state = model.encoder(SOURCE), {}
        for t in range(TARGET.size(1)):
            step = model.decoder(TARGET[:, : t + 1], encoder_out, incremental_state=state)
            step = model.get_normalized_probs(step, log_probs=True)
            torch.testing.assert_close(step[:, 0], log_probs[:, t], **EXACT)


def test_what_is_copied_teaches_the_pyramid_what_to_keep():
    model = build(updown_copy=True, decoder_layers=1)
    with torch.no_grad():  # what is read says nothing of whether to go on
        model.decoder.copy_gate.continue_weight.zero_()
    model(SOURCE, None, TARGET)[1]["copied"][0].square().sum().backward()
    assert model.encoder.pools["2"].scorer.weight.grad.abs().max() > 0
    assert model.decoder.layers[0].encoder_attn.q_proj.weight.grad.abs().max() > 0
    assert model.decoder.layers[0].encoder_attn.v_proj.weight.grad.abs().max() == 0


def test_without_it_nothing_is_there():
    model = build()
    assert not any("copy" in name for name in model.state_dict())
    encoder_out = model.encoder(SOURCE)
    assert encoder_out["source_words"] == encoder_out["source_index"] == []
    assert set(model(SOURCE, None, TARGET)[1]) == {"attn", "inner_states"}
    encoder_out = model.train().encoder(SOURCE)
    assert not encoder_out["source_weight"][0].requires_grad


@pytest.mark.parametrize("kind", ["stock", "updown"])
def test_a_checkpoint_without_it_keeps_its_predictions_nearly(kind, caplog):
    old, model = build(kind, seed=3), build(seed=4, perturb=False, updown_copy=True)
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(old.state_dict())
    assert "parameters are not in the checkpoint and keep" in caplog.text
    with torch.no_grad():
        out = model(SOURCE, None, TARGET)
        before, after = out[0].softmax(dim=2), model.get_normalized_probs(out, False)
    moved = (after - before).clamp(min=0).sum(dim=2)
    assert 0 < moved.max() < 0.018
    assert (before.log() - after.log()).max() < 0.0182


def test_a_checkpoint_that_could_not_go_on_keeps_its_predictions():
    old, model = build(seed=3, updown_copy=True), build(seed=4, updown_copy=True)
    stored = old.state_dict()
    for name in ("continue_bias", "continue_weight", "agreement"):
        del stored[f"decoder.copy_gate.{name}"]
    for name, parameter in old.decoder.selective_read.named_parameters():
        del stored[f"decoder.selective_read.{name}"]
        parameter.data.zero_()
        model.decoder.selective_read.get_parameter(name).data.zero_()
    model.decoder.copy_gate.continue_weight.data.zero_()  # as an unperturbed one starts
    model.load_state_dict(stored)
    old.decoder.copy_gate.continue_weight.data.zero_()
    old.decoder.copy_gate.continue_bias.data.fill_(-1e4)
    quoted = SOURCE[:1, :9]
    with torch.no_grad():
        before, after = (logits(m, SOURCE[:1], quoted).exp() for m in (old, model))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_a_checkpoint_that_counted_shorter_runs_loads(caplog):
    old, model = build(seed=3, updown_copy=True), build(seed=4, updown_copy=True)
    stored, name = old.state_dict(), "decoder.copy_gate.continue_bias"
    stored[name] = torch.tensor([0.5, 1.5, 2.5])
    del stored["decoder.copy_gate.agreement"], stored["decoder.selective_read.fc2.weight"]
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(stored)
    assert "counted runs of up to 3 words (now 16)" in caplog.text
    assert model.state_dict()[name].tolist() == [0.5, 1.5, *[2.5] * 14]
    caplog.clear()
    build(seed=5, updown_copy=True).load_state_dict(model.state_dict())
    assert not caplog.text


@pytest.mark.parametrize(
    "new", [("selective_read", "agreement"), ("selective_read.fc1", "selective_read.fc2")]
)
def test_a_checkpoint_that_did_not_read_on_or_not_so_keeps_its_predictions(new, caplog):
    old, model = build(seed=3, updown_copy=True), build(seed=4, perturb=False, updown_copy=True)
    for key, parameter in old.named_parameters():
        if any(name in key for name in new):
            parameter.data.zero_()
    stored = {k: v for k, v in old.state_dict().items() if not any(name in k for name in new)}
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(stored)
    assert "counted runs of up to 16 words (now 16). The optimizer's state does not" in caplog.text
    with torch.no_grad():
        before, after = (logits(m, SOURCE, TARGET) for m in (old, model))
    torch.testing.assert_close(after, before, **EXACT)


def test_where_nothing_matches_every_parameter_has_a_gradient():
    model = build(updown_copy=True).train()
    source, target = torch.randint(4, 12, (2, 17)), torch.randint(12, 24, (2, 9))
    out = model(source, None, target)
    model.get_normalized_probs(out, True).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.decoder.copy_gate.continue_bias.grad.abs().max() == 0


def test_a_checkpoint_with_it_is_refused_without_the_flag():
    with pytest.raises(ValueError, match="--updown-copy"):
        build().load_state_dict(build(updown_copy=True).state_dict())


def test_a_step_without_any_layer_copies_nothing_and_has_all_gradients():
    model = build(updown_copy=True, encoder_layerdrop=0.5, decoder_layerdrop=0.99).train()
    torch.manual_seed(0)
    out = model(SOURCE, None, TARGET)
    assert len(out[1]["inner_states"]) == 1
    assert "copied" not in out[1]
    model.get_normalized_probs(out, True).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# What it goes with, and what not


def task_of(source, target):
    return SimpleNamespace(source_dictionary=source, target_dictionary=target, cfg=None)


def dictionary(*words):
    made = Dictionary()
    for word in words:
        made.add_symbol(word)
    return made


def build_for(task):
    flags = Namespace(**STOCK, updown_copy=True)
    return UpdownTransformerModel.build_model(flags, task)


def test_separate_dictionaries_are_refused_unless_they_are_the_same():
    build_for(task_of(dictionary("a", "b"), dictionary("a", "b")))
    for other in (dictionary("b", "a"), dictionary("a", "b", "c"), dictionary("a", "c")):
        with pytest.raises(ValueError, match=r"--updown-copy.*--joined-dictionary"):
            build_for(task_of(dictionary("a", "b"), other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(adaptive_softmax_cutoff=[8, 14]), "--adaptive-softmax-cutoff .*no logit of their"),
        (dict(no_cross_attention=True), "--no-cross-attention True: not with --updown-copy"),
    ],
)
def test_what_cannot_copy_is_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=message):
        build(updown_copy=True, **options)
    build(**options)


def test_logits_of_other_tokens_are_refused():
    model = build(updown_copy=True)
    scores, extra = model(SOURCE, None, TARGET)
    for other, told in (
        (scores.flatten(0, 1)[None], "1 rows of 27"),
        (scores[:, :4], "3 rows of 4"),
    ):
        with pytest.raises(ValueError, match=rf"logits of {told} .*of 3 of 9: --updown-copy"):
            model.get_normalized_probs((other, extra), True)
    last = model.get_normalized_probs((scores[:, -1:], extra), True)
    expected = model.get_normalized_probs((scores, extra), True)[:, -1:]
    torch.testing.assert_close(last, expected, **EXACT)


def test_label_smoothing_is_of_the_mixture():
    model = build(updown_copy=True)
    task = toy_task()
    criterion = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    shifted = TARGET.roll(1, dims=1)
    inputs = dict(src_tokens=SOURCE, src_lengths=None, prev_output_tokens=shifted)
    loss, _, _ = criterion(model, dict(net_input=inputs, target=TARGET, ntokens=TARGET.numel()))
    log_probs = logits(model, SOURCE, shifted)
    rest = 0.1 / (log_probs.size(2) - 1)
    chosen = log_probs.gather(2, TARGET.unsqueeze(2)).sum()
    torch.testing.assert_close(loss, -(0.9 - rest) * chosen - rest * log_probs.sum(), **EXACT)


@pytest.mark.parametrize("num_models", [1, 2])
@pytest.mark.parametrize("prefix", [False, True])
@torch.no_grad()
def test_a_search_scores_hypotheses_as_the_parallel_pass_does(num_models, prefix):
    names = ["copy", "copy topk, cross slots"][:num_models]
    models = [build(seed=seed, **CONFIGURATIONS[name]) for seed, name in enumerate(names)]
    search = SequenceGenerator(models, toy_task().target_dictionary, beam_size=4, max_len_b=12)
    sample = dict(net_input=dict(src_tokens=SOURCE, src_lengths=SOURCE.ne(PAD).sum(dim=1)))
    first = TARGET[:, :2] if prefix else None
    found = search.generate(models, sample, prefix_tokens=first)
    for row, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"].unsqueeze(0)
            assert not prefix or tokens[0, :2].equal(TARGET[row, :2])
            inputs = torch.cat([torch.full((1, 1), EOS), tokens[:, :-1]], dim=1)
            each = torch.stack([logits(m, SOURCE[row : row + 1], inputs) for m in models])
            mean = each.exp().mean(dim=0).log().gather(2, tokens.unsqueeze(2))
            scores = hypothesis["positional_scores"].double()
            torch.testing.assert_close(scores, mean.flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_mixes_in_float32_and_trains(dtype):
    model = build(updown_copy=True).to(dtype).train()
    log_probs = logits(model, SOURCE, TARGET)
    assert log_probs.dtype == torch.float32
    log_probs.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_autocast_mixes_in_float32():
    exact = build(updown_copy=True, updown_pooling="mean")
    model = build(updown_copy=True, updown_pooling="mean", updown_autocast="bfloat16-always")
    out = model.float()(SOURCE, None, TARGET)
    for name in ("copied", "copy_log_odds"):
        assert out[1][name][0].dtype == torch.float32
    log_probs = model.get_normalized_probs(out, True)
    torch.testing.assert_close(log_probs.exp().sum(dim=2), torch.ones(3, 9))
    expected = logits(exact, SOURCE, TARGET).exp().float()
    torch.testing.assert_close(log_probs.exp(), expected, rtol=0, atol=0.03)


# It learns what cannot be learned without

FILLERS, SEEN, UNSEEN = range(4, 10), range(10, 40), range(40, 50)


def draw_quotes(words, generator, bsz=32, phrase=False):
    """Sources of 14 tokens, fillers around three words of `words`, which are the target; a phrase
    stands together, and has two to five."""
    words = torch.tensor(words)
    fillers = torch.randint(FILLERS.start, FILLERS.stop, (bsz, 14), generator=generator)
    chosen = words[torch.rand(bsz, len(words), generator=generator).topk(5).indices]
    end = torch.full((bsz, 1), EOS)
    if not phrase:
        places = torch.rand(bsz, 14, generator=generator).topk(3).indices.sort().values
        source = fillers.scatter(1, places, chosen[:, :3])
        return torch.cat([source, end], dim=1), torch.cat([chosen[:, :3], end], dim=1)
    place = torch.arange(14) - torch.randint(0, 9, (bsz, 1), generator=generator)
    length = torch.randint(2, 6, (bsz, 1), generator=generator)
    held = (place >= 0) & (place < length)
    source = torch.where(held, chosen.gather(1, place.clamp(0, 4)), fillers)
    place = torch.arange(6)
    target = torch.cat([chosen, end], dim=1).masked_fill(place == length, EOS)
    return torch.cat([source, end], dim=1), target.masked_fill(place > length, PAD)


def train_to_quote(copy, updates=200, phrase=False):
    """The shares of right words, of phrases but the first, and of right ends: both for words of
    training, then both for others. Of a small model with a memory of 7 slots, or with phrases 1,
    for 15 tokens."""
    torch.manual_seed(0)
    size = dict(encoder_embed_dim=32, encoder_ffn_embed_dim=64, encoder_layers=2, decoder_layers=2)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
    slots = 1 if phrase else 7
    pool = dict(updown_pool_rate=15 / slots, updown_memory_size=slots)
    pool.update(updown_pool_layers="1", updown_slots=0)
    options = dict(**size, **heads, **pool, dropout=0.0, updown_copy=copy)
    model = UpdownTransformerModel.build_model(Namespace(**options), toy_task(UNSEEN.stop - 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)

    def log_probs(source, target):
        end = torch.full((len(target), 1), EOS)
        written = torch.cat([end, target[:, :-1]], dim=1)
        return logits(model, source, written).log_softmax(dim=2)

    for _ in range(updates):
        source, target = draw_quotes(SEEN, generator, phrase=phrase)
        scores = log_probs(source, target).flatten(0, 1)
        loss = F.nll_loss(scores, target.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = []
    model.eval()
    for words in (SEEN, UNSEEN):
        source, target = draw_quotes(words, generator, bsz=200, phrase=phrase)
        with torch.no_grad():
            right = log_probs(source, target).argmax(dim=2) == target
        is_word = target > EOS
        is_word[:, 0] &= not phrase
        found += [float(right[which].float().mean()) for which in (is_word, target == EOS)]
    return found


def test_only_with_it_words_are_quoted_that_no_training_target_had():
    seen, _, unseen, _ = train_to_quote(copy=True)
    seen_without, _, unseen_without, _ = train_to_quote(copy=False)
    assert seen > 0.8
    assert seen_without > 0.3
    assert unseen > 0.3
    assert unseen_without < 0.05


def test_phrases_that_no_training_target_had_are_quoted_to_their_end(monkeypatch):
    *_, words, ends = train_to_quote(copy=True, phrase=True)
    assert words > 0.6
    assert ends > 0.8
    with monkeypatch.context() as patch:
        patch.setattr(copying, "CONTINUE_START", (-1e4,) * LONGEST_MATCH)
        *_, words, _ = train_to_quote(copy=True, phrase=True)
    assert words < 0.5
    monkeypatch.setattr(SelectiveRead, "forward", lambda self, quotation, states: torch.zeros(()))
    *_, ends = train_to_quote(copy=True, phrase=True)
    assert ends < 0.6


# fairseq's commands


def test_training_goes_on_from_a_checkpoint_without_it_and_generates(work, trained, tmp_path):
    old = trained / "checkpoint_last.pt"
    printed = run(
        "fairseq-train",
        *train_arguments(work, tmp_path, "--updown-copy", "--finetune-from-model", old),
        *("--max-update", 4, "--disable-validation", "--no-epoch-checkpoints"),
    )
    assert re.search(r"11 parameters are not in .*decoder\.copy_gate\.bias", printed)
    new = tmp_path / "checkpoint_last.pt"
    search = ("--beam", 3, "--prefix-size", 1, "--print-alignment", "hard", "--cpu")
    search = (*search, "--user-dir", PLUGIN, "--required-batch-size-multiple", 1)
    for path in (new, f"{new}:{old}"):
        printed = run("fairseq-generate", work / "bin", "--path", path, *search)
        assert printed.count("\nH-") == printed.count("\nA-") == 13


def test_separate_dictionaries_are_refused_before_training(work, tmp_path):
    (tmp_path / "bin").mkdir()
    for file in (work / "bin").iterdir():
        (tmp_path / "bin" / file.name).write_bytes(file.read_bytes())
    words = (work / "bin" / "dict.tgt.txt").read_text().splitlines()
    (tmp_path / "bin" / "dict.tgt.txt").write_text("\n".join(reversed(words)) + "\n")
    arguments = train_arguments(tmp_path, tmp_path / "save", "--updown-copy")
    arguments.remove("--share-all-embeddings")
    printed = run("fairseq-train", *arguments, check=False)
    assert "ValueError: --updown-copy: the dictionaries, of" in printed
    assert "--joined-dictionary" in printed
    assert "begin training" not in printed
