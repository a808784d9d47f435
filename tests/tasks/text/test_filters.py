"""Filters: the decisions of datatrove with the same words, steps from elsewhere, and words in any script."""

import itertools
import random
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.pipeline.formatters.ftfy import FTFYFormatter
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.errors import InputError
from tasks import characters
from tasks.benchmarks.search import NGrams, bitmap_of, matches_of_each
from tasks.characters import Characters, hash_word
from tasks.engine.stage import Shard
from tasks.ngrams import WordHasher, hash_words, ngram_hashes, ngrams_of
from tasks.tables import write_table
from tasks.text.clean import CleanConfig, clean
from tasks.text.filters.fix_unicode import FixUnicode
from tasks.text.filters.gopher_quality import GopherQuality
from tasks.text.filters.gopher_repetition import GopherRepetition
from tasks.text.filters.repetition import at_least_distinct, distinct_share
from tasks.text.judging import Documents, Faults, Filter
from tasks.text.words import PlainWords, Words
from tests.tasks.text.test_documents import verdicts, write_shard

ANY = st.text(
    st.one_of(st.sampled_from("ab_1 .\n'-ÄßΣσ#…é"), st.characters(), st.sampled_from("ไทย我来\u0301ि")),
    max_size=60,
)
REPEATING = st.lists(
    st.sampled_from(
        ["the", "and", "of", "rain", "#", "-", "\n", "\n\n", "• a", "fell...\n", "a1", "x" * 30, "!"]
    ),
    max_size=120,
).map(" ".join)


def judged(step: Filter, texts: list[str]) -> Faults:
    return step.judge(Documents(pa.record_batch({"text": pa.array(texts, pa.large_string())})))


@given(st.lists(ANY, max_size=8))
def test_words_of_many_texts_are_those_of_each(texts: list[str]):
    hasher = WordHasher()
    found = [words[first:last] for words, of in hash_words(texts) for first, last in itertools.pairwise(of)]
    assert [own.tolist() for own in found] == [hasher(text).tolist() for text in texts]


@given(st.lists(st.text(st.sampled_from("ab_7 .(=\n日,"), max_size=60), max_size=6))
def test_in_source_code_marks_are_words(texts: list[str]):
    found = [
        words[first:last].tolist()
        for words, of in hash_words(texts, marks=True)
        for first, last in itertools.pairwise(of)
    ]
    assert found == [[hash_word(word) for word in re.findall(r"[ab_7]+|[^ab_7\s]", text)] for text in texts]


@given(st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=5), st.integers(1, 4))
def test_no_n_gram_goes_across_two_texts(texts: list[list[int]], n: int):
    offsets = np.concatenate(([0], np.cumsum([len(text) for text in texts])))
    flat = np.array([word for text in texts for word in text], np.uint64)
    hashes, of_text = ngrams_of(flat, offsets, n)
    for number, text in enumerate(texts):
        own = hashes[of_text[number] : of_text[number + 1]]
        assert own.tolist() == ngram_hashes(np.array(text, np.uint64), n).tolist()


def test_a_text_larger_than_a_batch_is_hashed_in_parts(monkeypatch: pytest.MonkeyPatch):
    text = "Some words of a text, 我来到北京 and more. " * 40
    whole, offsets = next(hash_words([text]))
    prose = "Some words of a text, and more of them. " * 40
    of_prose = Words([prose])
    for module in (characters, sys.modules["tasks.ngrams"], sys.modules["tasks.text.words"]):
        monkeypatch.setattr(module, "MOST_CHARACTERS", 101)
    parts = list(hash_words(["before", text, "behind"]))
    assert [len(of) - 1 for _, of in parts] == [1, 1, 1]
    assert parts[1][0].tolist() == whole.tolist()
    assert parts[1][1].tolist() == offsets.tolist()
    parts_of_prose = Words([prose])
    assert parts_of_prose.counts.tolist() == of_prose.counts.tolist()
    assert parts_of_prose.hashes.tolist() == of_prose.hashes.tolist()


