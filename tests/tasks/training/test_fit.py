"""How a training is laid out on a machine that leaves it open."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from model.budget import Plan
from model.config import ModelConfig, TrainConfig
from model.errors import InputError
from model.machine import TrainingMachine
from model.objectives.conversations import ConversationObjective
from model.objectives.preferences import PreferenceObjective
from model.objectives.text import TextObjective
from model.train_spec import TrainSpec
from tasks.training import precision
from tasks.training.fit import LIBRARIES_BYTES, lay_out_spec, lay_out_training, memory_of_rank, settled
from tasks.training.precision import fast_dtype, with_dtype
from tasks.training.probe import _as_one_of


def spec(objective, windows: int = 32, **machine) -> TrainSpec:
    path = Path("nowhere")
    return TrainSpec(
        model=ModelConfig.model_validate({"size": "350M"}),
        train=TrainConfig(tokens=2**20, tokens_per_batch=windows * 1024, dtype="float32"),
        machine=TrainingMachine(**{"device": "cpu", "ranks": 2, **machine}),
        objective=objective,
        train_shards=[],
        validation_shards=[],
        token_bytes=path,
        tokenizer_sha256="",
        vocabulary_size=50_257,
        work=path,
        out=path,
    )


def test_what_is_open_is_chosen_to_fit_and_what_is_said_is_kept():
    roomy = settled(spec(TextObjective(), memory_gigabytes=100)).machine
    assert (roomy.windows_per_micro_batch, roomy.zero_stage, roomy.activation_checkpointing) == (
        16,
        1,
        "none",
    )
    tight = settled(spec(TextObjective(), memory_gigabytes=14)).machine
    assert (tight.windows_per_micro_batch, tight.zero_stage, tight.activation_checkpointing) != (
        16,
        1,
        "none",
    )
    said = {"windows_per_micro_batch": 8, "zero_stage": 0, "activation_checkpointing": 3}
    kept = settled(spec(TextObjective(), memory_gigabytes=1, **said), nodes=2, is_elsewhere=True).machine
    assert kept.model_dump(include=set(said)) == said
    # Settled once more, it stays as it is.
    assert settled(spec(TextObjective()).model_copy(update={"machine": tight})).machine == tight


@pytest.mark.parametrize("windows", [2, 4, 12, 28, 32])
@pytest.mark.parametrize("memory", [1, 20, 200])
def test_pairs_stay_together_and_every_layout_is_one(windows: int, memory: int):
    objective = PreferenceObjective(beta=0.1, reference=Path("nowhere"))
    for made in (spec(objective, 2 * windows), spec(TextObjective(), windows)):
        found = settled(
            made.model_copy(update={"machine": made.machine.model_copy(update={"memory_gigabytes": memory})}),
            nodes=2,
            is_elsewhere=True,
        )
        rows, passes = found.micro_batch
        assert rows >= 1
        # What was planned is what is done, whole rows at a time.
        plan = lay_out_spec(made.model_copy(update={"machine": found.machine}), memory * 1e9)
        assert plan.micro_batch == rows * made.objective.windows_per_row
        free = made.machine.model_copy(update={"memory_gigabytes": memory})
        assert (
            lay_out_spec(made.model_copy(update={"machine": free}), memory * 1e9).micro_batch
            == plan.micro_batch
        )
        assert rows * passes * 2 == made.rows_per_batch


def test_documents_that_do_not_see_each_other_are_counted_with_a_copy_on_a_cpu():
    layout = {"windows_per_micro_batch": 2, "zero_stage": 1, "activation_checkpointing": "none"}

    def activations(objective, **machine) -> int:
        return lay_out_spec(spec(objective, **layout, **machine), None).memory.activations

    config = spec(TextObjective()).model
    in_bfloat16 = spec(TextObjective()).train.model_copy(update={"dtype": "bfloat16"})
    copied = 2 * config.context_length * config.n_layers * 4 * config.n_heads * config.head_dim
    plain = activations(TextObjective())
    assert activations(ConversationObjective()) - plain == copied
    assert activations(TextObjective(isolate_documents=True)) - plain == copied
    # On CUDA they are packed, but for float32.
    assert (
        activations(ConversationObjective(), device="cuda") - activations(TextObjective(), device="cuda")
        == copied
    )
    on_cuda = [
        lay_out_spec(
            spec(each, **layout, device="cuda").model_copy(update={"train": in_bfloat16}), None
        ).memory.activations
        for each in (TextObjective(), ConversationObjective())
    ]
    assert on_cuda[0] == on_cuda[1]
    train = spec(TextObjective()).train.model_copy(update={"isolate_documents": True})
    said = lay_out_training(config, train, 50_257, TrainingMachine(device="cpu", ranks=2, **layout), None)
    assert said.memory.activations - plain == copied


def test_ranks_of_a_computer_share_its_memory():
    machine = TrainingMachine(device="cpu", ranks=8)
    alone, on_four_nodes = memory_of_rank(machine), memory_of_rank(machine, nodes=4)
    assert alone is not None
    assert on_four_nodes is not None
    assert on_four_nodes + LIBRARIES_BYTES == pytest.approx(4 * (alone + LIBRARIES_BYTES))
    assert memory_of_rank(TrainingMachine(device="cuda", memory_gigabytes=80)) == 80e9


@pytest.mark.parametrize(
    ("flags", "dtype"), [("fpu avx2", "float32"), ("fpu avx512f avx512_bf16", "bfloat16")]
)
def test_auto_is_what_the_hardware_says_and_a_value_that_is_given_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str
):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(precision, "_CPU_FACTS", facts)
    monkeypatch.setattr(precision, "_DRIVERS", ())
    assert fast_dtype("cpu") == fast_dtype("auto") == dtype
    assert fast_dtype("cuda") == "bfloat16"
    monkeypatch.setattr(precision, "_lacks_bfloat16", lambda: True)
    assert fast_dtype("cuda") == "float32"
    # What this computer has says nothing of those that train.
    for machine in ({"nodes": 2}, {"cluster": {"kind": "slurm"}}):
        on_others = with_dtype({"machine": {"device": "cuda", **machine}}, "train_model")
        assert on_others["train_model"] == {"dtype": "bfloat16"}
    monkeypatch.undo()
    monkeypatch.setattr(precision, "_CPU_FACTS", facts)
    monkeypatch.setattr(precision, "_DRIVERS", ())
    assert with_dtype({}, "train_model") == {"train_model": {"dtype": dtype}}
    # What is no machine is for whoever checks the recipe to say.
    for strange in (None, [], "gpu"):
        given = {"machine": strange}
        assert with_dtype(given, "train_model") == {**given, "train_model": {"dtype": dtype}}
    given = {"train_model": {"dtype": "float32", "tokens": 5}}
    assert with_dtype(given, "train_model") == given
    on_cuda = with_dtype({"machine": {"device": "cuda"}, "train_model": {"tokens": 5}}, "train_model")
    assert on_cuda["train_model"] == {"tokens": 5, "dtype": "bfloat16"}


def test_a_training_that_needs_far_more_than_there_is_is_refused_with_what_it_needs():
    made = spec(TextObjective(), memory_gigabytes=0.001)
    with pytest.raises(
        InputError, match=r"needs about .* on each rank, which has 1\.0 MB: .*machine\.memory_gigabytes"
    ):
        settled(made)
    # Nobody knows what another computer has, and one node of a cluster is another one, too.
    assert settled(made, nodes=1, is_elsewhere=True)


def test_what_may_fit_is_not_refused(monkeypatch: pytest.MonkeyPatch):
    small = {"size": None, "n_layers": 4, "d_model": 64, "n_heads": 4, "context_length": 64}
    many = spec(TextObjective(), windows=4, ranks=4).model_copy(
        update={"model": ModelConfig.model_validate(small), "vocabulary_size": 4096}
    )
    # Four ranks on a computer of 2 GB, each of which has the libraries in half a gigabyte.
    monkeypatch.setattr("tasks.training.fit.memory_of_rank", lambda machine, nodes: 0.5e9 - LIBRARIES_BYTES)
    assert settled(many)
    monkeypatch.undo()
    # What lies on the host, or was never measured on this kind of device, is no reason.
    large = {"device": "cuda", "ranks": 1, "memory_gigabytes": 6, "windows_per_micro_batch": 16}
    plain = spec(TextObjective(), zero_stage=2, activation_checkpointing="none", **large)
    assert settled(plain)
    tiny = {**large, "memory_gigabytes": 1}
    with pytest.raises(InputError, match=r"needs about .* which has 1\.0 GB"):
        settled(spec(TextObjective(), zero_stage=2, **tiny))
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    assert settled(spec(TextObjective(), zero_stage=2, deepspeed=offload, **tiny))


def zero(offload: dict) -> dict:
    """Keys that put the optimizer's state elsewhere."""
    return {"zero_optimization": {"offload_optimizer": offload}}


