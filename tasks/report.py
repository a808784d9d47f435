"""The report of a run: one HTML file that opens from disk, rendered from manifests and metric files."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from tasks.store.manifest import Manifest
from tasks.store.store import Store, Stored

REPORT, TEMPLATE = "report.html", "report.html.jinja"
INK, ACCENT, SECOND, FAINT = "#1f2933", "#0b6e99", "#d1495b", "#cbd2d9"


@dataclass(frozen=True)
class Fall:
    """A step of the waterfall: documents that go on after it, and why others do not."""

    stage: str
    kept: int
    dropped: dict[str, int]


def waterfall(manifests: dict[str, Manifest]) -> list[Fall]:
    """Where every document ended."""
    falls = []
    if "ingest" in manifests:
        metrics = manifests["ingest"].metrics
        falls.append(Fall("ingest", metrics["documents"], metrics["errors"]))
    if "clean" in manifests:
        metrics = manifests["clean"].metrics
        falls.append(Fall("clean", metrics["kept"], metrics["dropped"]))
    if "split" in manifests:
        metrics = manifests["split"].metrics
        kept = metrics["train"]["documents"] + metrics["validation"]["documents"]
        falls.append(Fall("deduplicate and decontaminate", kept, metrics["dropped"]))
        falls.append(Fall("train", metrics["train"]["documents"], {}))
        falls.append(Fall("validation", metrics["validation"]["documents"], {}))
    return falls


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: Any = {
        "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "scratchlm",
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
        "axes.grid": True, "grid.color": "#eef1f4", "xtick.color": INK, "ytick.color": INK, "axes.axisbelow": True,
        "axes.titlelocation": "left", "axes.titlesize": 10, "axes.titlecolor": INK,
    }  # fmt: skip
    with pyplot.rc_context(style):
        return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def _svg(figure: Any) -> str:
    import matplotlib
    from matplotlib import pyplot

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scratchlm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _smooth(values: list[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _draw_loss(axis: Any, lines: list[dict[str, float]]) -> None:
    """Training loss, and held-out bits per byte on an axis of its own, against tokens."""
    tokens = [line["tokens"] for line in lines]
    loss = [line["loss"] for line in lines]
    axis.plot(tokens, loss, color=FAINT, linewidth=0.7)
    axis.plot(tokens, _smooth(loss, 0.95), color=ACCENT, linewidth=1.6, label="training loss, nats a token")
    axis.set_title("Loss")
    held_out = [(line["tokens"], line["bits_per_byte"]) for line in lines if "bits_per_byte" in line]
    if held_out:
        other = axis.twinx()
        other.grid(False)
        other.spines[:].set_visible(False)
        other.plot(*zip(*held_out, strict=True), color=SECOND, marker="o", markersize=3, linewidth=1.2)
        other.tick_params(colors=SECOND, length=0)
        axis.plot([], [], color=SECOND, marker="o", markersize=3, label="held-out bits a byte (right)")
    axis.legend(frameon=False, fontsize=8)
    _label_tokens(axis)


def _label_tokens(axis: Any) -> None:
    axis.set_xlabel("tokens")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e5 else f"{value:g}")


def loss_image(lines: list[dict[str, float]]) -> bytes:
    """The curve of the loss: a PNG."""
    figure, axis = _figure(7, 3.4)
    _draw_loss(axis, lines)
    return _png(figure)


def training_charts(lines: list[dict[str, float]]) -> str:
    """Loss with held-out bits per byte, learning rate, and throughput, against tokens: an SVG."""
    figure, (left, middle, right) = _figure(11, 3, 3)
    tokens = [line["tokens"] for line in lines]
    _draw_loss(left, lines)
    middle.plot(tokens, [line["learning_rate"] for line in lines], color=ACCENT, linewidth=1.6)
    middle.set_title("Learning rate")
    per_step = tokens[0] if len(tokens) < 2 else tokens[1] - tokens[0]
    speed = [per_step / line["seconds"] for line in lines]
    right.plot(tokens, speed, color=FAINT, linewidth=0.7)
    right.plot(tokens, _smooth(speed, 0.95), color=ACCENT, linewidth=1.6)
    right.set_title("Throughput, tokens a second")
    right.set_ylim(bottom=0, top=1.15 * sorted(speed)[int(0.98 * (len(speed) - 1))])
    for axis in (middle, right):
        _label_tokens(axis)
    return _svg(figure)


def score_chart(benchmarks: dict[str, Any]) -> str:
    """Accuracy of each benchmark with its 95% interval, beside chance: an SVG."""
    rows = [(name, score) for name, score in benchmarks.items() if "acc" in score]
    if not rows:
        return ""
    figure, axis = _figure(7, 0.9 + 0.45 * len(rows))
    for y, (_, score) in enumerate(rows):
        error = 1.96 * score.get("acc_stderr", 0.0)
        axis.errorbar(score["acc"], y, xerr=error, fmt="o", color=ACCENT, capsize=3, markersize=5)
        if "chance" in score:
            axis.plot([score["chance"]] * 2, [y - 0.3, y + 0.3], color=SECOND, linewidth=2)
    axis.plot([], [], color=SECOND, linewidth=2, label="chance")
    axis.plot([], [], color=ACCENT, marker="o", label="accuracy, 95% interval")
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _stages(record: dict[str, Any], stored: dict[str, Stored]) -> list[dict[str, Any]]:
    """A row for each stage: what it cost when it was built, and whether this run built it."""
    rows = []
    for name, entry in record["stages"].items():
        found = stored.get(name)
        manifest = found.manifest if found else None
        rows.append(
            {
                "name": name,
                "how": "cached" if entry["cached"] else "built",
                "shards": entry["shards"],
                "seconds": manifest.seconds if manifest else None,
                "cpu_seconds": manifest.cpu_seconds if manifest else None,
                "peak_memory": manifest.peak_memory_bytes if manifest else None,
                "key": entry["key"],
                "digest": entry["digest"],
                "libraries": entry["ingredients"]["libraries"],
                "accepted": manifest.accepted if manifest else None,
                "created": manifest.created if manifest else None,
            }
        )
    return rows


def render_report(run: Path, store: Store) -> Path:
    """Write report.html into the folder of a run, from what the run came to.

    Args:
        run: folder with run.json.
        store: where the results of its stages are.

    Returns:
        Path of the file.
    """
    record = json.loads((run / "run.json").read_text())
    stored: dict[str, Stored] = {}
    for name, entry in record["stages"].items():
        found = store.find_whole("artifacts", entry.get("stage", name), entry["key"])
        if found:
            stored[name] = found
    # What a fine-tuning reads and trains is shown where a pretraining shows its own.
    for name, own in (("ingest", "read_conversations"), ("train_model", "finetune_model"), ("train_model", "adapt_model")):
        if own in stored:
            stored[name] = stored[own]
    manifests = {name: found.manifest for name, found in stored.items()}
    lines = read_lines(stored["train_model"].out / "figures" / "metrics.jsonl") if "train_model" in stored else []
    evaluation = manifests["evaluate_model"].metrics if "evaluate_model" in manifests else None
    vocabulary = stored.get("train_tokenizer")
    evaluated = stored.get("evaluate_model")
    falls = waterfall(manifests)
    # Of a fine-tuning the base comes beside the tuned model.
    scored = list(evaluation["benchmarks"].items()) if evaluation else []
    if "base_benchmarks" in manifests:
        scored += [(f"{name}, base", score) for name, score in manifests["base_benchmarks"].metrics["benchmarks"].items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.get_template(TEMPLATE).render(
        run=run.name,
        record=record,
        falls=falls,
        unusable=read_lines(stored["ingest"].out / "errors.jsonl")[:50] if "ingest" in stored else [],
        most=max((fall.kept + sum(fall.dropped.values()) for fall in falls), default=1),
        metrics={name: manifest.metrics for name, manifest in manifests.items()},
        tokenizer_samples=_read_json(vocabulary.out / "samples.json") if vocabulary else None,
        training_svg=training_charts(lines) if lines else "",
        evaluation=evaluation,
        scored=scored,
        held_out=manifests["evaluate_held_out"].metrics if "evaluate_held_out" in manifests else None,
        comparison=manifests["compare_models"].metrics if "compare_models" in manifests else None,
        texts={
            name: {side: manifests[label].metrics for side, label in sides.items()}
            for name, sides in (
                ("text of the domain", {"base": "base_on_new_text", "tuned": "evaluate_held_out"}),
                ("old text", {"base": "base_on_old_text", "tuned": "tuned_on_old_text"}),
            )
            if all(label in manifests for label in sides.values())
        },
        answers=manifests["compare_answers"].metrics if "compare_answers" in manifests else None,
        score_svg=score_chart(evaluation["benchmarks"]) if evaluation else "",
        samples=_read_json(evaluated.out / "samples.json") if evaluated else None,
        stages=_stages(record, stored),
        host=manifests["train_model"].host if "train_model" in manifests else {},
        recipe=yaml.safe_dump(record["recipe"], sort_keys=False, allow_unicode=True),
        machine=yaml.safe_dump(record["machine"], sort_keys=False),
    )
    path = run / REPORT
    building = run / f".{REPORT}"
    building.write_text(html)
    building.replace(path)
    return path
