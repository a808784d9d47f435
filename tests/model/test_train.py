"""The training loop with real DeepSpeed: ranks, ZeRO stages and micro-batches change nothing but rounding."""

import errno
import json
import os
import shutil
import signal
import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from model import train as training
from model.adapters import LowRankAdapter
from model.average import WeightAverage
from model.batches import next_token_windows
from model.best import forget_others, load_best
from model.budget import count
from model.checkpoint import Checkpoints, checkpoint_states, newest_checkpoint
from model.config import ModelConfig, TrainConfig
from model.deepspeed_engine import Learner, deepspeed_config
from model.errors import InputError, StageFailed
from model.files import write_record
from model.first_weights import FirstModel
from model.goodput import Attempts
from model.held_out import HeldOut, measure_held_out, nats_of
from model.machine import TrainingMachine
from model.objectives.mixed_text import MixedTextObjective, SharesFrom
from model.objectives.text import TextObjective
from model.tokens import open_tokens, write_tokens
from model.train import _Training, seconds_between_saves
from model.train_spec import TrainSpec
from model.transformer import Transformer
from model.weights import load_model, save_model
from tasks.engine.ranks import explain_failure, first_error
from tasks.training.fit import settled
from tasks.training.rank import refuse_too_large, train_here
from tests.model.pair import pair


def spec(folder: Path, optimizer: str = "adamw", averaging: float = 0.0, **machine) -> TrainSpec:
    """A training of eight steps on a text of 2,000 tokens."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for side in ("train", "validation"):
        text = np.minimum(generator.geometric(0.1, 2000), 59)
        write_tokens(
            folder / f"{side}.arrow",
            [text],
            [side],
            ["s"],
            [2000],
            tokenizer_sha256="t",
            vocabulary_size=60,
            end_of_text_id=0,
        )
    (folder / "bytes.json").write_text(json.dumps([0] + [1] * 59))
    return TrainSpec(
        model=ModelConfig(n_layers=2, d_model=16, n_heads=2, context_length=16),
        train=TrainConfig(
            tokens=1024,
            tokens_per_batch=128,
            optimizer=optimizer,
            evaluations=1,
            gradient_clipping=0.5,  # the norm of most steps is more
            averaging=averaging,
        ),
        objective=TextObjective(),
        machine=TrainingMachine(**{"device": "cpu", "ranks": 1, "threads": 1, **machine}),
        train_shards=[folder / "train.arrow"],
        validation_shards=[folder / "validation.arrow"],
        token_bytes=folder / "bytes.json",
        tokenizer_sha256="t",
        vocabulary_size=60,
        work=folder / "work",
        out=folder / "out",
    )


def train(folder: Path, **options) -> tuple[list[float], dict]:
    """Train, one rank in this process and two in two that stay; returns losses and weights."""
    return run(spec(folder, **options), folder)


def run(made: TrainSpec, folder: Path) -> tuple[list[float], dict]:
    """The same of a training that is described already."""
    made.work.mkdir(exist_ok=True)
    if made.machine.ranks == 1:
        train_here(made)
    else:
        pair().train(made, folder)
    losses = [json.loads(line)["loss"] for line in (made.work / "metrics.jsonl").read_text().splitlines()]
    return losses, load_file(made.out / "model.safetensors")


HOST = {"device": "cpu"}


def zero(**fields) -> dict:
    """More of DeepSpeed's own settings of ZeRO."""
    return {"zero_optimization": fields}


@pytest.mark.end_to_end
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_machines_agree_to_rounding(tmp_path: Path, optimizer: str):
    losses, weights = train(tmp_path / "reference", optimizer=optimizer)
    assert losses[-1] < losses[0]
    machines = [
        {"ranks": 2},
        {"ranks": 2, "zero_stage": 0, "windows_per_micro_batch": 2, "activation_checkpointing": "full"},
        {"ranks": 2, "zero_stage": 2, "windows_per_micro_batch": 2},
        {"ranks": 1, "zero_stage": 2},
        {"ranks": 2, "zero_stage": 3, "windows_per_micro_batch": 1},
        # Moments on the host, weights on the host, and shares within a node.
        {"ranks": 2, "zero_stage": 2, "deepspeed": zero(offload_optimizer=HOST)},
        {"zero_stage": 3, "deepspeed": zero(offload_optimizer=HOST, offload_param=HOST)},
        {"ranks": 2, "zero_stage": 3, "deepspeed": zero(zero_hpz_partition_size=2)},
    ]
    averaged = train(tmp_path / "averaged", optimizer=optimizer, averaging=0.5)[1]
    assert any((averaged[name] != value).any() for name, value in weights.items())
    for i, machine in enumerate(machines):
        others, other_weights = train(tmp_path / str(i), optimizer=optimizer, **machine)
        assert others == pytest.approx(losses, rel=2e-5), machine
        assert other_weights.keys() == weights.keys()
        for name, value in weights.items():
            assert (value - other_weights[name]).abs().max() < 1e-3, (machine, name)
    for stage in (1, 3):
        machine = {"averaging": 0.5, "ranks": 2, "zero_stage": stage}
        on_two = train(tmp_path / f"averaged at {stage}", optimizer=optimizer, **machine)[1]
        for name, value in averaged.items():
            assert (value - on_two[name]).abs().max() < 1e-3, name


