"""Slow, obvious oracles: one sample, Python loops over tokens, no blocks of tensors."""

import math
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor


@dataclass
class Item:
    """What is left of some tokens: their weights (sum 1), a score, and who leads."""

    weights: Dict[int, Tensor]
    score: Tensor
    leader: int


def falling(items: List[Item], tolerance: float) -> List[Item]:
    """Items by falling score; runs of scores within `tolerance` of each other, no wider than four
    of them, by position."""
    items = sorted(items, key=lambda item: (-float(item.score), item.leader))
    runs: List[List[Item]] = []
    for item in items:
        if runs and float(runs[-1][-1].score) - float(item.score) <= tolerance:
            runs[-1].append(item)
        else:
            runs.append([item])
    ordered = []
    for run in runs:
        if float(run[0].score) - float(run[-1].score) <= 4 * tolerance:
            run = sorted(run, key=lambda item: item.leader)
        ordered += run
    return ordered


def tournament(
    scores: Tensor, target: int, base: float, hard: bool = False, tolerance: float = 0.0
) -> List[Item]:
    """Design, "The tournament", literally; slots in reading order of their leaders."""
    one = scores.new_ones(())
    items = [Item({i: one}, s, i) for i, s in enumerate(scores)]
    while len(items) > target:
        size = max(target, math.ceil(len(items) / 2))
        items = falling(items, tolerance)
        unpaired = 2 * size - len(items)
        winners, rest = items[:unpaired], items[unpaired:]
        for k in range(len(rest) // 2):
            a, b = rest[k], rest[-1 - k]
            omega = torch.sigmoid(base**a.score - base**b.score)
            weights = {i: omega * w for i, w in a.weights.items()}
            weights.update({i: (1 - omega) * w for i, w in b.weights.items()})
            score = a.score if hard else omega * a.score + (1 - omega) * b.score
            winners.append(Item(weights, score, a.leader))
        items = sorted(winners, key=lambda item: item.leader)
    return items


def seeded(scores: Tensor, target: int, base: float, tolerance: float) -> List[Item]:
    """Design, "Seeded pooling", literally."""
    one = scores.new_ones(())
    ranked = falling([Item({i: one}, s, i) for i, s in enumerate(scores)], tolerance)
    size = min(len(ranked), target)
    slots: List[List[Item]] = [[] for _ in range(size)]
    for start in range(0, len(ranked), 2 * size):
        there, back = (ranked[start : start + 2 * size][i : i + size] for i in (0, size))
        for slot, item in list(zip(slots, there)) + list(zip(reversed(slots), back)):
            slot.append(item)
    dealt = []
    for slot in slots:
        shares = torch.stack([base**item.score for item in slot]).softmax(dim=0)
        score = sum(share * item.score for share, item in zip(shares, slot))
        weights = {item.leader: share for share, item in zip(shares, slot)}
        dealt.append(Item(weights, score, slot[0].leader))
    return sorted(dealt, key=lambda item: item.leader)


def mean_groups(scores: Tensor, target: int) -> List[Item]:
    n = len(scores)
    groups: Dict[int, List[int]] = {}
    for i in range(n):
        groups.setdefault(i * min(n, target) // n, []).append(i)
    return [
        Item({i: scores.new_tensor(1 / len(g)) for i in g}, scores[g].mean(), g[0])
        for g in groups.values()
    ]


def pool(name: str, scores: Tensor, target: int, base: float) -> List[Item]:
    if name == "mean":
        return mean_groups(scores, target)
    tolerance = 32 * torch.finfo(scores.dtype).eps
    if name == "seeded":
        return seeded(scores, target, base, tolerance)
    return tournament(scores, target, base, hard=name == "topk", tolerance=tolerance)


@dataclass
class Slot:
    """One compressed slot of a block: token position -> log-weight, state, score, count."""

    log_weights: Dict[int, Tensor]
    state: Tensor
    score: Tensor
    count: Tensor
    leader: int


def key_bias(attention: Any, count: Tensor, score: Tensor) -> Tensor:
    """log c (1 + a tanh s), one per head."""
    return count.log() * (1 + attention.count_bias.score_slope * score.tanh())


def heads(attention: Any, projection: Any, x: Tensor) -> Tensor:
    return projection(x).unflatten(-1, (attention.num_heads, -1))


def compress(
    attention: Any,
    name: str,
    x: Tensor,
    block: Sequence[int],
    counts: Tensor,
    previous: Optional[List[Slot]],
) -> List[Slot]:
    """Up for one block; `previous` are the same block's slots in the layer before."""
    up = attention.compressor
    logits = {}
    for i in block:
        terms = [
            heads(attention, attention.q_proj, x[q]) * heads(attention, attention.k_proj, x[i])
            for q in block
        ]
        mean_logit = torch.stack([t.sum(-1).mean() * attention.scaling for t in terms]).mean()
        logits[i] = mean_logit + up.scorer @ x[i]
    if previous is None:
        scores = torch.stack([logits[i] for i in block]).sigmoid()
        slots = []
        for item in pool(name, scores, up.num_slots, up.pooling_base):
            members = {block[k]: w.log() for k, w in item.weights.items()}
            count = torch.stack([counts[i] for i in members]).sum()
            slots.append(Slot(members, x[0], item.score, count, block[item.leader]))
    else:
        slots = []
        for old in previous:
            members = dict(old.log_weights)
            if up.reweight is not None:
                raw = {i: w + up.reweight[0] * logits[i] for i, w in members.items()}
                total = torch.stack(list(raw.values())).logsumexp(0)
                members = {i: w - total for i, w in raw.items()}
            slots.append(Slot(members, old.state, old.score, old.count, old.leader))
    for k, slot in enumerate(slots):
        if name == "topk":
            candidate = x[slot.leader]
        else:
            candidate = sum(w.exp() * x[i] for i, w in slot.log_weights.items())
        if previous is not None and up.gate_weight is not None and len(slot.log_weights) > 1:
            carried = previous[k].state
            gate = up.gate_weight[0] * candidate + up.gate_weight[1] * carried + up.gate_bias
            gate = gate.sigmoid()
            candidate = gate * candidate + (1 - gate) * carried
        slot.state = candidate
    return slots


def softmax_weights(attention: Any, query: Tensor, keys: List[Tuple[Tensor, Tensor]]) -> Tensor:
    """What one query vector gives (vector, bias per head) keys, `(keys, num_heads)`."""
    q = heads(attention, attention.q_proj, query) * attention.scaling
    vectors, biases = (torch.stack(list(t)) for t in zip(*keys))
    logits = (q * heads(attention, attention.k_proj, vectors)).sum(-1) + biases
    return logits.softmax(dim=0)


def softmax_heads(attention: Any, query: Tensor, keys: List[Tuple[Tensor, Tensor]]) -> Tensor:
    """One query vector over (vector, bias per head) keys: the heads' outputs side by side."""
    weights = softmax_weights(attention, query, keys)
    values = heads(attention, attention.v_proj, torch.stack([vector for vector, _ in keys]))
    return (weights.unsqueeze(-1) * values).sum(0).flatten()


def softmax_attention(attention: Any, query: Tensor, keys: List[Tuple[Tensor, Tensor]]) -> Tensor:
    """:func:`softmax_heads` and the output projection."""
    return attention.out_proj(softmax_heads(attention, query, keys))


def encoder_self_attention(
    attention: Any,
    name: str,
    x: Tensor,
    counts: Tensor,
    scores: Tensor,
    previous: Optional[List[List[Slot]]],
) -> Tuple[Tensor, List[List[Slot]]]:
    """Own block raw, all other blocks through their slots. x: `(length, embed_dim)`."""
    size = attention.block_size
    blocks = [list(range(s, min(s + size, len(x)))) for s in range(0, len(x), size)]
    slots: List[List[Slot]] = [[] for _ in blocks]
    if attention.compressor is not None and len(blocks) > 1:
        slots = [
            compress(attention, name, x, block, counts, previous[j] if previous else None)
            for j, block in enumerate(blocks)
        ]
    raw = [(x[i], key_bias(attention, counts[i], scores[i])) for i in range(len(x))]
    out = []
    for j, block in enumerate(blocks):
        keys = [raw[i] for i in block]
        for other, of_block in enumerate(slots):
            if other != j:
                keys += [(s.state, key_bias(attention, s.count, s.score)) for s in of_block]
        out += [softmax_attention(attention, x[i], keys) for i in block]
    return torch.stack(out), slots


def decoder_self_attention(
    attention: Any, name: str, x: Tensor, previous: Optional[List[List[Slot]]]
) -> Tuple[Tensor, List[List[Slot]]]:
    """Previous block raw, own block causal, earlier complete blocks through their slots."""
    size, ones = attention.block_size, x.new_ones(len(x))
    complete = len(x) // size
    slots: List[List[Slot]] = [[] for _ in range(complete)]
    if attention.compressor is not None:
        slots = [
            compress(
                attention,
                name,
                x,
                list(range(j * size, (j + 1) * size)),
                ones,
                previous[j] if previous else None,
            )
            for j in range(complete)
        ]
    out, zero = [], x.new_zeros(attention.num_heads)
    for t in range(len(x)):
        block = t // size
        keys = [(x[i], zero) for i in range(max(0, (block - 1) * size), t + 1)]
        for of_block in slots[: max(0, block - 1)]:
            keys += [(s.state, key_bias(attention, s.count, s.score)) for s in of_block]
        out.append(softmax_attention(attention, x[t], keys))
    return torch.stack(out), slots


class Encoded(NamedTuple):
    """A source and its memory; what each of its slots is made of: source position -> share; and
    what the layers before any pooling make of the source's tokens."""

    x: Tensor
    counts: Tensor
    scores: Tensor
    made_of: List[Dict[int, Tensor]]
    source: Tensor
    token_states: Optional[Tensor] = None


def pool_sequence(pooling: Any, name: str, encoded: Encoded) -> Encoded:
    """The pyramid's global tournament; a sequence that is short enough stays as it is."""
    x, counts = encoded.x, encoded.counts
    if len(x) <= pooling.min_length:
        return encoded
    normed = torch.nn.functional.layer_norm(x, x.shape[-1:])
    scores = pooling.scorer(normed).squeeze(-1).sigmoid()
    target = max(pooling.min_length, math.ceil(len(x) / pooling.rate))
    items = pool(name, scores, target, pooling.pooling_base)
    tokens, made_of = [], []
    for item in items:
        weights = {item.leader: x.new_ones(())} if name == "topk" else item.weights
        tokens.append(sum(w * x[i] for i, w in weights.items()))
        parts = [(i, w * u) for k, w in weights.items() for i, u in encoded.made_of[k].items()]
        made_of.append(dict(parts))
    new_counts = [torch.stack([counts[i] for i in item.weights]).sum() for item in items]
    new_scores = torch.stack([item.score for item in items])
    x, counts = torch.stack(tokens), torch.stack(new_counts)
    return encoded._replace(x=x, counts=counts, scores=new_scores, made_of=made_of)


def _before(layer: Any, norm: Any, x: Tensor) -> Tensor:
    """What a sublayer is given: a pre-norm layer norms here, another after the sum."""
    return norm(x) if layer.normalize_before else x


def _after(layer: Any, norm: Any, x: Tensor, out: Tensor) -> Tensor:
    return x + out if layer.normalize_before else norm(x + out)


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    norm = layer.final_layer_norm
    out = layer.fc2(layer.activation_fn(layer.fc1(_before(layer, norm, x))))
    return _after(layer, norm, x, out)


def encode(model: Any, tokens: Tensor, name: str) -> Encoded:
    """The whole encoder for one unpadded source `(length,)`."""
    encoder = model.encoder
    x = encoder.forward_embedding(tokens.unsqueeze(0))[0][0]
    itself = [{i: x.new_ones(())} for i in range(len(x))]
    encoded = Encoded(x, x.new_ones(len(x)), x.new_zeros(len(x)), itself, tokens)
    slots = None
    for index, layer in enumerate(encoder.layers):
        x, counts, scores, *_ = encoded
        attention, norm = layer.self_attn, layer.self_attn_layer_norm
        given = _before(layer, norm, x)
        out, slots = encoder_self_attention(attention, name, given, counts, scores, slots)
        encoded = encoded._replace(x=_feed_forward(layer, _after(layer, norm, x, out)))
        pools = [encoder.pools[key] for key in encoder.pools if key == str(index + 1)]
        for pooling in pools:
            slots = None
            if encoded.token_states is None:
                encoded = encoded._replace(token_states=encoded.x)
            encoded = pool_sequence(pooling, name, encoded)
    if encoded.token_states is None:
        encoded = encoded._replace(token_states=encoded.x)
    if encoder.layer_norm is not None:
        encoded = encoded._replace(x=encoder.layer_norm(encoded.x))
    if encoder.memory_pool is not None:
        encoded = pool_sequence(encoder.memory_pool, name, encoded)
    return encoded


def decode(model: Any, memory: Encoded, target: Tensor, name: str) -> Tensor:
    """The whole decoder for one unpadded target `(length,)`: logits, or where it copies
    log-probabilities."""
    decoder = model.decoder
    x, slots = decoder.embed(target.unsqueeze(0), None)[0], None
    lengths = [runs(memory.source.tolist(), target[: t + 1].tolist()) for t in range(len(target))]
    for index, layer in enumerate(decoder.layers):
        norm = layer.self_attn_layer_norm
        out, slots = decoder_self_attention(layer.self_attn, name, _before(layer, norm, x), slots)
        x = _after(layer, norm, x, out)
        cross, norm = layer.encoder_attn, layer.encoder_attn_layer_norm
        keys = [(v, key_bias(cross, c, s)) for v, c, s in zip(*memory[:3])]
        queries = _before(layer, norm, x)
        context = torch.stack([softmax_attention(cross, query, keys) for query in queries])
        x = _feed_forward(layer, _after(layer, norm, x, context))
        if index == 0 and decoder.selective_read is not None:
            x = x + torch.stack([read_on(decoder.selective_read, memory, n) for n in lengths])
    if decoder.layer_norm is not None:
        x = decoder.layer_norm(x)
    projected = x if decoder.project_out_dim is None else decoder.project_out_dim(x)
    logits = decoder.output_layer(projected)
    if decoder.copy_gate is None:
        return logits
    weights = torch.stack([softmax_weights(cross, query, keys).mean(dim=1) for query in queries])
    gate = decoder.copy_gate
    eos = decoder.dictionary.eos() if gate.writes_end else None
    log_odds = (gate.weight[0] * x + gate.weight[1] * context).sum(dim=1) + gate.bias
    onward = (gate.continue_weight[0] * x + gate.continue_weight[1] * context).sum(dim=1)
    copied = [
        copied_from(
            weights[t], memory, lengths[t], onward[t] + gate.continue_bias, float(gate.agreement)
        )
        for t in range(len(target))
    ]
    return mixture(logits, log_odds.sigmoid(), torch.stack(copied), memory.source, eos).log()


def runs(source: Sequence[int], written: Sequence[int]) -> List[int]:
    """Right before each source token, how many of the words written last stand in a run: up to
    sixteen."""
    lengths = []
    for i in range(len(source)):
        length = 0
        while length < min(16, i, len(written)) and source[i - 1 - length] == written[-1 - length]:
            length += 1
        lengths.append(length)
    return lengths


def follows(lengths: List[int]) -> List[float]:
    """f of docs/mechanism.md, section 6, for one target token."""
    weights = [math.exp(3 * length) if length else 0.0 for length in lengths]
    return [weight / max(1.0, sum(weights)) for weight in weights]


def read_on(read: Any, memory: Encoded, lengths: List[int]) -> Tensor:
    """r of the same, for one target token: `(embed_dim,)`."""
    assert memory.token_states is not None
    found = sum(f * state for f, state in zip(follows(lengths), memory.token_states))
    normed = torch.nn.functional.layer_norm(found, found.shape)
    hidden = (read.fc1.weight @ normed + read.fc1.bias).clamp(min=0)
    linear = read.proj.weight @ normed + read.run_length.weight[max(lengths)]
    return linear + read.fc2.weight @ hidden


def copied_from(
    weights: Tensor, memory: Encoded, lengths: List[int], onward: Tensor, agreement: float
) -> Tensor:
    """c of docs/mechanism.md, section 6, for one target token: `(src_len,)`.

    Args:
        weights: `(memory_len,)`, what the last layer gives each slot.
        lengths: of the runs before each source token.
        onward: `(16,)`, the logit of h for each length.
        agreement: k.
    """
    copied = [weights.new_zeros(()) for _ in lengths]
    for weight, made_of in zip(weights, memory.made_of):
        for i, share in made_of.items():
            copied[i] = copied[i] + weight * share
    if max(lengths) == 0:
        return torch.stack(copied)
    h = onward[max(lengths) - 1].sigmoid()
    agreed = [f * (a + 0.01) ** agreement for a, f in zip(copied, follows(lengths))]
    return torch.stack([(1 - h) * a + h * f / sum(agreed) for a, f in zip(copied, agreed)])


def mixture(
    logits: Tensor, generated: Tensor, copied: Tensor, source: Tensor, eos: Optional[int]
) -> Tensor:
    """Design, "Copying through the pyramid", literally: `(length, vocabulary)`, by g `(length,)`
    and c `(length, src_len)`; what is copied of `eos` is written freely, if there is one."""
    rows = []
    for t, written in enumerate(logits.softmax(dim=1)):
        row = generated[t] * written
        for i, token in enumerate(source):
            one = torch.zeros_like(row)
            one[token] = 1
            row = row + (1 - generated[t]) * copied[t, i] * (written if token == eos else one)
        rows.append(row)
    return torch.stack(rows)