def test_a_stage_that_is_open_becomes_what_keys_need():
    for name, value, stage in (
        ("offload_optimizer", {"device": "cpu"}, 1),
        ("offload_param", {"device": "cpu"}, 3),
        ("zero_hpz_partition_size", 2, 3),
    ):
        keys = {"zero_optimization": {name: value}}
        made = spec(TextObjective(), memory_gigabytes=100, deepspeed=keys)
        assert settled(made).machine.zero_stage == stage
        if stage == 3:
            with pytest.raises(InputError, match=rf"{name} does nothing at ZeRO stage 2"):
                settled(spec(TextObjective(), memory_gigabytes=100, deepspeed=keys, compile=True))


@pytest.mark.parametrize("device", ["none", "cpu"])
def test_what_is_put_into_the_same_memory_takes_it(device: str):
    made = spec(TextObjective(), memory_gigabytes=0.001, deepspeed=zero({"device": device}))
    with pytest.raises(InputError, match="needs about"):
        settled(made)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"device": "nvme", "nvme_path": "/disk"}, "offload_optimizer.device is 'nvme'"),
        ({"device": "cpu", "ratio": 0.5}, "offload_optimizer.ratio is 0.5"),
        ({"device": "cpu", "super_offload": True}, "offload_optimizer.super_offload is True"),
    ],
)
def test_what_could_be_neither_moved_nor_saved_is_refused(keys: dict, told: str):
    with pytest.raises(ValueError, match=told):
        spec(TextObjective(), deepspeed=zero(keys))