@pytest.mark.end_to_end
def test_ranks_agree_beside_a_base_in_four_bits(tmp_path: Path):
    """Each holds the base whole, and at stage 2 the gradients of the adapters in shares."""
    found = {}
    for name, machine in (("one", {}), ("two", {"ranks": 2, "zero_stage": 2})):
        made = spec(tmp_path / name, **machine, activation_checkpointing="selective")
        base = Transformer(made.model, made.vocabulary_size)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in base.parameters():
                weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.2, generator=generator)
        save_model(base, tmp_path / name / "base", "t")
        adapter = LowRankAdapter(rank=4, base="nf4")
        found[name] = run(
            made.model_copy(update={"start": tmp_path / name / "base", "adapter": adapter}), tmp_path / name
        )
    (losses, weights), (others, other_weights) = found["one"], found["two"]
    assert losses[-1] < losses[0]
    assert others == pytest.approx(losses, rel=2e-5)
    for name, value in weights.items():
        assert (value - other_weights[name]).abs().max() < 1e-3, name


@pytest.mark.end_to_end
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_goes_on_with_other_ranks_at_another_stage(tmp_path: Path, optimizer: str):
    """What one rank saved goes on with two, and back: the losses are those of a training that was never stopped."""
    losses, weights = train(tmp_path / "reference", optimizer=optimizer, averaging=0.5)
    saving = {"checkpoint_every_seconds": 0.0, "keep_checkpoints": 100}
    made = spec(tmp_path / "moved", optimizer=optimizer, averaging=0.5, **saving)
    made.work.mkdir()
    followed = [
        {"ranks": 1, "zero_stage": 0},
        {"ranks": 2, "zero_stage": 1},
        {"ranks": 2, "zero_stage": 3},
        {"ranks": 2, "zero_stage": 2},
        {"ranks": 1, "zero_stage": 3},
        {"ranks": 2, "zero_stage": 0},
        {"ranks": 1, "zero_stage": 1},
    ]
    for steps, machine in enumerate(followed, 1):
        # As if the process had been killed after another step.
        moved = made.model_copy(update={"machine": made.machine.model_copy(update=machine)})
        assert steps == 1 or newest_checkpoint(made.work) == made.work / f"step-{steps - 1:08d}"
        found, found_weights = run(moved, tmp_path / "moved")
        assert found == pytest.approx(losses, rel=2e-5), machine
        for name, value in weights.items():
            assert (value - found_weights[name]).abs().max() < 1e-3, (machine, name)
        for folder in made.work.glob("step-*"):
            if int(folder.name.removeprefix("step-")) > steps:
                shutil.rmtree(folder)


@pytest.mark.end_to_end
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("starts", [False, True])
def test_at_stage_3_the_model_is_never_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tied: bool, starts: bool
):
    """Its weights exist in shares from the first one on, with the values that they have elsewhere."""
    first = spec(tmp_path / "first")
    shape = first.model.model_copy(update={"tie_embeddings": tied})
    first = first.model_copy(update={"model": shape})
    run(first, tmp_path / "first")
    largest = []
    built = FirstModel._built_in_shares

    def watched(self: FirstModel) -> Transformer:
        model = built(self)
        largest.append(max(weight.numel() for weight in model.parameters()))
        return model

    monkeypatch.setattr(FirstModel, "_built_in_shares", watched)
    results = []
    for name, machine in {"whole": {"zero_stage": 0}, "shares": {"zero_stage": 3}}.items():
        made = spec(tmp_path / name, averaging=0.3, **machine)
        update = {"model": shape, "start": first.out if starts else None}
        results.append(run(made.model_copy(update=update), tmp_path / name))
    assert largest == [0]
    assert results[1][0] == pytest.approx(results[0][0], rel=2e-5)
    for name, value in results[0][1].items():
        assert (value - results[1][1][name]).abs().max() < 1e-3, name


