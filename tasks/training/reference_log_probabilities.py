"""reference_log_probabilities: what the base thinks of each side of the preference pairs, computed once."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from model.base_config import Config
from tasks.engine.machine import Machine
from tasks.engine.progress import progress
from tasks.engine.stage import Artifact, Metrics, Shard, map_stage
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


_TOKENS_AT_ONCE = 16_384


@map_stage(libraries=("torch", "numpy", "pyarrow", "xxhash", "safetensors"))
def reference_log_probabilities(
    config: ReferenceLogProbabilitiesConfig, tokens: Shard, base: Artifact, out: Path, machine: Machine
) -> Metrics:
    """Write reference.npy: summed log-probability of the trained tokens of each document of train.arrow, float32, in nats."""
    import numpy as np
    import torch

    from model.loss import log_probabilities
    from model.objectives.masked_documents import documents_of
    from model.objectives.preferences import PreferencePairs
    from model.tokens import open_tokens
    from model.weights import load_model

    resolved = machine.training()
    device: str = resolved.device
    if device == "cuda":
        # Workers share the devices of this computer; which of them has which changes no value.
        device = f"cuda:{os.getpid() % torch.cuda.device_count()}"
    torch.set_num_threads(resolved.threads or torch.get_num_threads())
    model = load_model(base.path)[0].to(device)
    if config.dtype == "bfloat16":
        model.bfloat16().fill_tables()
    documents = documents_of([open_tokens(tokens.path / "train.arrow")])
    pairs = PreferencePairs(documents, np.zeros(len(documents), np.float32), config.context_length)
    nats = np.empty((len(pairs), 2), np.float32)
    with torch.no_grad():
        done = 0
        for indices in pairs.alike_in_length(_TOKENS_AT_ONCE):
            rows = pairs.rows(indices)
            sides = (
                torch.from_numpy(rows[name]).flatten(0, 1).to(device)
                for name in ("tokens", "targets", "places")
            )
            nats[indices] = log_probabilities(model, *sides).float().cpu().numpy().reshape(-1, 2)
            done += len(indices)
            progress(done, len(pairs), "pairs")
    np.save(out / REFERENCE, nats.reshape(-1))
    return {"pairs": len(pairs)}
