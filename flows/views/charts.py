"""Charts of a run: curves of training, and scores beside chance."""

import io
from typing import Any

INK, ACCENT, SECOND, FAINT = "#1f2933", "#0b6e99", "#d1495b", "#a9b4bf"
_GRID = "#eef1f4"


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "sans-serif",
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "scratchlm",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.grid": True,
        "grid.color": _GRID,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titlecolor": INK,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "scratchlm"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    # What is ink on paper follows the page, which may be dark.
    text = text.replace(INK, "var(--ink)").replace(_GRID, "var(--line)")
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
    finite = [line for line in lines if line["loss"] is not None]
    tokens = [line["tokens"] for line in finite]
    loss = [line["loss"] for line in finite]
    axis.plot(tokens, loss, color=FAINT, linewidth=0.7)
    axis.plot(tokens, _smooth(loss, 0.95), color=ACCENT, linewidth=1.6, label="training loss, nats a token")
    axis.set_title("Loss")
    held_out = [
        (line["tokens"], line["validation_bits_per_byte"])
        for line in lines
        if "validation_bits_per_byte" in line
    ]
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


def training_charts(lines: list[dict[str, float]]) -> list[str]:
    """Loss with held-out bits per byte, learning rate, and throughput, against tokens: an SVG each, which reflow."""
    tokens = [line["tokens"] for line in lines]
    loss, left = _figure(5.2, 3)
    _draw_loss(left, lines)
    rate, middle = _figure(5.2, 3)
    middle.plot(tokens, [line["learning_rate"] for line in lines], color=ACCENT, linewidth=1.6)
    middle.set_title("Learning rate")
    per_step = tokens[0] if len(tokens) < 2 else tokens[1] - tokens[0]
    speed = [per_step / line["seconds"] for line in lines]
    throughput, right = _figure(5.2, 3)
    right.plot(tokens, speed, color=FAINT, linewidth=0.7)
    right.plot(tokens, _smooth(speed, 0.95), color=ACCENT, linewidth=1.6)
    right.set_title("Throughput, tokens a second")
    right.set_ylim(bottom=0, top=1.15 * sorted(speed)[int(0.98 * (len(speed) - 1))])
    for axis in (middle, right):
        _label_tokens(axis)
    return [_svg(figure) for figure in (loss, rate, throughput)]


def score_chart(benchmarks: dict[str, Any]) -> str:
    """Accuracy of each benchmark with its 95% interval, beside chance: an SVG."""
    rows = [(name, score) for name, score in benchmarks.items() if "acc" in score]
    if not rows:
        return ""
    figure, axis = _figure(5.2, 0.9 + 0.45 * len(rows))
    for y, (_, score) in enumerate(rows):
        error = 1.96 * score.get("acc_stderr", 0.0)
        axis.errorbar(score["acc"], y, xerr=error, fmt="o", color=ACCENT, capsize=3, markersize=5)
        if "chance" in score:
            axis.plot([score["chance"]] * 2, [y - 0.3, y + 0.3], color=SECOND, linewidth=2)
    axis.plot([], [], color=SECOND, linewidth=2, label="chance")
    axis.plot([], [], color=ACCENT, marker="o", label="accuracy, 95% interval")
    axis.set_yticks(range(len(rows)), [name.replace("$", r"\$") for name, _ in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure)