@pytest.mark.end_to_end
def test_bfloat16_moves_weights_in_float32_and_goes_on_to_the_same_bits(tmp_path: Path):
    losses, weights = train(tmp_path / "float32", optimizer="muon")
    found = {}
    machines = {
        "one": {},
        "two": {"ranks": 2, "zero_stage": 2, "windows_per_micro_batch": 2},
        "three": {"ranks": 2, "zero_stage": 3},
    }
    for name, machine in machines.items():
        made = spec(tmp_path / name, optimizer="muon", **machine)
        update = {"train": made.train.model_copy(update={"dtype": "bfloat16"})}
        found[name] = run(made.model_copy(update=update), tmp_path / name)
        assert found[name][0] == pytest.approx(losses, rel=2e-3)
        assert not torch.equal(found[name][1]["lm_head.weight"], weights["lm_head.weight"])
    # What is written is what was moved, and not what was computed with.
    assert any((value != value.bfloat16()).any() for value in found["one"][1].values())

    # Of a step that moves next to nothing, the weights are the first ones, unrounded.
    made = spec(tmp_path / "still", optimizer="muon", checkpoint_every_seconds=0.0, keep_checkpoints=8)
    still = {"dtype": "bfloat16", "learning_rate": 1e-12, "muon_learning_rate": 1e-12}
    made = made.model_copy(update={"train": made.train.model_copy(update=still)})
    first = Transformer(made.model, 60)
    first.initialize(0)
    _, unmoved = run(made, tmp_path / "still")
    for name, value in first.state_dict().items():
        assert torch.allclose(unmoved[name], value, rtol=0, atol=1e-7), name

    made = spec(tmp_path / "stopped", optimizer="muon", checkpoint_every_seconds=0.0, keep_checkpoints=8)
    made = made.model_copy(update={"train": made.train.model_copy(update={"dtype": "bfloat16"})})
    run(made, tmp_path / "stopped")
    for folder in made.work.glob("step-0000000[5-9]"):
        shutil.rmtree(folder)
    again, again_weights = run(made, tmp_path / "stopped")
    assert again == found["one"][0]
    assert all(torch.equal(again_weights[name], value) for name, value in found["one"][1].items())


@pytest.mark.end_to_end
@pytest.mark.parametrize("machine", [{}, {"zero_stage": 2}, {"zero_stage": 3}])
def test_a_step_that_is_not_finite_stops_the_training_or_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: dict
):
    """The third of eight steps has a gradient of infinities: either the training ends there, or it moves nothing."""
    forward = Learner.forward

    def trained(name: str, broken: set[int], policy: str) -> dict:
        calls = iter(range(100))

        def told(self, *arguments, **batch):
            loss = forward(self, *arguments, **batch)
            return loss * float("inf") if self.training and next(calls) in broken else loss

        made = spec(tmp_path / name, optimizer="muon", **machine)
        train = made.train.model_copy(update={"not_finite": policy, "gradient_clipping": 0.0})
        made = made.model_copy(update={"train": train})
        made.work.mkdir()
        with monkeypatch.context() as patched:
            patched.setattr(Learner, "forward", told)
            figures = train_here(made)
        lines = [json.loads(line) for line in (made.work / "metrics.jsonl").read_text().splitlines()]
        return {**figures, "lines": lines, "weights": load_file(made.out / "model.safetensors")}

    with pytest.raises(InputError, match="the loss is inf at step 2"):
        trained("stopped", {2}, "stop")
    # A gradient may be broken where the loss is not, and in the last step, too.
    real = forward

    def broken_gradient(self, *arguments, **batch):
        loss = real(self, *arguments, **batch)
        if self.training:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    forward = broken_gradient
    with pytest.raises(InputError, match="the norm of the gradient is"):
        trained("gradient", set(), "stop")
    forward = real
    skipped = trained("skipped", {2}, "skip")
    assert skipped["skipped_steps"] == 1
    assert [line["step"] for line in skipped["lines"] if line.get("skipped")] == [2]
    assert all(torch.isfinite(value).all() for value in skipped["weights"].values())
    # No number is no JSON; and the weights that are left when the last step is skipped are measured.
    assert skipped["lines"][2]["loss"] is None
    last = trained("last", {7}, "skip")
    assert last["lines"][-1]["skipped"] == 1
    assert last["lines"][-1]["validation_bits_per_byte"] == last["validation_bits_per_byte"]
    whole = trained("whole", set(), "skip")
    assert whole["skipped_steps"] == 0
    # Until then they are the same, and after it the one that skipped a step is behind.
    for i, (ours, theirs) in enumerate(zip(skipped["lines"], whole["lines"], strict=True)):
        if i != 2:
            assert (ours["loss"] == theirs["loss"]) == (i < 2), i
    monkeypatch.setattr("model.train._MOST_SKIPPED", 3)
    with pytest.raises(InputError, match="the loss is inf"):
        trained("all", set(range(8)), "skip")


