"""Training on conversations: packing changes nothing, adapters merge, preferences are preferred; all through DeepSpeed."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from model.adapter_folder import apply_adapter_folder, write_adapter_folder
from model.adapters import ADAPTER_WEIGHTS, LowRankAdapter, merge_adapters
from model.batches import IGNORED
from model.config import ModelConfig, TrainConfig, flops_per_token
from model.deepspeed_engine import Learner
from model.errors import InputError
from model.first_weights import FirstModel, whole_model
from model.hugging_face import class_name, hugging_face_config, hugging_face_weights
from model.loss import log_probabilities
from model.machine import TrainingMachine
from model.objectives.conversations import ConversationObjective, PackedConversations
from model.objectives.masked_documents import Document, documents_of, pack
from model.objectives.preferences import (
    PreferenceObjective,
    PreferencePairs,
    packed_log_probabilities,
)
from model.tokens import open_tokens, write_tokens
from model.train_spec import TrainSpec
from model.weights import load_model, save_model
from tasks.engine.machine import Machine
from tasks.engine.stage import Artifact
from tasks.training.finetune_settings import describe_adapter
from tasks.training.fit import settled
from tasks.training.hugging_face_folder import ExportModelConfig
from tasks.training.rank import train_here
from tasks.training.reference_log_probabilities import (
    ReferenceLogProbabilitiesConfig,
    reference_log_probabilities,
)
from tests.model.test_transformer import SMALL, VARIANTS, build

LENGTH = SMALL["context_length"]


def talks(n: int = 24, seed: int = 0) -> list[Document]:
    """Conversations of 4 to 13 tokens, of which the second half is trained."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        ids = generator.integers(1, 50, generator.integers(4, 14)).astype(np.uint16)
        ids[0] = 0
        found.append(Document(ids, (np.arange(len(ids)) >= len(ids) // 2).astype(np.uint8)))
    return found


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), max_size=40))
def test_packing_loses_nothing_and_overfills_nothing(lengths: list[int]):
    windows = pack(lengths, 16)
    assert sorted(index for window in windows for index in window) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in window) <= 16 for window in windows)
    assert (
        len(windows) <= 1.7 * max(1, -(-sum(lengths) // 16)) + 1 or len(windows) <= 2 * sum(lengths) / 16 + 1
    )


def test_a_packed_conversation_is_read_as_if_it_were_alone():
    model, documents = build(), talks()
    packed = PackedConversations(documents, LENGTH)
    assert len(packed) < len(documents)
    batch = {
        name: torch.from_numpy(values)
        for name, values in packed.batch(0, len(packed), 0, 0, len(packed)).items()
    }
    with torch.no_grad():
        together = model.hidden_states(batch["tokens"], ends=batch["ends"])
        alone = {}
        for document in documents:
            alone[tuple(document.inputs)] = model.hidden_states(torch.from_numpy(document.inputs)[None])[0]
        for row in range(len(packed)):
            ends = [0, *sorted(set(batch["ends"][row].tolist()))]
            assert ends[-1] == LENGTH
            for start, end in pairwise(ends):
                ids = tuple(batch["tokens"][row, start:end].tolist())
                if ids in alone:  # else it is what is left of the window
                    assert torch.allclose(together[row, start:end], alone.pop(ids), atol=1e-5)
        assert not alone


def test_the_loss_is_the_mean_over_what_is_trained():
    model, documents = build(), talks()
    packed = PackedConversations(documents, LENGTH)
    batch = {
        name: torch.from_numpy(values)
        for name, values in packed.batch(0, len(packed), 0, 0, len(packed)).items()
    }
    n_trained = packed.trained_targets(0, len(packed), 0)
    loss = ConversationObjective().loss(model, batch) / n_trained
    nats = [
        -log_probabilities(model, *(torch.from_numpy(part)[None] for part in (d.inputs, d.targets))).item()
        for d in documents
    ]
    assert n_trained == sum(int(document.trained[1:].sum()) for document in documents)
    assert loss.item() == pytest.approx(sum(nats) / n_trained, rel=1e-5)


def test_adapters_begin_as_nothing_and_merge_to_the_same():
    for kind in ("lora", "dora"):
        model, x = build(), torch.randint(50, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        plain = model(x)
        LowRankAdapter(kind=kind, rank=4).add_to(model, seed=1)
        assert torch.allclose(model(x), plain, atol=1e-5)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        moved = model(x)
        assert (moved - plain).abs().max() > 0.1
        merge_adapters(model)
        assert not [name for name, _ in model.named_parameters() if "lora" in name]
        assert torch.allclose(model(x), moved, atol=1e-5)


def test_adapters_are_put_beside_matrices_without_the_package_that_fetches_kernels(
    monkeypatch: pytest.MonkeyPatch,
):
    import peft

    seen = []
    inject = peft.inject_adapter_in_model

    def look(*arguments: object, **named: object):
        seen.append("kernels" in sys.modules and sys.modules["kernels"] is None)
        return inject(*arguments, **named)

    monkeypatch.setattr("peft.inject_adapter_in_model", look)
    LowRankAdapter(rank=2).add_to(build(), seed=1)
    assert seen == [True]
    assert "kernels" not in sys.modules


def test_flops_are_those_of_the_windows_and_of_what_is_trained(tmp_path: Path):
    documents = [Document(np.arange(1, 40), np.ones(39, bool))]
    whole = spec(tmp_path, documents)
    windows = whole.model_copy(update={"context_length": whole.window_length // 2})
    adapted = whole.model_copy(update={"adapter": LowRankAdapter(rank=1)})
    assert whole.flops_per_token == flops_per_token(whole.model, 50)
    assert windows.flops_per_token < whole.flops_per_token
    assert 2 / 3 < adapted.flops_per_token / whole.flops_per_token < 1


def spec(folder: Path, documents: list[Document], **fields) -> TrainSpec:
    base = folder / "base"
    if not base.exists():
        save_model(build(), base, "x")
    shard = folder / "train.arrow"
    write_tokens(
        shard,
        [document.ids[1:] for document in documents],
        [str(i) for i in range(len(documents))],
        ["s"] * len(documents),
        [1] * len(documents),
        tokenizer_sha256="x",
        vocabulary_size=50,
        end_of_text_id=0,
        trained=[document.trained[1:] for document in documents],
    )
    (folder / "token_bytes.json").write_text(json.dumps([0] + [1] * 49))
    train = {
        "tokens": 40 * 4 * LENGTH,
        "tokens_per_batch": 4 * LENGTH,
        "optimizer": "adamw",
        "learning_rate": 0.01,
    }
    train |= {"warmup_fraction": 0.1, "decay_fraction": 0.9, "evaluations": 1}
    (folder / "work").mkdir(exist_ok=True)
    values = {
        "model": ModelConfig(**SMALL),
        "train": TrainConfig(**train),
        "train_shards": [shard],
        "validation_shards": [shard],
        "machine": TrainingMachine(threads=1, ranks=1, device="cpu"),
        "token_bytes": folder / "token_bytes.json",
        "tokenizer_sha256": "x",
        "vocabulary_size": 50,
        "work": folder / "work",
        "out": folder / "out",
        "start": base,
        "objective": ConversationObjective(),
    }
    return TrainSpec.model_validate({**values, **fields})


def test_in_bfloat16_what_is_frozen_is_rounded_before_it_is_on_the_device(tmp_path: Path):
    described = spec(tmp_path, talks(), adapter=LowRankAdapter(rank=4))
    train = described.train.model_copy(update={"dtype": "bfloat16"})
    first = FirstModel(described.model_copy(update={"train": train}))
    dtypes = {weight.requires_grad: weight.dtype for weight in first.model.parameters()}
    assert dtypes == {False: torch.bfloat16, True: torch.float32}
    assert {value.dtype for value in whole_model(described).parameters()} == {torch.float32}


def test_adapters_of_matrices_that_the_base_lacks_are_refused():
    config = ModelConfig(**SMALL).model_copy(update={"feed_forward": "gelu"})
    LowRankAdapter(targets=("gate_proj", "up_proj")).check_targets(config)
    with pytest.raises(InputError, match=r"targets \(gate_proj\): the base has none of them; it has q_proj"):
        LowRankAdapter(targets=("gate_proj",)).check_targets(config)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "work" / "metrics.jsonl").read_text().splitlines()]


def test_tokens_with_a_mask_come_back(tmp_path: Path):
    spec(tmp_path, talks())
    found = documents_of([open_tokens(tmp_path / "train.arrow")])
    for ours, theirs in zip(talks(), found, strict=True):
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.trained.tolist() == theirs.trained.tolist()


def test_micro_batches_change_no_loss(tmp_path: Path):
    seen = []
    for i, windows in enumerate((4, 1)):
        folder = tmp_path / str(i)
        folder.mkdir()
        machine = TrainingMachine(threads=1, ranks=1, device="cpu", windows_per_micro_batch=windows)
        train_here(spec(folder, talks(), machine=machine))
        seen.append(losses(folder))
    assert np.allclose(seen[0], seen[1], rtol=1e-4)
    assert seen[0][-1] < 0.6 * seen[0][0]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("fields", [VARIANTS[0], VARIANTS[5]])
def test_stock_peft_loads_the_adapter_on_the_exported_base(tmp_path: Path, kind: str, fields: dict):
    import peft

    base = build(**fields)
    save_model(base, tmp_path / "base", "x")
    adapter = LowRankAdapter(kind=kind, rank=4)
    figures = train_here(spec(tmp_path, talks(), adapter=adapter, model=base.config))
    assert figures["trained_parameters"] < figures["parameters"]
    assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]
    tuned, _ = load_model(tmp_path / "out")
    describe_adapter(adapter, tmp_path / "base", tmp_path / "out")
    write_adapter_folder(tmp_path / "out", base.config, tmp_path / "adapter")
    config = hugging_face_config(base.config, 50, 0)
    stock = getattr(transformers, f"{class_name(base.config)}ForCausalLM")(config).eval()
    stock.load_state_dict(hugging_face_weights(base.state_dict(), base.config), strict=False)
    loaded = peft.PeftModel.from_pretrained(stock, tmp_path / "adapter").eval()
    x = torch.randint(50, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (loaded(x).logits - tuned(x)).abs().max() < 1e-5 * max(1.0, tuned(x).abs().max().item())
        assert (base(x) - tuned(x)).abs().max() > 0.01
        ours = build(**fields).eval()
        apply_adapter_folder(ours, tmp_path / "adapter")
        assert (ours(x) - tuned(x)).abs().max() < 1e-5 * max(1.0, tuned(x).abs().max().item())
    written = (tmp_path / "adapter" / "adapter_config.json").read_text()
    for other in ({"use_rslora": True}, {"alpha_pattern": {"q_proj": 64}}, {"init_lora_weights": "pissa"}):
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(json.loads(written) | other))
        with pytest.raises(InputError, match=f"has {next(iter(other))} .* does not compute"):
            apply_adapter_folder(build(**fields), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(written)
    with pytest.raises(InputError, match="was trained on another base"):
        apply_adapter_folder(build(seed=1, **fields), tmp_path / "adapter")
    (tmp_path / "adapter" / "base.json").unlink()
    with pytest.raises(InputError, match="does not fit"):
        apply_adapter_folder(build(**{**fields, "d_model": 64}), tmp_path / "adapter")


@pytest.mark.parametrize("stage", [1, 3])
def test_a_frozen_base_is_computed_with_in_bfloat16_and_kept_as_it_was(
    tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch
):
    types: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    forward = Learner.forward

    def look(learner: Learner, tokens: torch.Tensor, *arguments, **named):
        for name, weight in learner.model.named_parameters():
            types[weight.requires_grad].add(weight.dtype)
            assert weight.requires_grad or weight.grad is None, name
        return forward(learner, tokens, *arguments, **named)

    monkeypatch.setattr(Learner, "forward", look)
    machine = TrainingMachine(threads=1, ranks=1, device="cpu", zero_stage=stage)
    described = spec(tmp_path, talks(), machine=machine, adapter=LowRankAdapter(rank=4))
    train = described.train.model_copy(update={"dtype": "bfloat16"})
    train_here(described.model_copy(update={"train": train}))
    assert types == {True: {torch.bfloat16}, False: {torch.bfloat16}}
    assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]
    base = load_model(tmp_path / "base")[0].state_dict()
    tuned = load_model(tmp_path / "out")[0].state_dict()
    moved = {name for name, weight in base.items() if not torch.equal(weight, tuned[name])}
    assert moved == {name for name in base if name.split(".")[-2] in LowRankAdapter().targets}
    # What the optimizer moves is float32, and so it is written: rounded to bfloat16 it would be less.
    trained = load_file(tmp_path / "out" / ADAPTER_WEIGHTS)
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in trained.values())


def test_a_base_in_four_bits_is_trained_beside_and_merged_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held: dict[str, torch.dtype] = {}
    forward = Learner.forward

    def look(learner: Learner, tokens: torch.Tensor, *arguments, **named):
        held.update((name, weight.dtype) for name, weight in learner.model.named_parameters())
        return forward(learner, tokens, *arguments, **named)

    monkeypatch.setattr(Learner, "forward", look)
    first = {}
    for base in ("full", "nf4"):
        for dtype in ("float32", "bfloat16"):
            folder = tmp_path / base / dtype
            folder.mkdir(parents=True)
            described = spec(folder, talks(), adapter=LowRankAdapter(rank=4, base=base))
            train = described.train.model_copy(update={"dtype": dtype})
            held.clear()
            train_here(described.model_copy(update={"train": train}))
            frozen = {name: type_ for name, type_ in held.items() if "base_layer" in name}
            assert set(frozen.values()) == {torch.uint8 if base == "nf4" else getattr(torch, dtype)}
            assert held["embedding.weight"] == held["lm_head.weight"] == getattr(torch, dtype)
            assert losses(folder)[-1] < 0.8 * losses(folder)[0]
            before = load_model(folder / "base")[0].state_dict()
            first[base, dtype] = losses(folder)[0]
            after = load_model(folder / "out")[0].state_dict()
            for name, weight in before.items():
                # What was trained is of rank 4, and nothing else was added: no error of four bits.
                strengths = torch.linalg.svdvals(torch.atleast_2d(after[name] - weight))
                if name.split(".")[-2] in LowRankAdapter().targets:
                    assert strengths[4] < 1e-4 * strengths[0]
                else:
                    assert not strengths.any()
    assert first["nf4", "float32"] == pytest.approx(first["full", "float32"], rel=0.05)
    assert first["nf4", "float32"] != first["full", "float32"]


def test_a_base_in_four_bits_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("whole", "twice"):
        (tmp_path / name).mkdir()
    adapter = LowRankAdapter(rank=4, base="nf4")
    machine = TrainingMachine(threads=1, ranks=1, device="cpu", checkpoint_every_seconds=0)
    described = {
        name: spec(tmp_path / name, talks(), adapter=adapter, machine=machine) for name in ("whole", "twice")
    }
    train_here(described["whole"])

    class Enough(Exception):
        pass

    def stop(done: int, *_: object) -> None:
        if done >= described["twice"].train.tokens // 2:
            raise Enough

    with pytest.raises(Enough):
        train_here(described["twice"], stop)
    assert train_here(described["twice"])["resumed_from_step"]
    weights = [(tmp_path / name / "out" / "model.safetensors").read_bytes() for name in described]
    assert weights[0] == weights[1]


def test_lengths_of_rows_that_are_rounded_are_not_trained():
    with pytest.raises(ValidationError, match="set kind to lora, or base to full"):
        LowRankAdapter(kind="dora", base="nf4")


def test_a_base_in_four_bits_cannot_be_cut_up(tmp_path: Path):
    machine = TrainingMachine(ranks=1, device="cpu", zero_stage=3)
    described = spec(tmp_path, talks(), adapter=LowRankAdapter(base="nf4"), machine=machine)
    with pytest.raises(InputError, match=r"zero_stage 3 .* nf4 .* set machine\.zero_stage to 2"):
        settled(described)
    two = machine.model_copy(update={"ranks": 2, "zero_stage": "auto", "memory_gigabytes": 1e-6})
    laid_out = settled(described.model_copy(update={"machine": two}), is_elsewhere=True)
    assert laid_out.machine.zero_stage == 2


@pytest.mark.parametrize("adapter", [None, LowRankAdapter(rank=4)])
def test_preferences_make_the_chosen_side_likelier(tmp_path: Path, adapter: LowRankAdapter | None):
    generator = np.random.default_rng(1)
    documents = []
    for _ in range(16):
        start = [0, *generator.integers(1, 50, 4)]
        for answer in (7, 8):
            ids = np.array([*start, answer, 0], np.uint16)
            documents.append(Document(ids, np.array([0] * 5 + [1, 1], np.uint8)))
    base = build().eval()

    def gains(model) -> np.ndarray:
        pairs = PreferencePairs(documents, np.zeros(len(documents), np.float32), LENGTH)
        rows = {name: torch.from_numpy(values) for name, values in pairs.rows(range(len(pairs))).items()}
        with torch.no_grad():
            return packed_log_probabilities(model, rows).view(-1, 2).numpy()

    before = gains(base)
    np.save(tmp_path / "reference.npy", before.reshape(-1).astype(np.float32))
    made = spec(
        tmp_path,
        documents,
        objective=PreferenceObjective(beta=0.1, reference=tmp_path / "reference.npy"),
        adapter=adapter,
    )
    train_here(made)
    assert losses(tmp_path)[0] == pytest.approx(np.log(2), rel=1e-4)
    assert losses(tmp_path)[-1] < 0.3
    after = gains(load_model(tmp_path / "out")[0])
    assert ((after - before)[:, 0] > (after - before)[:, 1]).all()


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 299), max_size=20), n_tokens=st.integers(1, 2_000))
def test_pairs_are_packed_and_each_side_is_found_again(lengths: list[int], n_tokens: int):
    documents = [
        Document((np.arange(n + side) * (n + side) % 50).astype(np.uint16), np.ones(n + side, np.uint8))
        for n in lengths
        for side in (0, 1)
    ]
    pairs = PreferencePairs(documents, np.arange(len(documents), dtype=np.float32), 300)
    groups = list(pairs.in_groups(n_tokens))
    assert [index for group in groups for index in group] == list(range(len(lengths)))
    for group in groups:
        rows = pairs.rows(group)
        sides = [side for index in group for side in (2 * index, 2 * index + 1)]
        size = sum(len(documents[side]) for side in sides)
        assert len(group) == 1 or size <= n_tokens
        assert rows["tokens"].shape[1] <= 300
        # Never more windows than if each side had one of its own, and about half of them filled, or more.
        assert len(rows["tokens"]) <= min(len(sides), 2 * size / 300 + 1)
        assert rows["reference"].tolist() == sides
        tokens = rows["tokens"].reshape(-1)
        n_places = len(rows["places"])
        assert size <= n_places < size + 64  # no more than are trained, but for what fills them up
        assert (rows["targets"] != IGNORED).sum() == size
        for numbers, side in zip(rows["of_sides"], sides, strict=True):
            numbers = numbers[numbers < n_places]
            own = rows["places"][numbers]
            assert (tokens[own] == documents[side].inputs).all()
            assert (rows["targets"][numbers] == documents[side].targets).all()
            if not len(own):
                continue
            # It is a document of its own in its window.
            row, first = divmod(int(own[0]), rows["tokens"].shape[1])
            ends = [0, *rows["ends"][row].tolist()]
            assert {first, first + len(own)} <= {*ends}
            assert rows["positions"].reshape(-1)[own].tolist() == list(range(len(own)))


