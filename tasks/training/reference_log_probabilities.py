"""reference_log_probabilities: what the base thinks of each side of the preference pairs, computed once."""

from pathlib import Path

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
    torch.set_num_threads(resolved.threads or torch.get_num_threads())
    model = load_model(base.path)[0].to(resolved.device)
    documents = documents_of([open_tokens(tokens.path / "train.arrow")])
    pairs = PreferencePairs(documents, np.zeros(len(documents), np.float32), config.context_length)
    nats = []
    with torch.no_grad():
        for i in range(len(pairs)):
            # One pair at a time: what is computed does not depend on what else is in a batch.
            row = pairs.pair(i)
            inputs, targets = (
                torch.from_numpy(row[name]).to(resolved.device) for name in ("tokens", "targets")
            )
            nats.append(log_probabilities(model, inputs, targets).cpu().numpy())
            progress(i + 1, len(pairs), "pairs")
    np.save(out / REFERENCE, np.concatenate(nats).astype(np.float32) if nats else np.empty(0, np.float32))
    return {"pairs": len(pairs)}