def test_a_persons_deepspeed_settings_are_taken_and_contradict_nothing(tmp_path: Path):
    more = {"zero_optimization": {"overlap_comm": True}, "wall_clock_breakdown": False}
    made = spec(tmp_path / "x", zero_stage=2, deepspeed=more)
    config = deepspeed_config(made)
    # Buffers of the size of this model, and not of one with a billion weights; but for what a person says.
    n_parameters = count(made.model, made.vocabulary_size).total
    sizes = {"reduce_bucket_size": n_parameters}
    assert config["zero_optimization"] == {"stage": 2, **sizes, "overlap_comm": True}
    given = {"zero_optimization": {"reduce_bucket_size": 7, "stage3_max_live_parameters": 8}}
    at_3 = deepspeed_config(spec(tmp_path / "y", zero_stage=3, deepspeed=given))["zero_optimization"]
    assert at_3 == {"stage": 3, **given["zero_optimization"], "stage3_max_reuse_distance": ANY}
    assert 0 < at_3["stage3_max_reuse_distance"] <= n_parameters
    assert config["wall_clock_breakdown"] is False
    for added, named in (
        ({"scheduler": {}}, r"deepspeed\.scheduler is unknown, or may change what is learnt"),
        ({"communication_data_type": "bf16"}, r"communication_data_type is unknown, or may change"),
        ({"gradient_allreduce_op": "sum"}, r"gradient_allreduce_op is unknown, .*added is aio"),
        (
            {"zero_optimization": {"zero_quantized_gradients": True}},
            r"deepspeed\.zero_optimization\.zero_quantized_gradients .*offload_optimizer",
        ),
        ({"bf16": {"immediate_grad_update": True}}, r"deepspeed\.bf16\.immediate_grad_update is unknown"),
    ):
        with pytest.raises(ValidationError, match=named):
            TrainingMachine(deepspeed=added)
    shares = {"zero_optimization": {"zero_hpz_partition_size": 8}}
    with pytest.raises(ValidationError, match="does nothing at ZeRO stage 2: set zero_stage to 3"):
        TrainingMachine(zero_stage=2, deepspeed=shares)
    assert settled(spec(tmp_path / "auto", deepspeed=shares)).zero_stage == 3
    refused = (
        (
            {"gradient_clipping": 5.0},
            r"machine\.deepspeed\.gradient_clipping is 5\.0, and recipe and machine make it 0\.5",
        ),
        ({"bf16": {"enabled": True}}, r"machine\.deepspeed\.bf16\.enabled is True"),
        ({"zero_optimization": {"stage": 3}}, r"machine\.deepspeed\.zero_optimization\.stage is 3"),
    )
    for i, (added, named) in enumerate(refused):
        made = spec(tmp_path / str(i), zero_stage=2, deepspeed=added)
        with pytest.raises(InputError, match=named):
            deepspeed_config(made)
    banana = {"zero_optimization": {"reduce_bucket_size": "banana"}}
    with pytest.raises(InputError, match=r"machine\.deepspeed: .*reduce_bucket_size.* is 'banana'"):
        train(tmp_path / "banana", zero_stage=2, deepspeed=banana)


def test_goodput_counts_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("model.goodput.time.time", lambda: now[0])
    alive = tmp_path / "metrics.jsonl"
    Attempts(tmp_path, alive)
    alive.touch()
    os.utime(alive, (1060.0, 1060.0))  # it was killed after a minute
    now[0] = 5000.0
    second = Attempts(tmp_path, alive)
    now[0] = 5040.0
    assert second.goodput(50.0) == pytest.approx(50 / 100)


class Waits(TorchDispatchMode):
    """Where values are brought from the device: `.item()`, `if tensor`, and what `watch` adds. File and function of each."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def note(self) -> None:
        ours = str(Path(training.__file__).parent)
        frames = reversed(traceback.extract_stack())
        frame = next(
            each for each in frames if each.filename.startswith(ours) or "deepspeed/" in each.filename
        )
        library = "" if frame.filename.startswith(ours) else "deepspeed "
        self.places.append(f"{library}{Path(frame.filename).stem}.{frame.name}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.note()
        return func(*args, **(kwargs or {}))

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Notes what torch does below its dispatcher, too."""

        def noting(method: Any) -> Any:
            def noted(tensor: torch.Tensor, *args: Any) -> Any:
                self.note()
                return method(tensor, *args)

            return noted

        for name in ("tolist", "numpy", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, noting(getattr(torch.Tensor, name)))


