"""How documents are judged: a filter looks at a batch of them, and says of each what is wrong with it, if anything is."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import Field

from model.base_config import Config

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.text.words import Words


class Fault(NamedTuple):
    """Why a document is dropped.

    Attributes:
        reason: in a few words.
        field: of the filter, that decides; empty if none does.
        value, limit: what was measured, and what the field allows; None where the filter does not tell.
    """

    reason: str
    field: str
    value: float | None
    limit: float | None


class Documents:
    """Some documents that are judged together. What several filters need of them is computed once, when it is first asked for.

    Attributes:
        batch: the documents as they were read: id, text, source, own_id, profile, metadata.
        texts: their texts as they are now.
    """

    def __init__(
        self,
        batch: "pa.RecordBatch",
        texts: Sequence[str] | None = None,
        languages: "Sequence[tuple[str, float]] | None" = None,
    ) -> None:
        self.batch = batch
        self.texts: Sequence[str] = batch.column("text").to_pylist() if texts is None else texts
        self._languages = languages

    def __len__(self) -> int:
        return len(self.texts)

    def column(self, name: str) -> list[Any]:
        """A column of the documents as they were read."""
        return self.batch.column(name).to_pylist()

    @property
    def languages(self) -> "Sequence[tuple[str, float]]":
        """The language of each document as it was read (ISO 639-1; empty where there are no words), and its probability."""
        if self._languages is None:
            from tasks.text.languages import identify

            self._languages = identify(self.texts)
        return self._languages

    @cached_property
    def words(self) -> "Words":
        """The words of the texts."""
        from tasks.text.words import Words

        return Words(self.texts)

    @cached_property
    def words_and_marks(self) -> "Words":
        """The words of the texts, where each mark is one, too."""
        from tasks.text.words import Words

        return Words(self.texts, marks=True)

    def replaced(self, texts: Sequence[str]) -> "Documents":
        """The same documents with other texts."""
        return Documents(self.batch, texts, self.languages)

    def take(self, rows: Sequence[int]) -> "Documents":
        """Some of the documents."""
        import pyarrow as pa

        return Documents(
            self.batch.take(pa.array(rows, pa.int64())),
            [self.texts[row] for row in rows],
            [self.languages[row] for row in rows],
        )


Faults = list[Fault | None]
"""For each document of a batch what is wrong with it, or None."""


class Step(Config):
    """A step of cleaning."""

    def of_profile(self, profile: str) -> Self:
        """The step as documents of a profile take it."""
        return self


class Filter(Step):
    """A step of cleaning that drops documents. Its fields, with their descriptions, are those of the recipe."""

    def judge(self, documents: Documents) -> Faults:
        """What is wrong with each of the documents."""
        raise NotImplementedError


class WordFilter(Filter):
    """A filter that counts words."""

    marks_are_words: bool = Field(
        False,
        description="Whether each mark of punctuation counts as a word, as where datatrove's filter has the words of spaCy.",
    )

    def words_of(self, documents: Documents) -> "Words":
        """The words of the documents, as it counts them."""
        return documents.words_and_marks if self.marks_are_words else documents.words


class Mender(Step):
    """A step of cleaning that changes texts. What it makes of a text depends on that text alone."""

    def mend(self, text: str) -> str:
        """What becomes of a text."""
        raise NotImplementedError

    def each(self, documents: Documents) -> "list[str | Fault]":
        """What becomes of each text."""
        return [self.mend(text) for text in documents.texts]


class Measured(NamedTuple):
    """One test of a filter on a batch: what it measures of each document, and which of them fail.

    Attributes:
        limit: what is allowed: one for each document, or one for all.
        values: what was measured: one for each document.
        fails: which documents it drops: bool.
    """

    reason: str
    field: str
    limit: Any
    values: Any
    fails: Any


def first_faults(n_documents: int, tests: Sequence[Measured]) -> Faults:
    """The fault by the first test that a document fails."""
    import numpy as np

    faults: Faults = [None] * n_documents
    for test in tests:
        limits = np.broadcast_to(np.asarray(test.limit, float), n_documents)
        for row in test.fails.nonzero()[0].tolist():
            if faults[row] is None:
                faults[row] = Fault(test.reason, test.field, float(test.values[row]), float(limits[row]))
    return faults
