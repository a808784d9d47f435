"""import_model: a Hugging Face folder as a model and a tokenizer of ours, the inverse of export_model."""

import json
import shutil
from pathlib import Path

from model.errors import InputError
from model.hugging_face import load_hugging_face_folder
from model.tokenizer import TOKEN_BYTES, TOKENIZER, end_of_text_id, load_tokenizer, tokenizer_sha256
from tasks.engine.stage import Artifact, Metrics, stage


def bytes_of_tokens(folder: Path, vocabulary_size: int) -> list[int]:
    """Bytes of text that each id stands for; 0 for special tokens and for rows of the embedding without a token.

    Raises:
        InputError: if the tokenizer is not byte-level BPE, or has more ids than the model.
    """
    saved = json.loads((folder / TOKENIZER).read_text())
    decoders = saved.get("decoder") or {}
    kinds = {decoders.get("type"), *(part.get("type") for part in decoders.get("decoders", ()))}
    if saved["model"]["type"] != "BPE" or "ByteLevel" not in kinds:
        raise InputError(
            f"{folder / TOKENIZER} is no byte-level BPE tokenizer, as those of Llama 3 and Qwen are: take another model"
        )
    largest = max(
        [*saved["model"]["vocab"].values(), *(added["id"] for added in saved.get("added_tokens", ()))]
    )
    if largest >= vocabulary_size:
        raise InputError(
            f"{folder / TOKENIZER} has the id {largest}, and the model's embedding {vocabulary_size} rows: "
            "it is not the tokenizer of this model; put the right one there"
        )
    sizes = [0] * vocabulary_size
    for token, number in saved["model"]["vocab"].items():
        # In a byte-level vocabulary each character of an entry stands for one byte.
        sizes[number] = len(token)
    for added in saved.get("added_tokens", ()):
        sizes[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return sizes


@stage(libraries=("torch", "tokenizers", "safetensors", "transformers"))
def import_model(folder: Artifact, out: Path) -> Metrics:
    """Write model.safetensors (float32), model.json, tokenizer.json and token_bytes.json.

    Args:
        folder: result of snapshot_model.

    Raises:
        InputError: if model or tokenizer cannot be ours.
    """
    from model.transformer import count_parameters
    from model.weights import save_model

    model = load_hugging_face_folder(folder.path)
    sizes = bytes_of_tokens(folder.path, model.vocabulary_size)
    tokenizer = load_tokenizer(folder.path)
    end_of_text_id(tokenizer)
    shutil.copyfile(folder.path / TOKENIZER, out / TOKENIZER)
    (out / TOKEN_BYTES).write_text(json.dumps(sizes))
    save_model(model, out, tokenizer_sha256(folder.path))
    return {"parameters": count_parameters(model), "vocabulary_size": model.vocabulary_size}
