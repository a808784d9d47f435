"""export_model: the trained model as a Hugging Face folder that stock `transformers` loads."""

from pathlib import Path

from tasks.engine.stage import Artifact, Metrics, stage
from tasks.training.hugging_face_folder import ExportModelConfig, write_hugging_face_folder


@stage(libraries=("torch", "transformers", "tokenizers", "safetensors", "jinja2"), role="export")
def export_model(config: ExportModelConfig, model: Artifact, tokenizer: Artifact, out: Path) -> Metrics:
    """Write a folder for `transformers.from_pretrained`: config, safetensors, tokenizer, generation config, model card.

    Raises:
        StageFailed: if model and tokenizer do not belong together, or logits of what was
            written differ from ours by more than `max_logit_difference`.
    """
    return write_hugging_face_folder(config, model.path, tokenizer.path, out)
