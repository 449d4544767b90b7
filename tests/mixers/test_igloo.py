"""`--updown-mixer igloo`."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from mixer_checks import assert_equals_oracle, assert_linear, batches, cost, make
from toy import few

from fairseq_updown.mixers.igloo import Igloo, random_table

CPU = torch.device("cpu")


def random_number(row, column, num_columns, layer):
    """One number of the table, in [0, 2^32): a hash of where it stands, in whole numbers."""
    number = row * num_columns + column
    number ^= (layer + 1) * 2654435761 % 2**32
    for _ in range(2):
        number = (number ^ number // 2**16) * 73244475 % 2**32
    return number ^ number // 2**16


def igloo(mixer, x, counts, scores, state):
    """The equations, token by token."""
    n, num_patches, patch_size = len(x), mixer.num_patches, mixer.patch_size
    weight = mixer.slice_proj.weight.view(num_patches, patch_size, -1)
    num_columns = num_patches * (patch_size + 1)
    value, rows = mixer.v_proj(x), []
    for t in range(n):
        places = [random_number(t, c, num_columns, mixer.layer) * n // 2**32
                  for c in range(num_columns)]  # fmt: skip
        features = []
        for patch in range(num_patches):
            feature = mixer.patch_bias[patch]
            for j in range(patch_size):
                feature = feature + (weight[patch, j] * x[places[patch * patch_size + j]]).sum()
            features.append(feature)
        places = places[num_patches * patch_size :]
        logits = mixer.mix_proj.weight @ torch.stack(features)
        terms = [counts[s] * logit.exp() for s, logit in zip(places, logits)]
        rows.append(sum(term / sum(terms) * value[s] for s, term in zip(places, terms)))
    return mixer.out_proj(torch.stack(rows)), None


@few(20)
@given(
    num_patches=st.integers(1, 7),
    layer=st.integers(0, 3),
    batch=batches(longest=20),
)
def test_igloo_equals_the_slow_oracle(num_patches, layer, batch):
    assert_equals_oracle([make(Igloo, size=num_patches, layer=layer)], igloo, batch)


def test_a_row_of_the_table_does_not_depend_on_the_length():
    long = random_table(300, 20, 3, CPU)
    for length in (1, 7, 299):
        assert torch.equal(random_table(length, 20, 3, CPU), long[:length])


def test_tables_are_uniform_and_differ_from_row_to_row_and_layer_to_layer():
    tables = torch.stack([random_table(500, 40, layer, CPU) for layer in range(4)])
    assert (tables >= 0).all()
    assert (tables < 2**32).all()
    u = tables.double() / 2**32
    assert (u.flatten(1).mean(dim=1) - 0.5).abs().max() < 0.01
    assert (u.flatten(1).var(dim=1) - 1 / 12).abs().max() < 0.002
    for axis in (u.flatten(1), u[0], u[0].T):  # layers, rows, columns
        correlation = torch.corrcoef(axis) - torch.eye(len(axis), dtype=u.dtype)
        assert correlation.abs().max() < 5.5 / math.sqrt(axis.size(1))
    counts = torch.histc(u, bins=50, min=0, max=1)
    assert (counts / counts.mean() - 1).abs().max() < 0.1
    assert not (tables[0].flatten().unsqueeze(1) == tables[1].flatten()[:50]).any()


def test_places_are_real_tokens_and_reach_all_of_them():
    lengths = torch.tensor([40, 17, 1, 0])
    for row, n in zip(make(Igloo, size=16).places(40, lengths), (40, 17, 1, 1)):
        assert set(row[:n].flatten().tolist()) == set(range(n))


def test_no_table_is_saved_or_trained():
    layers = ("slice_proj", "mix_proj", "v_proj", "out_proj")
    expected = {f"{layer}.weight" for layer in layers}
    assert set(make(Igloo).state_dict()) == expected | {
        "patch_bias",
        "v_proj.bias",
        "out_proj.bias",
    }


def test_igloo_is_linear_in_length_and_holds_no_tensor_larger_than_the_table():
    mixer = make(Igloo, size=5)
    assert_linear(mixer)
    assert cost(mixer, 256)[1] == 256 * 5 * (mixer.patch_size + 1)
