"""Fine-tuning beside Hugging Face: full, LoRA and DoRA, ours and `peft` with transformers' Trainer, on the same base.

    python benchmarks/finetuning.py --base FOLDER --train train.jsonl --held-out held_out.jsonl [--epochs 2]

FOLDER is an exported model. Both read the same token ids and masks, with AdamW, the same rate, schedule,
clipping and epochs, float32. Ours packs conversations into windows of the context; the Trainer pads batches of
as many conversations. Each training is a process of its own; its memory is the largest resident size of that process,
tokens are those of the conversations, without padding, and seconds those of the training steps.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

METHODS = ("full", "lora", "dora")
RANK, ALPHA = 8, 16
RATES = {"full": 1e-3, "lora": 3e-3, "dora": 3e-3}


def encode(path: Path, base: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and mask of every conversation of a JSONL file."""
    from model.chat_template import encode_conversation, fast_tokenizer
    from model.tokenizer import load_tokenizer
    from tasks.text.conversation_shapes import messages_of

    fast = fast_tokenizer(load_tokenizer(base), chat=True)
    return [
        encode_conversation(fast, messages_of(json.loads(line))) for line in path.read_text().splitlines()
    ]


def held_out_loss(model: Any, conversations: list[tuple[list[int], list[int]]]) -> float:
    """Mean nats of a token that is learnt, over held-out conversations."""
    import torch

    from model.loss import log_probabilities

    nats = n_tokens = 0.0
    for ids, mask in conversations:
        tokens = torch.tensor([ids])
        targets = torch.where(torch.tensor([mask]) == 1, tokens, -100)[:, 1:]
        with torch.no_grad():
            nats -= log_probabilities(model, tokens[:, :-1], targets).item()
        n_tokens += sum(mask)
    return nats / n_tokens


def ours(method: str, given: argparse.Namespace, work: Path) -> tuple[Any, float]:
    """Train with our loop under DeepSpeed; returns the model and the seconds of its steps."""
    from model.adapters import LowRankAdapter
    from model.config import TrainConfig
    from model.hugging_face import load_hugging_face_folder
    from model.machine import TrainingMachine
    from model.objectives.conversations import ConversationObjective, PackedConversations
    from model.objectives.masked_documents import documents_of
    from model.tokens import open_tokens, write_tokens
    from model.train_spec import TrainSpec
    from model.weights import load_model, save_model
    from tasks.training.rank import train_here

    base = load_hugging_face_folder(given.base)
    save_model(base, work / "base", "x")
    conversations = encode(given.train, given.base)
    shard = work / "train.arrow"
    write_tokens(
        shard,
        [np.array(ids[1:]) for ids, _ in conversations],
        [str(i) for i in range(len(conversations))],
        ["s"] * len(conversations),
        [1] * len(conversations),
        tokenizer_sha256="x",
        vocabulary_size=base.vocabulary_size,
        end_of_text_id=conversations[0][0][0],
        trained=[np.array(mask[1:], np.uint8) for _, mask in conversations],
    )
    (work / "token_bytes.json").write_text(json.dumps([1] * base.vocabulary_size))
    length = base.config.context_length
    n_rows = len(PackedConversations(documents_of([open_tokens(shard)]), length))
    n_steps = math.ceil(given.epochs * n_rows / given.windows)
    batch = given.windows * length
    train = TrainConfig(
        tokens=n_steps * batch,
        tokens_per_batch=batch,
        optimizer="adamw",
        learning_rate=RATES[method],
        gradient_clipping=1.0,
        warmup_fraction=0.05,
        decay_fraction=0.95,
        evaluations=0,
    )
    (work / "work").mkdir()
    spec = TrainSpec(
        model=base.config,
        train=train,
        machine=TrainingMachine(ranks=1, device="cpu", checkpoint_every_seconds=1e9),
        train_shards=[shard],
        validation_shards=[shard],
        token_bytes=work / "token_bytes.json",
        tokenizer_sha256="x",
        vocabulary_size=base.vocabulary_size,
        work=work / "work",
        out=work / "out",
        start=work / "base",
        objective=ConversationObjective(),
        adapter=None if method == "full" else LowRankAdapter(kind=method, rank=RANK, alpha=ALPHA),  # type: ignore[arg-type]
    )
    figures = train_here(spec)
    return load_model(work / "out")[0], figures["step_seconds"]


def theirs(method: str, given: argparse.Namespace, work: Path) -> tuple[Any, float]:
    """Train with `peft` and transformers' Trainer; returns the model as ours and the seconds of its steps."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from model.hugging_face import load_hugging_face_folder
    from model.objectives.conversations import pack

    model = transformers.AutoModelForCausalLM.from_pretrained(given.base, dtype=torch.float32)
    length = model.config.max_position_embeddings
    conversations = encode(given.train, given.base)
    per_window = len(conversations) / len(pack([len(ids) - 1 for ids, _ in conversations], length))
    if method != "full":
        config = LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            use_dora=method == "dora",
            task_type="CAUSAL_LM",
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        )
        model = get_peft_model(model, config)  # type: ignore[assignment]
    rows = [
        {"input_ids": ids, "labels": [token if own else -100 for token, own in zip(ids, mask, strict=True)]}
        for ids, mask in conversations
    ]

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
        return {
            "input_ids": padded("input_ids", 0),
            "labels": padded("labels", -100),
            "attention_mask": torch.tensor(mask),
        }

    arguments = transformers.TrainingArguments(
        output_dir=str(work / "trainer"),
        num_train_epochs=given.epochs,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        per_device_train_batch_size=round(given.windows * per_window),
        learning_rate=RATES[method],
        lr_scheduler_type="linear",
        warmup_steps=0.05,
        max_grad_norm=1.0,
        adam_beta2=0.95,
        adam_epsilon=1e-10,
        weight_decay=0.0,
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)  # type: ignore[arg-type]
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    final = model if method == "full" else model.merge_and_unload()  # type: ignore[operator]
    final.save_pretrained(work / "tuned")
    return load_hugging_face_folder(work / "tuned"), seconds


def one(given: argparse.Namespace) -> None:
    """One training, in a process of its own; prints its figures as JSON."""
    who, method = given.one
    with tempfile.TemporaryDirectory() as folder:
        model, seconds = (ours if who == "ours" else theirs)(method, given, Path(folder))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        loss = held_out_loss(model, encode(given.held_out, given.base))
    n_tokens = given.epochs * sum(len(ids) for ids, _ in encode(given.train, given.base))
    print(json.dumps({"seconds": seconds, "memory": memory, "loss": loss, "speed": n_tokens / seconds}))


def main() -> None:
    """Train by every method, ours and theirs in turn, and print a table."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--base", type=Path, required=True, help="folder of an exported model")
    options.add_argument("--train", type=Path, required=True, help="JSONL of conversations")
    options.add_argument("--held-out", type=Path, required=True, help="JSONL of conversations")
    options.add_argument("--epochs", type=float, default=2, help="times that each conversation is trained on")
    options.add_argument("--windows", type=int, default=8, help="windows of the context in one step of ours")
    options.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        one(given)
        return
    print(f"{os.cpu_count()} cores, {given.epochs:g} epochs\n")
    print(
        "| method | whose | seconds | tokens a second | peak memory, MB | held-out loss, nats |\n|---|---|---|---|---|---|"
    )
    for method in METHODS:
        for who in ("ours", "Trainer"):
            done = subprocess.run(
                [sys.executable, *sys.argv, "--one", who, method],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {method} | {who} | {found['seconds']:.1f} | {found['speed']:,.0f} | {found['memory'] / 1e6:,.0f} | {found['loss']:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
