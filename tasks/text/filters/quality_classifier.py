"""quality_classifier: drops what a classifier, such as `scratchlm train-classifier` makes, does not take for good."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tasks.text.classifiers import file_digest, probabilities
from tasks.text.judging import Documents, Fault, Faults, Filter


class QualityClassifier(Filter):
    """Drop what a classifier of fastText does not take for good text."""

    path: str = Field(
        min_length=1, description="File of the classifier, as `scratchlm train-classifier` writes it."
    )
    digest: str = Field(
        "",
        description="SHA-256 of that file; filled in when the recipe is read, so that another file of the name is another recipe.",
    )
    label: str = Field("good", min_length=1, description="Label of the documents that are kept.")
    min_probability: float = Field(0.5, ge=0, le=1, description="Smallest probability of the label.")

    @model_validator(mode="before")
    @classmethod
    def _name_the_file(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("digest") or not isinstance(values.get("path"), str):
            return values
        try:
            path = Path(values["path"]).expanduser().absolute()
            return {**values, "path": str(path), "digest": file_digest(path)}
        except OSError as error:
            raise ValueError(
                f"{values['path']!r} cannot be read ({error.strerror}): `scratchlm train-classifier GOOD BAD` writes one"
            ) from error

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        found = probabilities(self.path, self.digest, self.label, documents.texts)
        return [
            None
            if probability >= self.min_probability
            else Fault(
                "not what the classifier takes for good",
                "min_probability",
                probability,
                self.min_probability,
            )
            for probability in found
        ]