def test_older_checkpoints_are_kept_by_age(tmp_path: Path):
    """Of eight that were written a minute apart, the two newest stay, and of the others one of every three minutes."""
    made = Checkpoints.__new__(Checkpoints)
    made.folder, made.keep, made.keep_every_seconds = tmp_path, 2, 180.0
    removed = set()
    for step in range(8):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "checkpoint.json").touch()
        os.utime(folder / "checkpoint.json", (60.0 * step, 60.0 * step))
        for old in made._outdated():
            removed.add(int(old.name.removeprefix("step-")))
            shutil.rmtree(old)
    assert removed == {1, 2, 4, 5}


@pytest.mark.end_to_end
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int):
    """Without ZeRO nothing does; with it DeepSpeed does at the end of a step, where it looks at the norm, and nothing of ours.

    What is read here has arrived, or was never elsewhere: a step's figures one step later, what ranks ask each other, and
    the weights at the end. At stage 3 DeepSpeed also compares lists of what its ranks fetch.
    """
    made = spec(tmp_path / "x", optimizer="muon", zero_stage=stage, windows_per_micro_batch=2)
    made = made.model_copy(update={"train": made.train.model_copy(update={"evaluations": 0})})
    made.work.mkdir()
    waits = Waits()
    run_all = _Training.run

    def watched(self: _Training) -> None:
        with waits:
            run_all(self)

    monkeypatch.setattr(_Training, "run", watched)
    waits.watch(monkeypatch)
    train_here(made)
    places = Counter(waits.places)
    assert {place for place in places if not place.startswith("deepspeed")} == {
        "signals.ask",
        "train._tell",
        "masters.gather",
    }
    assert places["train._tell"] == 8
    theirs = {place for place in places if place.startswith("deepspeed")}
    norm = {"deepspeed utils.is_invalid_grad_norm"}
    if stage < 3:
        assert theirs == (norm if stage else set())
    else:
        assert norm <= theirs
        assert all(place.startswith("deepspeed utils.") for place in theirs)


@pytest.mark.end_to_end
def test_a_mixture_is_the_same_on_two_ranks(tmp_path: Path):
    """Two sources, of which one ends early and comes again, and another mixture from the middle on."""
    phases = (
        SharesFrom(first_window=0, shares={"web": 3.0, "books": 1.0}),
        SharesFrom(first_window=32, shares={"books": 1.0}),
    )
    results = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        made = spec(folder, ranks=ranks)
        generator = np.random.default_rng(1)
        texts = [np.minimum(generator.geometric(share, 400), 59) for share in (0.1, 0.3, 0.1, 0.1)]
        names = ["web", "books", "web", "web"]
        write_tokens(
            folder / "train.arrow",
            texts,
            [str(i) for i in range(4)],
            names,
            [400] * 4,
            tokenizer_sha256="t",
            vocabulary_size=60,
            end_of_text_id=0,
        )
        results.append(run(made.model_copy(update={"objective": MixedTextObjective(phases=phases)}), folder))
    (losses, weights), (others, other_weights) = results
    assert others == pytest.approx(losses, rel=2e-5)
    for name, value in weights.items():
        assert (value - other_weights[name]).abs().max() < 1e-3, name


def overfitting(folder: Path, **fields) -> TrainSpec:
    """A training on one page of noise, which can be learnt by heart and not understood."""
    made = spec(folder)
    train = TrainConfig(
        tokens=120 * 128,
        tokens_per_batch=128,
        learning_rate=0.02,
        muon_learning_rate=0.02,
        evaluations=12,
        **fields,
    )
    made.work.mkdir()
    shape = ModelConfig(n_layers=2, d_model=64, n_heads=2, context_length=16)
    return made.model_copy(update={"train": train, "model": shape})


def held_out_of(made: TrainSpec) -> float:
    """Held-out bits per byte of the weights that a training wrote, as it measures on the way."""
    windows = made.objective.validation_windows(
        [open_tokens(path) for path in made.validation_shards], 16, made.train.evaluation_tokens
    )
    token_bytes = np.array(json.loads(made.token_bytes.read_text()))
    return measure_held_out(nats_of(load_model(made.out)[0]), windows, token_bytes).bits_per_byte


