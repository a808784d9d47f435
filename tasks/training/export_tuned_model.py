"""export_tuned_model: a model that was trained further as a Hugging Face folder, with the adapter if one was trained."""

import json
from pathlib import Path

from model.adapters import ADAPTER_WEIGHTS
from model.config import ModelConfig
from tasks.engine.stage import Artifact, Metrics, stage
from tasks.training.hugging_face_folder import ExportModelConfig, write_hugging_face_folder


@stage(libraries=("torch", "transformers", "tokenizers", "safetensors", "jinja2", "peft"), role="export")
def export_tuned_model(config: ExportModelConfig, model: Artifact, tokenizer: Artifact, out: Path) -> Metrics:
    """Write what export_model writes, adapters merged, and adapter/ for stock `peft` on the exported base.

    Raises:
        StageFailed: if model and tokenizer do not belong together, or logits differ.
    """
    from model.adapter_folder import write_adapter_folder

    figures = write_hugging_face_folder(config, model.path, tokenizer.path, out)
    if (model.path / ADAPTER_WEIGHTS).exists():
        shape = ModelConfig.model_validate(json.loads((model.path / "model.json").read_text())["model"])
        write_adapter_folder(model.path, shape, out / "adapter")
    return figures