def test_the_loss_of_packed_pairs_is_that_of_each_side_alone():
    model, documents = build(), talks()
    reference = np.linspace(-3, 3, len(documents)).astype(np.float32)
    pairs = PreferencePairs(documents, reference, LENGTH)
    rows = {name: torch.from_numpy(values) for name, values in pairs.rows(range(len(pairs))).items()}
    assert len(rows["tokens"]) < len(documents)
    loss = PreferenceObjective(beta=0.1, reference=Path("none")).loss(model, rows)
    loss.backward()
    packed = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    gains = [
        log_probabilities(model, torch.from_numpy(d.inputs)[None], torch.from_numpy(d.targets)[None]) - nats
        for d, nats in zip(documents, reference.tolist(), strict=True)
    ]
    alone = -sum(
        torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))
        for chosen, rejected in zip(gains[::2], gains[1::2], strict=True)
    )
    alone.backward()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        assert torch.allclose(packed[name], weight.grad, atol=1e-5), name


def refer(tokens: Path, base: Path, out: Path, ranks: int = 1, dtype: str = "float32", held: str = "full"):
    """What a base thinks of the documents of a token file."""
    (out / "work").mkdir(exist_ok=True, parents=True)
    reference_log_probabilities.fn(
        ReferenceLogProbabilitiesConfig(context_length=LENGTH, dtype=dtype, base=held),
        tokens=Artifact(tokens, (tokens,)),
        base=Artifact(base),
        out=out,
        work=out / "work",
        machine=Machine(device="cpu", threads=1, ranks=ranks),
    )
    return np.load(out / "reference.npy")