@pytest.mark.end_to_end
def test_the_best_weights_are_kept_and_a_kill_changes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = overfitting(tmp_path / "best")
    figures = train_here(made)
    lines = [json.loads(line) for line in (made.work / "metrics.jsonl").read_text().splitlines()]
    measured = {
        line["step"] + 1: line["validation_bits_per_byte"]
        for line in lines
        if "validation_bits_per_byte" in line
    }
    best = min(measured, key=measured.__getitem__)
    assert figures["kept_step"] == best < 120
    assert figures["best_validation_bits_per_byte"] == measured[best] < figures["validation_bits_per_byte"]
    assert held_out_of(made) == pytest.approx(measured[best], rel=1e-6)
    last = overfitting(tmp_path / "last", keep="last")
    assert train_here(last)["kept_step"] == 120
    assert held_out_of(last) == pytest.approx(measured[120], rel=1e-6)

    # Stopped after the best step, it remembers which that was; the same bytes come out.
    stopped = overfitting(tmp_path / "stopped")
    calls, forward = iter(range(10_000)), Learner.forward

    def told(self, *arguments, **batch):
        if self.training and next(calls) == best + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments, **batch)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "forward", told)
        with pytest.raises(KeyboardInterrupt):
            train_here(stopped)
    assert [path.name for path in stopped.work.glob("best-*")] == [f"best-{best:08d}.safetensors"]
    assert train_here(stopped)["kept_step"] == best
    weights, others = (load_file(folder.out / "model.safetensors") for folder in (made, stopped))
    assert all((weights[name] == value).all() for name, value in others.items())


@pytest.mark.end_to_end
def test_averages_are_what_is_measured_and_kept_and_a_kill_changes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, averaged = (
        overfitting(tmp_path / name, averaging=share, keep="last") for name, share in (("0", 0.0), ("1", 0.2))
    )
    figures = [train_here(made)["validation_bits_per_byte"] for made in (plain, averaged)]
    losses = [
        [json.loads(line)["loss"] for line in (made.work / "metrics.jsonl").read_text().splitlines()]
        for made in (plain, averaged)
    ]
    # The training itself is the same; what is measured of it is steadier, and here better.
    assert losses[0] == losses[1]
    assert figures[1] < figures[0]
    assert held_out_of(averaged) == pytest.approx(figures[1], rel=1e-6)

    stopped = overfitting(tmp_path / "stopped", averaging=0.2, keep="last")
    calls, forward = iter(range(10_000)), Learner.forward

    def told(self, *arguments, **batch):
        if self.training and next(calls) == 70:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments, **batch)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "forward", told)
        with pytest.raises(KeyboardInterrupt):
            train_here(stopped)
    assert train_here(stopped)["resumed_from_step"] > 60
    weights, others = (load_file(made.out / "model.safetensors") for made in (averaged, stopped))
    assert all((weights[name] == value).all() for name, value in others.items())