def test_every_kth_block_keeps_less_than_all_and_more_than_none_of_them():
    made = spec(TextObjective())

    def laid_out(mode: int | str, memory_bytes: float | None = None) -> Plan:
        given = {"device": "cpu", "activation_checkpointing": mode, "windows_per_micro_batch": 1}
        machine = TrainingMachine.model_validate(given)
        return lay_out_training(made.model, made.train, made.vocabulary_size, machine, memory_bytes)

    sizes = [laid_out(mode).memory.total for mode in ("full", 2, 3, 6, "none")]
    assert sizes == sorted(set(sizes))
    # It fits where it does, and not where all of the blocks would have to.
    enough = 1.2 * sizes[1]
    assert laid_out(2, enough).fits
    assert not laid_out("none", 1.2 * sizes[0]).fits


def test_a_trial_is_of_the_machine_that_is_given():
    offload = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    one = _as_one_of(TrainingMachine(device="cpu", ranks=1, zero_stage=3, deepspeed=offload))
    assert (one.zero_stage, one.deepspeed) == (3, offload)
    of_two = _as_one_of(TrainingMachine(device="cpu", ranks=2, zero_stage=3, deepspeed=offload))
    assert (of_two.ranks, of_two.zero_stage, of_two.deepspeed) == (1, "auto", {"zero_optimization": {}})
    with pytest.raises(ValidationError, match="offload_optimizer does nothing at ZeRO stage 0"):
        TrainingMachine(zero_stage=0, deepspeed=zero({"device": "cpu"}))
    # What DeepSpeed does without them, too, may be said at every stage.
    for device in ({}, {"device": "none"}):
        assert TrainingMachine(zero_stage=0, deepspeed=zero(device))
    same = {"zero_optimization": {"zero_hpz_partition_size": 1}}
    assert settled(spec(TextObjective(), memory_gigabytes=100, deepspeed=same)).machine.zero_stage == 1
    with pytest.raises(ValidationError, match=r"zero_optimization is None and not keys"):
        TrainingMachine(zero_stage=2, deepspeed={"zero_optimization": None})
    with pytest.raises(ValidationError, match=r"zero_optimization is None and not keys"):
        TrainingMachine(deepspeed={"zero_optimization": None})