def without_marks_around(token: str) -> str:
    of_word = [c.isalnum() or unicodedata.category(c)[0] == "M" for c in token]
    return token[of_word.index(True) : len(token) - of_word[::-1].index(True)] if any(of_word) else ""


@given(st.lists(ANY, max_size=6))
def test_words_of_a_batch_are_those_between_spaces(texts: list[str]):
    texts = [text for text in texts if not any(characters._kind(ord(c)) & characters.IS_WORD for c in text)]
    words = Words(texts)
    expected = [
        [
            word
            for token in unicodedata.normalize("NFC", text).split()
            if (word := without_marks_around(token))
        ]
        for text in texts
    ]
    assert words.counts.tolist() == list(map(len, expected))
    flat = [word for own in expected for word in own]
    assert words.lengths.tolist() == list(map(len, flat))
    assert words.hashes.tolist() == list(map(characters.hash_word, flat))
    assert words.have_letter.tolist() == [any(map(str.isalpha, word)) for word in flat]


def test_a_dictionary_cuts_where_no_space_does():
    def spans(text: str) -> int:
        return int(Words([text]).counts[0])

    assert spans("我来到北京清华大学。今日は良い天気ですね") == 10
    assert spans("ภาษาไทยเป็นภาษาที่มีระดับเสียงของคำ") == 10
    assert spans("हिन्दी में लिखा हुआ पाठ") == 5


@pytest.fixture(scope="module")
def pages(speeches: list[Path]) -> list[str]:
    """Prose, and what becomes of it when lines, runs of words and marks are repeated."""
    chooser = random.Random(3)
    texts = [path.read_text()[:9_000] for path in speeches[::8]]
    found = list(texts)
    for text in texts:
        words = text.split()
        for length in (3, 6, 9, 14):
            start = chooser.randrange(200)
            again = " ".join(words[start : start + length])
            every = chooser.choice([5, 12, 30])
            found.append(
                " ".join(f"{word} {again}" if i % every == 0 else word for i, word in enumerate(words))
            )
        lines = [" ".join(words[i : i + 9]) for i in range(0, 600, 9)]
        found.append("\n".join(line if i % 3 else lines[0] for i, line in enumerate(lines)))
        found.append("\n\n".join(line if i % 4 else lines[1] for i, line in enumerate(lines)))
        found.append("\n".join(f"- {line}..." if i % 3 else f"# {line}" for i, line in enumerate(lines)))
    return found


def reasons_of_datatrove(block: GopherQualityFilter | GopherRepetitionFilter, texts: list[str]) -> list[bool]:
    return [block.filter(Document(text=text, id="")) is True for text in texts]


def test_decisions_are_those_of_datatrove(pages: list[str]):
    words = PlainWords()
    for ours, theirs in (
        (GopherQuality(), GopherQualityFilter(language=words)),
        (GopherRepetition(), GopherRepetitionFilter(language=words)),
    ):
        kept = [fault is None for fault in judged(ours, pages)]
        assert kept == reasons_of_datatrove(theirs, pages)
        assert 20 < sum(kept) < len(pages) - 20


@given(st.lists(REPEATING.filter(str.strip), min_size=1, max_size=5))
def test_decisions_are_those_of_datatrove_on_any_text(texts: list[str]):
    words = PlainWords()
    texts = [text for text in texts if any(map(str.isalnum, text))]
    kept = [fault is None for fault in judged(GopherRepetition(), texts)]
    assert kept == reasons_of_datatrove(GopherRepetitionFilter(language=words), texts)
    kept = [fault is None for fault in judged(GopherQuality(min_words=3, by_language=False), texts)]
    assert kept == reasons_of_datatrove(GopherQualityFilter(min_doc_words=3, language=words), texts)


BROKEN = st.lists(
    st.sampled_from(
        [
            "plain line",
            "schÃ¶n",
            "\n",
            "\n",
            "&amp;",
            "<b>",
            "&lt;",
            "\x1b[31mred",
            "\x85",
            "“q”",
            "â€œx",
            "\r",
            "\x00",
        ]
    ),
    max_size=25,
).map("".join)


