"""Steps that stand out are told from the others, named by their documents, and move nothing if that is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from model.batches import Windows
from model.deepspeed_engine import Learner
from model.mixture import Mixture, Phase
from model.objectives.mixed_text import tokens_of_source
from model.objectives.text import TextObjective
from model.spikes import Spikes
from model.tokens import open_tokens, write_tokens
from tasks.training.rank import train_here
from tests.model.test_train import spec


def judged(spikes: Spikes, loss: float, norm: float = 1.0) -> bool:
    """Whether a step is a spike."""
    spikes.begin(torch.tensor(loss))
    measured = spikes.judge(lambda: torch.tensor(norm))
    assert spikes.judge(lambda: torch.tensor(-1.0)) is measured
    return bool(measured[2])


def noise(seed: int, n: int) -> list[float]:
    return (3 + 0.1 * np.random.default_rng(seed).standard_normal(n)).tolist()


def test_what_stands_out_is_a_spike_and_no_other_step_is():
    spikes = Spikes("cpu", 1)
    assert not judged(spikes, 100.0)  # with nothing to compare it with
    assert not any(judged(spikes, loss) for loss in noise(0, 300))
    assert judged(spikes, 4.5)
    assert judged(spikes, 4.5)  # the one before it does not hide it
    assert not judged(spikes, 3.2)
    assert judged(spikes, 3.0, norm=2.0)
    usual = spikes.last.max().item()
    for broken in (float("nan"), *[float("inf")] * 9):
        judged(spikes, broken)
    assert spikes.last.max().item() == usual
    assert not any(judged(spikes, loss) for loss in noise(1, 200))
    assert judged(spikes, 4.5)
    # A loss that stays where it jumped to is not left out for ever.
    assert not [judged(spikes, 1 + loss) for loss in noise(2, 100)][-1]


def test_what_is_remembered_is_kept_exactly():
    spikes, other = Spikes("cpu", 1), Spikes("cpu", 1)
    for loss in noise(0, 150):
        judged(spikes, loss)
    other.load(json.loads(json.dumps(spikes.state())))
    assert torch.equal(other.last, spikes.last)
    answers = [[judged(each, loss) for loss in [*noise(3, 40), 9.0, 3.0]] for each in (spikes, other)]
    assert answers[0] == answers[1]


N_STEPS, SPIKED = 80, 72


@pytest.mark.end_to_end
@pytest.mark.parametrize(("optimizer", "stage"), [("adamw", 0), ("muon", 2), ("muon", 3)])
def test_a_spike_is_named_and_left_out_if_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, stage: int
):
    forward = Learner.forward

    def trained(name: str, factor: float, **policy: str) -> dict:
        calls = iter(range(N_STEPS))

        def told(self, *arguments, **batch):
            loss = forward(self, *arguments, **batch)
            return loss * factor if self.training and next(calls) == SPIKED else loss

        made = spec(tmp_path / name, optimizer=optimizer, zero_stage=stage)
        train = made.train.model_copy(update={"tokens": N_STEPS * 128, "evaluations": 0, **policy})
        made = made.model_copy(update={"train": train})
        made.work.mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(Learner, "forward", told)
            figures = train_here(made)
        spiked = [json.loads(line) for line in (made.work / "spikes.jsonl").read_text().splitlines()]
        return {**figures, "spiked": spiked, "weights": load_file(made.out / "model.safetensors")}

    kept = trained("kept", 50.0)
    assert kept["spikes"] == 1
    (line,) = kept["spiked"]
    assert line["step"] == SPIKED
    assert line["documents"] == ["train"]
    skipped = trained("skipped", 50.0, spikes="skip")
    assert [line["step"] for line in skipped["spiked"]] == [SPIKED]
    # It moved as little as a step whose gradient is no number: neither weights nor what the optimizer remembers.
    broken = trained("broken", float("nan"), not_finite="skip", spikes="skip")
    assert broken["spikes"] == 0
    assert broken["skipped_steps"] == 1
    for name, value in broken["weights"].items():
        assert torch.equal(skipped["weights"][name], value), name
    assert any(not torch.equal(kept["weights"][name], value) for name, value in broken["weights"].items())


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=12),
    cut=st.integers(0, 12),
    step=st.integers(0, 40),
    mixed=st.booleans(),
)
def test_the_documents_of_a_batch_are_those_whose_tokens_it_has(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: int, step: int, mixed: bool
):
    """Each document says its number over and over, so a batch tells of which documents it is."""
    folder = tmp_path_factory.mktemp("tokens")
    texts = [np.full(length, number + 1) for number, length in enumerate(lengths)]
    shards = []
    for name, numbers in (("a", range(cut)), ("b", range(cut, len(texts)))):
        own = [number for number in numbers if number < len(texts)]
        write_tokens(
            folder / f"{name}.arrow",
            [texts[number] for number in own],
            [str(number + 1) for number in own],
            ["odd" if number % 2 else "even" for number in own],
            [1] * len(own),
            tokenizer_sha256="t",
            vocabulary_size=60,
            end_of_text_id=0,
        )
        shards.append(open_tokens(folder / f"{name}.arrow"))
    streams = [Windows([shard.ids for shard in shards], 4)]
    if mixed:
        streams = [Windows(tokens_of_source(shards, name), 4) for name in ("even", "odd")]
    if not all(map(len, streams)):
        return
    windows = Mixture(streams, [Phase(0, (2.0, 1.0))]) if mixed else streams[0]
    made = TextObjective().text_rows(shards, windows, 4)
    batch = made.batch(step, 3, 0, 0, 3)
    found = {int(token) for name in ("tokens", "targets") for token in batch[name].flat} - {0}
    named = {int(name) for name in made.document_ids(step, 3, 0)}
    # An end-of-text alone belongs to the document that it begins, which it does not name.
    assert found <= named
    ends = sum(
        int((windows_of[name] == 0).sum()) for windows_of in (batch,) for name in ("tokens", "targets")
    )
    assert len(named - found) <= ends
