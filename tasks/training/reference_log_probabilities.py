"""reference_log_probabilities: what the base thinks of each side of the preference pairs, computed once."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model.base_config import Config
from model.machine import TrainingMachine
from tasks.engine.machine import Machine
from tasks.engine.on_ranks import call_on_ranks
from tasks.engine.ranks import Rank
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.reading import gathered, reading, share_of
from tasks.training.quantizer import quantizer_version
from tasks.training.reference import REFERENCE


class ReferenceLogProbabilitiesConfig(Config):
    """How the base is read."""

    context_length: int = Field(
        ge=8, description="Longest conversation, in tokens: as in tokenize_conversations, filled in."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Compute type: that of the training, filled in. With another one the tuned model would differ from its "
        "reference before its first step.",
    )
    base: Literal["full", "nf4"] = Field(
        "full", description="How the base is held: as in the adapter that is trained, filled in."
    )


_TOKENS_AT_ONCE = 16_384


def refer_as_rank(arguments: dict[str, Any], rank: Rank) -> Metrics:
    """Read the pairs that are this rank's; the first rank writes what all of them found."""
    import numpy as np
    import torch

    from model.objectives.masked_documents import documents_of
    from model.objectives.preferences import PreferencePairs, packed_log_probabilities
    from model.quantized import holder
    from model.tokens import open_tokens
    from model.weights import load_model

    config = ReferenceLogProbabilitiesConfig.model_validate(arguments["config"])
    documents = documents_of([open_tokens(Path(shard) / "train.arrow") for shard in arguments["tokens"]])
    pairs = PreferencePairs(documents, np.zeros(len(documents), np.float32), config.context_length)
    groups = list(pairs.in_groups(_TOKENS_AT_ONCE))
    parts: list[np.ndarray] = []
    with reading(TrainingMachine.model_validate(arguments["machine"]), rank) as device, torch.no_grad():
        # As in training, so that both are alike before its first step.
        torch.set_float32_matmul_precision("high")
        # Each matrix goes to the device alone, which need not have room for all of them.
        hold = holder(config.dtype, device) if config.base == "nf4" else None
        model = load_model(Path(arguments["base"]), hold)[0]
        if config.dtype == "bfloat16":
            model.bfloat16()
        model.to(device).fill_tables()
        rank.enter("step")
        done = 0
        for indices in share_of(groups, rank):
            rows = pairs.rows(indices)
            on_device = {name: torch.from_numpy(values).to(device) for name, values in rows.items()}
            parts.append(packed_log_probabilities(model, on_device).float().cpu().numpy().reshape(-1, 2))
            done += len(indices)
            rank.progress(min(len(pairs), rank.count * done), len(pairs), "pairs")
        parts = gathered(rank, parts)
    if rank.number:
        return {}
    nats = np.empty((len(pairs), 2), np.float32)
    for indices, part in zip(groups, parts, strict=True):
        nats[indices] = part
    np.save(Path(arguments["out"]) / REFERENCE, nats.reshape(-1))
    return {"pairs": len(pairs)}


@stage(
    libraries=("torch", "numpy", "pyarrow", "xxhash", "safetensors"),
    role="evaluate",
    fingerprint=lambda config, digests: quantizer_version(config.base),
)
def reference_log_probabilities(
    config: ReferenceLogProbabilitiesConfig,
    tokens: Artifact,
    base: Artifact,
    out: Path,
    work: Path,
    machine: Machine,
) -> Metrics:
    """Write reference.npy: summed log-probability of the trained tokens of each document, shard after shard, float32, in nats.

    Ranks share the pairs.
    """
    arguments = {
        "config": config.model_dump(mode="json"),
        "tokens": [str(shard) for shard in tokens.shards],
        "base": str(base.path),
        "out": str(out),
    }
    metrics: Metrics = call_on_ranks(refer_as_rank, arguments, machine, work)
    return metrics
