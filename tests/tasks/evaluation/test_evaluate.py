"""How lm-eval's answers become figures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.errors import InputError, StageFailed
from tasks.benchmarks.items import Benchmarks, check_tasks, fingerprint_benchmarks
from tasks.engine.keys import digest
from tasks.engine.ranks import Rank
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact
from tasks.evaluation.evaluate_held_out import _measure
from tasks.evaluation.evaluate_model import EvaluateModelConfig, _item, _score, evaluate_model


def sample(scores: list[float], target: int, answers: list[str], item: int = 0) -> dict:
    """A multiple-choice answer in the shape of lm-eval's logged samples."""
    arguments = {f"gen_args_{i}": {"arg_0": "Question", "arg_1": answer} for i, answer in enumerate(answers)}
    best = scores.index(max(scores))
    return {
        "doc_id": item,
        "target": str(target),
        "arguments": arguments,
        "acc": float(best == target),
        "filtered_resps": [(score, False) for score in scores],
    }


def test_an_item_is_its_right_answer():
    row = _item("t", sample([-3.0, -2.0, -5.0], 1, [" a", " bé", " c"]))
    assert row["correct"] == 1.0
    assert (row["gold_nats"], row["gold_bytes"]) == (2.0, 4)
    assert row["chance"] == pytest.approx(1 / 3)
    assert not row["tied"]


def test_figures_of_a_task():
    rows = [
        _item("t", sample([-1.0, -1.0], 0, [" ab", " c"], 0)),
        _item("t", sample([-4.0, -2.0], 0, [" x", " y"], 1)),
    ]
    score = _score("t", rows, {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.5})
    assert score["tied_items"] == 1
    assert score["chance"] == 0.5
    assert score["acc_stderr"] == 0.5
    assert score["answer_bits_per_byte"] == pytest.approx(5.0 / math.log(2) / 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_likelihood_that_is_not_finite_is_an_error(bad: float):
    with pytest.raises(StageFailed, match="item 7 is not finite"):
        _item("t", sample([-1.0, bad], 0, [" a", " b"], 7))


def test_weights_that_are_a_pickle_are_not_loaded(tmp_path: Path):
    """A pickle can hold any program. This one is harmless, and refused all the same."""
    import torch
    import transformers

    from tasks.engine.machine import Machine

    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.LlamaForCausalLM(config)
    config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"transformers cannot load the model: .*safetensors"):
        evaluate_model.fn(
            EvaluateModelConfig(tasks=("sciq",)),
            model=Artifact(tmp_path),
            out=tmp_path / "out",
            work=tmp_path / "work",
            machine=Machine(device="cpu"),
        )


def test_a_benchmark_that_does_not_exist():
    with pytest.raises(InputError, match="did you mean 'sciq'"):
        check_tasks(Benchmarks(tasks=("scqi",)))


def write_questions(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


OWN = [
    {"question": "Which bread rises by yeast?", "choices": ["sourdough", "matzo"], "answer": 0, "level": "x"},
    {"question": "What do yeasts eat?", "choices": ["salt", "sugar", "sand"], "answer": 1},
]


def of_bytes() -> Any:
    """A tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [],
        trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


def small() -> Any:
    """A model that nobody trained, for `of_bytes`."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=257, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return transformers.LlamaForCausalLM(config)


def test_a_base_whose_tokenizer_writes_accents_in_its_own_way_is_measured():
    """On the text as that tokenizer has it."""
    from tokenizers import normalizers

    tokenizer, sizes = of_bytes(), np.array([0] + [1] * 256)
    tokenizer.normalizer = normalizers.NFC()
    texts = [("composed", "caf\u00e9"), ("decomposed", "cafe\u0301")]
    composed, decomposed = _measure(small(), tokenizer, sizes, texts, 2, "cpu", Rank())
    assert [row["bytes"] for row in (*composed, *decomposed)] == [5, 5]
    assert composed[0]["nats"] == pytest.approx(decomposed[0]["nats"])


def test_questions_of_ones_own_are_measured_and_looked_for_in_the_text(tmp_path: Path):
    """A tiny untrained model with a tokenizer of bytes; the figures are chance, the items are all there."""
    import transformers

    from tasks.engine.machine import Machine

    tokenizer = of_bytes()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    small().save_pretrained(tmp_path / "model")
    wrapped.save_pretrained(tmp_path / "model")
    # A name that is a pattern to some.
    questions = write_questions(tmp_path / "[baking].jsonl", [*OWN, ""])
    benchmarks = EvaluateModelConfig(tasks=(), questions=(str(questions),))
    out = tmp_path / "out"
    out.mkdir()
    metrics = evaluate_model.fn(
        benchmarks,
        model=Artifact(tmp_path / "model"),
        out=out,
        work=tmp_path / "work",
        machine=Machine(device="cpu", threads=1),
    )
    assert metrics["benchmarks"]["[baking]"]["items"] == 2
    assert metrics["benchmarks"]["[baking]"]["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)

    # Its name and content are in the key, where it lies is not.
    before = fingerprint_benchmarks(benchmarks, SourceDigests())
    (tmp_path / "moved").mkdir()
    moved = write_questions(tmp_path / "moved" / "[baking].jsonl", [*OWN, ""])
    elsewhere = EvaluateModelConfig(tasks=(), questions=(str(moved),))
    assert fingerprint_benchmarks(elsewhere, SourceDigests()) == before
    assert digest(elsewhere) == digest(benchmarks)
    write_questions(moved, OWN[:1])
    assert fingerprint_benchmarks(elsewhere, SourceDigests()) != before


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{", "line 2: not JSON"),
        ({"choices": ["a", "b"], "answer": 0}, "line 2: it has no question"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "line 2: it has no choices"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "line 2: its answer is 2"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, row: object, fault: str):
    path = write_questions(tmp_path / "own.jsonl", [OWN[0], row])
    with pytest.raises(InputError, match=fault):
        fingerprint_benchmarks(Benchmarks(tasks=(), questions=(str(path),)), SourceDigests())


def test_nothing_to_measure_loads_nothing(tmp_path: Path):
    from tasks.engine.machine import Machine

    metrics = evaluate_model.fn(
        EvaluateModelConfig(tasks=()),
        model=Artifact(tmp_path / "nowhere"),
        out=tmp_path,
        work=tmp_path,
        machine=Machine(device="cpu"),
    )
    assert metrics == {"benchmarks": {}}
    assert json.loads((tmp_path / "scores.json").read_text()) == metrics
