"""Documents of one window that do not see each other."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import attend
from model.batches import IGNORED, Windows, filled_ends
from model.config import ModelConfig
from model.loss import log_probabilities, summed_cross_entropy
from model.objectives.masked_documents import trained_places
from model.objectives.text import TextObjective, TextRows
from model.transformer import Transformer

LENGTH = 24


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sets(st.integers(1, LENGTH), max_size=6), min_size=1, max_size=3),
    st.sampled_from([1, 2, 4]),
)
def test_a_token_attends_to_its_own_document(ends: list[set[int]], kv_heads: int):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(ends), 4, LENGTH, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(len(ends), kv_heads, LENGTH, 8, generator=generator) for _ in range(2))
    document = torch.stack(
        [torch.bucketize(torch.arange(LENGTH), torch.tensor(sorted(own)), right=True) for own in ends]
    )
    mask = (document[:, :, None] == document[:, None]) & torch.ones(LENGTH, LENGTH).tril().bool()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=True)
    found = attend(q, k, v, ends=torch.from_numpy(filled_ends([sorted(own) for own in ends], LENGTH)))
    assert torch.allclose(found, expected, atol=1e-5)
    gradients = [torch.autograd.grad(y.square().sum(), q)[0] for y in (expected, found)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_text_is_cut_up_where_documents_begin():
    """The loss of a window is that of its documents, each read alone; without isolation it is another one."""
    text = np.array([0, 5, 6, 7, 0, 9, 8, 7, 6, 5, 4, 0, 3, 3, 2, 1, 0, 4, 5, 0, 7, 7, 7, 8, 0])
    windows = Windows([text], LENGTH)
    model = Transformer(ModelConfig(n_layers=2, d_model=16, n_heads=2, context_length=LENGTH), 10)
    model.initialize(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name or "head" in name:
                weight.normal_(std=0.3)
    losses = {}
    for end_of_text in (None, 0):
        rows = TextRows([], windows, LENGTH, end_of_text).batch(0, 1, 0, 0, 1)
        batch = {name: torch.from_numpy(values) for name, values in rows.items()}
        losses[end_of_text] = TextObjective().loss(model, batch).item()
    begins = [*np.flatnonzero(text[:-1] == 0).tolist(), LENGTH]
    alone = 0.0
    for start, end in pairwise(begins):
        tokens, targets = (torch.from_numpy(text[start + i : end + i])[None] for i in (0, 1))
        alone -= log_probabilities(model, tokens, targets).item()
    assert losses[0] == pytest.approx(alone, rel=1e-5)
    assert losses[None] != pytest.approx(alone, rel=1e-3)


def test_places_without_a_target_count_for_nothing():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 10, (3, LENGTH))
    targets[generator.random(targets.shape) < 0.6] = IGNORED
    targets[2] = IGNORED
    places, wanted = trained_places(targets)
    for row in range(3):
        kept = wanted[row] != IGNORED
        assert (targets[row][places[row][kept]] == wanted[row][kept]).all()
        assert kept.sum() == (targets[row] != IGNORED).sum()

    model = Transformer(ModelConfig(n_layers=1, d_model=16, n_heads=2, context_length=LENGTH), 10)
    model.initialize(1)
    model.lm_head.weight.data.normal_()
    results = []
    states = torch.randn(3 * LENGTH, 16, requires_grad=True)
    flat = torch.from_numpy(targets).flatten()
    for loss in (
        summed_cross_entropy(model, states, flat, has_ignored=True),
        F.cross_entropy(model.lm_head(states), flat, ignore_index=IGNORED, reduction="sum"),
    ):
        results.append((loss, *torch.autograd.grad(loss, (states, model.lm_head.weight))))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