@given(st.one_of(BROKEN, st.text(max_size=50)))
def test_what_is_mended_is_what_ftfy_mends(text: str):
    assert FixUnicode().mend(text) == FTFYFormatter().format(text)


@given(st.text("abc", min_size=16, max_size=400))
def test_what_is_distinct_at_least_is_never_more_than_what_is(text: str):
    assert at_least_distinct(text) <= distinct_share(text)


@given(st.sets(st.integers(0, 2**64 - 1), min_size=1, max_size=50), st.data())
def test_items_are_found_whatever_the_bitmap_says(hashes: set[int], data: st.DataObject):
    ordered = np.array(sorted(hashes), np.uint64)
    words = np.array(
        data.draw(st.lists(st.sampled_from(sorted(hashes)) | st.integers(0, 2**64 - 1))), np.uint64
    )
    grams = np.unique(ngram_hashes(ordered, 1))
    index = {
        1: NGrams(grams, ["t"], np.zeros(len(grams), np.uint16), np.arange(len(grams)), bitmap_of(grams))
    }
    (found,) = matches_of_each(words, np.array([0, len(words)]), index)
    assert {grams[item] for _, item in found} == set(grams) & set(ngram_hashes(words, 1))


OWN = '''
"""A filter of somebody's own."""
from pydantic import Field
from tasks.text.judging import Documents, Fault, Faults, Filter


class TooLoud(Filter):
    """Drop what shouts."""

    most: float = Field(0.5, description="Largest share of capitals.")

    def judge(self, documents: Documents) -> Faults:
        shares = [sum(map(str.isupper, text)) / max(1, len(text)) for text in documents.texts]
        return [Fault("shouts", "most", share, self.most) if share > self.most else None for share in shares]
'''


def test_a_filter_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_filters.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    loud = {"use": "my_filters:TooLoud", "fields": {"most": 0.3}}
    gopher = "datatrove.pipeline.filters.gopher_quality_filter:GopherQualityFilter"
    config = CleanConfig.model_validate(
        {
            "filters": {
                "loud": loud,
                "sparse": {"use": gopher, "fields": {"min_doc_words": 4, "min_stop_words": 1}},
            }
        }
    )
    texts = {"good": "the cat and the dog sat", "loud": "THE CAT AND DOG SAT", "few": "the cat"}
    shard = write_shard(tmp_path / "in", texts)
    metrics = clean.fn(config, documents=Shard(shard), out=tmp_path / "out")
    found = verdicts(tmp_path / "out")
    assert [verdict["field"] for verdict in found] == [
        None,
        "clean.filters.loud.most",
        "clean.filters.sparse",
    ]
    assert found[1]["value"] > found[1]["limit"] == 0.3
    assert metrics["dropped"] == {"gopher_short_doc": 1, "shouts": 1}
    # Its code is in the key, and what has none is refused.
    assert set(clean.code(config)) > {"my_filters", "tasks.text.judging"}
    assert "my_filters" not in clean.code(CleanConfig())
    for fields, told in (
        ({"use": "my_filters:TooLoud", "fields": {"many": 1}}, "many"),
        ({"use": "my_filters:Nobody"}, "cannot be imported"),
        ({"use": "pathlib:Path"}, "neither a Filter nor"),
    ):
        with pytest.raises(ValidationError, match=told):
            CleanConfig.model_validate({"filters": {"mine": fields}})