@pytest.mark.end_to_end
def test_best_weights_that_are_damaged_are_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = overfitting(tmp_path / "damaged")

    def damage(work: Path, state: dict) -> None:
        for path in work.glob("best-*"):
            path.write_bytes(path.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(
        "model.train.load_best", lambda work, state: (damage(work, state), load_best(work, state))[1]
    )
    with pytest.raises(InputError, match=r"damaged or gone.*keep to last"):
        train_here(made)


@pytest.mark.end_to_end
def test_a_stop_within_a_step_saves_the_last_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step may take longer than whoever asks to stop will wait. Here the fourth of eight micro-batches is told."""
    _, undisturbed = train(tmp_path / "undisturbed", windows_per_micro_batch=1)
    made = spec(tmp_path / "stopped", windows_per_micro_batch=1)
    made.work.mkdir()
    calls, forward = iter(range(100)), Learner.forward

    def told(self, *arguments, **batch):
        if next(calls) == 8 + 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *arguments, **batch)

    with monkeypatch.context() as patched:
        patched.setattr(Learner, "forward", told)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 8"):
            train_here(made)
    assert next(calls) == 8 + 4
    (saved,) = made.work.glob("step-*")
    assert saved.name == "step-00000001"
    # Stopped again before it has learnt anything, it leaves the only checkpoint where it is.
    written = saved.stat().st_ino
    calls = iter(range(8 + 2, 100))
    with monkeypatch.context() as patched:
        patched.setattr(Learner, "forward", told)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 1 of 8"):
            train_here(made)
    assert [(path, path.stat().st_ino) for path in made.work.glob("step-*")] == [(saved, written)]
    assert train_here(made)["resumed_from_step"] == 1
    weights = load_file(made.out / "model.safetensors")
    assert all((weights[name] == value).all() for name, value in undisturbed.items())


def test_whose_fault_the_failure_of_a_rank_is(tmp_path: Path):
    import torch

    peer = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711")
    for error, kind in (
        (peer, "retry"),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "retry"),
        (InputError("the tokens are damaged"), "input"),
        (StageFailed("stopped after step 1", retryable=True), "retry"),
        (OSError(errno.EIO, "of a file system on the network"), "retry"),
        (OSError(errno.ENOSPC, "no space left"), "stage"),
        (ValueError("a fault of ours"), "stage"),
    ):
        assert explain_failure(error)[0] == kind, error
    assert "the disk is full" in explain_failure(OSError(errno.ENOSPC, "x"))[1]
    machine = TrainingMachine(device="cpu")
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ):
        with pytest.raises(InputError, match=r"lower machine\.windows_per_micro_batch \(now 0\)"):
            refuse_too_large(error, machine)
    refuse_too_large(peer, machine)
    # The rank that failed first says why; what the others then see is what it did to them.
    for rank, (at, kind, sentence) in enumerate([(20, "retry", "closed"), (10, "input", "too large")]):
        (tmp_path / f"error-{rank}.json").write_text(json.dumps([at, kind, sentence]))
    assert first_error(tmp_path) == ("input", "too large")
    # Of several ranks the one is named, with its place; of those that only lost another one, the one that says nothing.
    for rank, phase in enumerate(("step", "save", "step")):
        seen = {"host": f"n{rank}", "phase": phase, "since_ns": 0}
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(seen))
    assert first_error(tmp_path) == ("input", "rank 1 on n1 (save): too large")
    lost = [5, "retry", "another rank is gone (closed by peer)"]
    for rank in (0, 1):
        (tmp_path / f"error-{rank}.json").write_text(json.dumps(lost))
    kind, sentence = first_error(tmp_path) or ("", "")
    assert kind == "retry"
    assert sentence == "rank 2 on n2 (step) ended without a word; another rank is gone (closed by peer)"
    assert first_error(tmp_path / "nowhere") is None
    # What may be tried again, too, is a better reason than that another one is gone, which may be told first.
    (tmp_path / "error-2.json").write_text(json.dumps([9, "retry", "EIO"]))
    assert first_error(tmp_path) == ("retry", "rank 2 on n2 (step): EIO")


def test_every_token_of_a_document_is_predicted_once():
    document = np.arange(1, 38)
    windows = list(next_token_windows(document, 8))
    predicted = [token for _, targets in windows for token in targets[targets >= 0].tolist()]
    assert predicted == document[1:].tolist()
    for inputs, targets in windows:
        real = targets >= 0
        assert np.array_equal(inputs[real] + 1, targets[real])


def test_bits_per_byte_of_a_uniform_model():
    import torch

    token_bytes = np.array([0] + [2] * 15)
    windows = list(next_token_windows(np.array([0, *range(1, 16)]), 4))
    measured = measure_held_out(nats_of(lambda tokens: torch.zeros(*tokens.shape, 16)), windows, token_bytes)
    assert measured == HeldOut(pytest.approx(15 * np.log(16), rel=1e-5), 15, 30)
    assert measured.bits_per_byte == pytest.approx(15 * 4 / 30, rel=1e-5)
    broken = nats_of(lambda tokens: torch.full((*tokens.shape, 16), float("nan")))
    with pytest.raises(ValueError, match="not finite"):
        measure_held_out(broken, windows, token_bytes)


@pytest.mark.parametrize(("vocabulary_size", "together"), [(100, 16), (2**20, 2), (2**23, 1)])
def test_held_out_windows_are_read_together_as_far_as_their_logits_fit(vocabulary_size: int, together: int):
    windows = list(next_token_windows(np.arange(1_100) % 90, 64))
    seen = []

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        seen.append(len(tokens))
        # As many entries as the text needs: what counts is how many windows are asked for.
        return torch.zeros(*tokens.shape, 100)

    measured = measure_held_out(nats_of(logits), windows, np.ones(vocabulary_size, np.int64))
    assert max(seen) == together
    assert sum(seen) == len(windows)
    assert measured.n_tokens == 1_099


def test_a_forward_pass_reads_no_more_than_fits_unless_the_machine_says_so(tmp_path: Path):
    made = spec(tmp_path / "large")
    shape = made.model.model_copy(update={"context_length": 1024})
    train = made.train.model_copy(update={"tokens_per_batch": 2**19, "tokens": 2**20})
    made = made.model_copy(update={"model": shape, "train": train})
    assert made.micro_batch == (16, 32)
    machine = made.machine.model_copy(update={"windows_per_micro_batch": 4})
    assert made.model_copy(update={"machine": machine}).micro_batch == (4, 128)
    assert spec(tmp_path / "small").micro_batch == (8, 1)


@pytest.mark.parametrize(
    ("every", "took", "seconds"), [(0, 9.0, 0.0), (30, 0.1, 30.0), (30, 20.0, 1980.0), (30, 0.0, 30.0)]
)
def test_saving_takes_about_a_hundredth_of_the_time_at_most(every: float, took: float, seconds: float):
    assert seconds_between_saves(TrainingMachine(checkpoint_every_seconds=every), took) == pytest.approx(
        seconds
    )


@pytest.mark.parametrize(("optimizer", "largest"), [("adamw", 1.0), ("muon", 0.0)])
def test_clipping_follows_the_optimizer_unless_it_is_set(optimizer: str, largest: float):
    assert TrainConfig(optimizer=optimizer).largest_gradient_norm == largest
    assert TrainConfig(optimizer=optimizer, gradient_clipping=0.5).largest_gradient_norm == 0.5
    assert TrainConfig(optimizer=optimizer, gradient_clipping=0).largest_gradient_norm == 0.0


def test_an_average_holds_nothing_of_the_first_random_weights():
    weight = torch.zeros(3, 2)
    average = WeightAverage([weight], 0.5, n_steps=10)
    seen = []
    for steps in range(1, 6):
        weight.fill_(float(steps))
        seen.append(float(steps))
        average.update(steps)
        assert torch.allclose(average.means[0], torch.tensor(sum(seen) / len(seen)))


def test_what_is_later_than_the_newest_whole_checkpoint_goes(tmp_path: Path):
    """A damaged one would be counted among the newest, and the next whole one be pruned in its place."""
    for step, files in ((1, {}), (2, {}), (9, {"gone.safetensors": [1, "x"]})):
        (tmp_path / f"step-{step:08d}").mkdir()
        record = {"step": step, "files": files}
        write_record(tmp_path / f"step-{step:08d}" / "checkpoint.json", record)
    (tmp_path / ".building-00000010").mkdir()
    checkpoints = Checkpoints(tmp_path, None, None, [], 1)  # type: ignore[arg-type]
    assert checkpoints._choose() == str(tmp_path / "step-00000002")
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000002"]
    assert not list(tmp_path.glob(".building-*"))
    # Whichever attempt ends the training tells of it.
    again = Checkpoints(tmp_path, None, None, [], 1)  # type: ignore[arg-type]
    again._choose()
    assert checkpoints.damaged == again.damaged == [9]


@pytest.mark.parametrize(
    ("asked", "error"), [("os.listdir", OSError), ("model.checkpoint.xxh3_of_file", StageFailed)]
)
def test_a_disk_that_does_not_answer_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, error: type[Exception]
):
    folder = tmp_path / "step-00000003"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"x")
    write_record(folder / "checkpoint.json", {"step": 3, "files": {"a.safetensors": [1, "of another"]}})

    checkpoints = Checkpoints(tmp_path, None, None, [], 1, 3600.0)  # type: ignore[arg-type]

    def fails_once(path: Path) -> Any:
        monkeypatch.undo()
        # Of this one Path.glob would say that there is nothing.
        raise PermissionError(errno.EACCES, "of a file system on the network")

    monkeypatch.setattr(asked, fails_once)
    with pytest.raises(error, match="of a file system on the network"):
        checkpoints._choose()
    assert folder.exists()
    monkeypatch.undo()
    assert checkpoints._choose() == ""
    assert not folder.exists()
    # A folder that is no checkpoint goes with the old ones.
    for step in (1, 2):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert [path.name for path in checkpoints._outdated()] == ["step-00000001"]


def test_a_damaged_checkpoint_says_nothing_and_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(path: Path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    records = {step: tmp_path / f"step-{step:08d}" / "checkpoint.json" for step in (1, 2, 3, 4)}
    for step, record in records.items():
        record.parent.mkdir()
        write_record(record, {"step": step, "state": {"best_steps": 7}, "files": {}})
    assert newest_checkpoint(tmp_path) == records[4].parent
    records[1].write_text("{torn")
    # One character that rotted: another step, and another step that was best.
    records[3].write_text(records[3].read_text().replace('"best_steps": 7', '"best_steps": 5'))
    records[4].write_text(records[4].read_text().replace('"step": 4', '"step": 5'))
    assert newest_checkpoint(tmp_path) == records[2].parent
    assert checkpoint_states(tmp_path) == [{"best_steps": 7}]
    # The best weights that it names stay, also while it cannot be read.
    best = [tmp_path / f"best-{steps:08d}.safetensors" for steps in (7, 8)]
    for path in best:
        path.touch()
    with monkeypatch.context() as patched:
        patched.setattr("model.checkpoint.read_record", fails)
        forget_others(tmp_path, {"best_steps": 8})
    assert all(path.exists() for path in best)
    best[1].touch()
    forget_others(tmp_path, {"best_steps": 9})
    assert [path.exists() for path in best] == [True, False]
    # A whole one under the name of another step.
    records[2].parent.rename(tmp_path / "step-00000006")
    assert newest_checkpoint(tmp_path) is None