@pytest.mark.end_to_end
def test_ranks_share_what_the_reference_reads(tmp_path: Path):
    made = spec(tmp_path, talks(64))
    one = refer(tmp_path, made.start, tmp_path / "one")
    assert np.isfinite(one).all()
    assert len(set(one.tolist())) > 8
    assert refer(tmp_path, made.start, tmp_path / "two", ranks=2).tolist() == pytest.approx(
        one.tolist(), rel=1e-4
    )


@pytest.mark.parametrize(("dtype", "base"), [("float32", "full"), ("bfloat16", "full"), ("bfloat16", "nf4")])
def test_the_first_loss_of_preferences_is_that_of_no_preference(tmp_path: Path, dtype: str, base: str):
    """The reference is computed in the type of the training, and with the base held alike, so that both agree before the first step."""
    documents = talks(64)
    made = spec(
        tmp_path,
        documents,
        objective=PreferenceObjective(beta=5.0, reference=tmp_path / "reference.npy"),
        adapter=LowRankAdapter(base=base) if base == "nf4" else None,
    )
    made = made.model_copy(update={"train": made.train.model_copy(update={"dtype": dtype})})
    refer(tmp_path, made.start, tmp_path, dtype=dtype, held=base)
    train_here(made)
    assert losses(tmp_path)[0] == pytest.approx(np.log(2), abs=1e-5 if dtype == "float32" else 1e-3)


def test_a_model_tuned_in_short_windows_keeps_its_context(tmp_path: Path):
    made = spec(tmp_path, talks(), context_length=LENGTH - 2)
    train_here(made)
    assert load_model(tmp_path / "out")[0].config.context_length == LENGTH


def test_the_chat_template_is_shipped_only_where_it_was_trained():
    assert not ExportModelConfig().chat
