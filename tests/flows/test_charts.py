"""The curve of the loss goes on after a step that was no number."""

from flows.views.charts import training_charts


def test_a_step_without_a_loss_is_left_out_of_the_curve():
    lines = [
        {
            "step": step,
            "tokens": 100 * (step + 1),
            "loss": None if step == 3 else 3.0 - 0.1 * step,
            "learning_rate": 0.1,
            "seconds": 0.5,
        }
        for step in range(8)
    ]
    charts = training_charts(lines)
    whole = [line for line in lines if line["loss"] is not None]
    assert "nan" not in "".join(charts).lower()
    assert charts[0] == training_charts(whole)[0]