ODD = """
import helper
from tasks.text.judging import Fault, Filter, Mender


class GivesBools(Filter):
    def judge(self, documents):
        return [True for _ in documents.texts]


class GivesTooFew(Filter):
    def judge(self, documents):
        return []


class GivesNothing(Mender):
    def mend(self, text):
        return None


class CatchesAll(Filter):
    def judge(self, documents):
        while "slow" in documents.texts:
            try:
                while True:
                    pass
            except Exception:
                pass
        return [None for _ in documents.texts]
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with steps that are not as they should be."""
    (tmp_path / "odd_steps.py").write_text(ODD)
    (tmp_path / "helper.py").write_text("LIMIT = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("odd_steps", "helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def config_of(name: str, **fields) -> CleanConfig:
    return CleanConfig.model_validate({"filters": {"odd": {"use": f"odd_steps:{name}"}}, **fields})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("GivesBools", "gives True for a document: it must give a Fault or None"),
        ("GivesTooFew", "gives 0 results for 2 documents"),
        ("GivesNothing", "gives None for a document: it must give a text"),
    ],
)
def test_what_a_step_from_elsewhere_gives_is_checked(odd: Path, name: str, told: str):
    shard = write_shard(odd / "in", {"a": "one", "b": "two"})
    with pytest.raises(InputError, match=told):
        clean.fn(config_of(name), documents=Shard(shard), out=odd / "out")


def test_a_step_that_catches_everything_is_ended_too(odd: Path):
    shard = write_shard(odd / "in", {"a": "one", "b": "slow"})
    clean.fn(config_of("CatchesAll", max_document_seconds=1.0), documents=Shard(shard), out=odd / "out")
    assert [verdict["kept"] for verdict in verdicts(odd / "out")] == [True, False]


def test_every_letter_beside_a_step_from_elsewhere_is_in_the_key(odd: Path):
    before = clean.code(config_of("CatchesAll"))
    assert {"odd_steps", "helper"} <= set(before)
    (odd / "helper.py").write_text('"""Read by somebody."""\nLIMIT = 1\n')
    after = clean.code(config_of("CatchesAll"))
    assert {name for name in after if before.get(name) != after[name]} == {"helper"}


def test_what_a_filter_of_datatrove_makes_of_a_text_is_kept(tmp_path: Path):
    c4 = "datatrove.pipeline.filters.c4_filters:C4QualityFilter"
    fields = {"filter_no_terminal_punct": True, "min_num_sentences": 0, "min_words_per_line": 3}
    config = CleanConfig.model_validate({"filters": {"c4": {"use": c4, "fields": fields}}})
    text = "This line ends as it should.\nThis one does not\nNor this\nAnd this one does again."
    shard = write_shard(tmp_path / "in", {"a": text})
    clean.fn(config, documents=Shard(shard), out=tmp_path / "out")
    from tasks.tables import read_column

    (kept,) = read_column(tmp_path / "out" / "documents.parquet", "text")
    assert kept == "This line ends as it should.\nAnd this one does again."


def test_a_filter_without_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "compiled.py").write_text(OWN)
    script = "import py_compile; py_compile.compile('compiled.py', cfile='compiled.pyc')"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "compiled.py").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = CleanConfig.model_validate({"filters": {"loud": {"use": "compiled:TooLoud"}}})
    with pytest.raises(InputError, match="compiled has no source file"):
        clean.code(config)


def test_shards_with_sources_of_several_profiles_keep_their_order(tmp_path: Path):
    from tasks.tables import read_column
    from tasks.text.documents import DOCUMENTS_SCHEMA

    rows = [
        {"id": f"s/{i}", "text": f"Text {i}", "source": "s", "profile": profile, "metadata": "{}"}
        for i, profile in enumerate(["web", "none", "plain", "none", "web", "plain"])
    ]
    write_table(tmp_path / "in" / "documents.parquet", rows, DOCUMENTS_SCHEMA)
    clean.fn(CleanConfig(), documents=Shard(tmp_path / "in"), out=tmp_path / "out")
    assert read_column(tmp_path / "out" / "documents.parquet", "id") == ["s/1", "s/2", "s/3", "s/5"]
    assert [verdict["kept"] for verdict in verdicts(tmp_path / "out")] == [
        False,
        True,
        True,
        True,
        False,
        True,
    ]


def test_hashes_are_those_of_the_characters_wherever_they_stand():
    found = Characters(["one two", "two one"])
    starts, ends = found.runs(characters.IN_WORD)
    one, two, two_again, one_again = found.hashes(starts, ends).tolist()
    assert (one, two) == (one_again, two_again)
    assert one == characters.hash_word("one")
