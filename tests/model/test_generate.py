"""Generation: the same tokens as stock transformers, with and without cache, alone and in a batch."""

from itertools import islice

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.generate import Sampling, complete, filter_logits, generate, generate_text
from model.hugging_face import class_name, hugging_face_config, hugging_face_weights
from tests.model.test_transformer import VARIANTS, build

GREEDY = Sampling(max_tokens=8, temperature=0)
PROMPTS = [[1, 2, 3, 4, 5], [6], [7, 8, 9]]
NEVER: frozenset[int] = frozenset()


def write(model, prompts, sampling, ends=NEVER) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for new in generate(model, prompts, sampling, ends):
        for row, token in zip(rows, new, strict=True):
            if token is not None:
                row.append(token)
    return rows


@pytest.fixture(scope="module")
def model():
    return build(n_heads=4, n_kv_heads=2).eval()


@pytest.mark.parametrize("fields", VARIANTS)
def test_greedy_is_that_of_transformers(fields: dict):
    ours = build(**fields).eval()
    config = hugging_face_config(ours.config, 50, 0)
    theirs = getattr(transformers, f"{class_name(ours.config)}ForCausalLM")(config).eval()
    theirs.load_state_dict(hugging_face_weights(ours.state_dict(), ours.config), strict=False)
    for prompt, row in zip(PROMPTS, write(ours, PROMPTS, GREEDY), strict=True):
        tokens = torch.tensor([prompt])
        expected = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert row == expected[0, len(prompt) :].tolist()


def test_every_token_is_that_of_the_whole_text_read_again(model):
    (row,) = write(model, [[3, 1]], GREEDY)
    text = [3, 1]
    for token in row:
        assert token == int(model(torch.tensor([text]))[0, -1].argmax())
        text.append(token)


def test_a_row_does_not_depend_on_its_batch(model):
    sampling = Sampling(max_tokens=10, temperature=1.0, top_k=20, seed=5)
    together = write(model, PROMPTS, sampling)
    assert together == write(model, PROMPTS, sampling)
    assert together[0] == write(model, PROMPTS[:1], sampling)[0]
    assert together != write(model, PROMPTS, sampling.model_copy(update={"seed": 6}))


def test_a_full_context_forgets_and_goes_on(model):
    length = model.config.context_length
    assert len(write(model, [[1] * length, [2]], Sampling(max_tokens=3 * length))[0]) == 3 * length


@pytest.mark.parametrize("ends", [NEVER, frozenset(range(0, 50, 2))])
def test_a_row_forgets_when_its_own_context_is_full(model, ends: frozenset[int]):
    """Whoever else is written, and whether that one has ended."""
    length, generator = model.config.context_length, torch.Generator().manual_seed(0)
    sizes = [length - 6, length - 1, 3, length]
    prompts = [torch.randint(50, (size,), generator=generator).tolist() for size in sizes]
    sampling = Sampling(max_tokens=2 * length, temperature=0)
    alone = [write(model, [prompt], sampling, ends)[0] for prompt in prompts]
    assert write(model, prompts, sampling, ends) == alone


def test_the_smallest_temperature_takes_the_likeliest(model):
    coldest = Sampling(max_tokens=5, temperature=1e-320)
    assert write(model, PROMPTS, coldest) == write(model, PROMPTS, Sampling(max_tokens=5, temperature=0))


def test_rows_end_at_their_own_time(model):
    free = write(model, PROMPTS, GREEDY)
    ends = frozenset([free[0][2]])
    rows = write(model, PROMPTS, GREEDY, ends)
    assert rows[0] == free[0][: free[0].index(free[0][2]) + 1]
    for row, whole in zip(rows, free, strict=True):
        assert row == whole[: len(row)]
        assert len(row) == 8 or row[-1] in ends


finite = st.floats(-20, 20, width=32)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(finite, min_size=4, max_size=30, unique=True),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 8),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
    penalty=st.floats(0.5, 2),
)
def test_filters_are_those_of_transformers(logits, temperature, top_k, top_p, min_p, penalty):
    scores, seen = torch.tensor(logits), torch.tensor([0, 2, 2])
    chain = [
        transformers.RepetitionPenaltyLogitsProcessor(penalty),
        transformers.TemperatureLogitsWarper(temperature),
    ]
    chain += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    chain += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [transformers.MinPLogitsWarper(min_p)] if min_p else []
    expected = transformers.LogitsProcessorList(chain)(seen[None], scores[None])[0]
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    assert torch.equal(filter_logits(scores, seen, sampling), expected)


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(vocab={chr(97 + i % 26) + ("" if i < 26 else "b"): i for i in range(50)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_text_comes_in_pieces_and_stops_before_a_stop_text(model, letters):
    sampling = Sampling(max_tokens=12, temperature=1, seed=1)
    whole = complete(model, letters, PROMPTS, sampling, NEVER)
    pieces = list(generate_text(model, letters, PROMPTS, sampling, NEVER))
    assert ["".join(row) for row in zip(*pieces, strict=True)] == whole
    stop = whole[0][4:7]
    stopped = complete(model, letters, PROMPTS, sampling.model_copy(update={"stop": (stop, "zzzz")}), NEVER)
    assert stopped[0] == whole[0][: whole[0].index(stop)]
    for text, full in zip(stopped, whole, strict=True):
        assert full.startswith(text)
        assert stop not in text


def test_nothing_is_written_that_may_begin_a_stop_text(model, letters):
    whole = complete(model, letters, [[1]], Sampling(max_tokens=12, temperature=1, seed=1), NEVER)[0]
    sampling = Sampling(max_tokens=12, temperature=1, seed=1, stop=(whole[3:] + "never",))
    shown = "".join(piece for (piece,) in islice(generate_text(model, letters, [[1]], sampling, NEVER), 12))
    assert shown == whole[:3]
    assert complete(model, letters, [[1]], sampling, NEVER)[0] == whole
