"""Means of the metrics between two rows."""

import json
import math

import pytest
import torch

from train.loop.state import MetricWindow

NO, YES = torch.tensor(False), torch.tensor(True)


def metrics(loss: float, tenth: float, count: float) -> dict[str, torch.Tensor]:
    values = {"loss": loss, "loss_t3": tenth, "count_t3": count, "loss_t4": 0.0, "count_t4": 0.0}
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_row_is_the_mean_over_the_steps_and_a_tenth_over_its_samples() -> None:
    window = MetricWindow()
    window.add(metrics(1.0, 0.5, 0.5), NO)
    window.add(metrics(3.0, 0.5, 0.25), NO)
    row = window.take()
    assert float(row["loss"]) == 2.0
    assert float(row["loss_t3"]) == pytest.approx(1.0 / 0.75)
    assert math.isnan(float(row["loss_t4"]))
    assert row.keys() == {"loss", "loss_t3", "loss_t4"}
    window.add(metrics(5.0, 0.0, 0.0), NO)
    assert float(window.take()["loss"]) == 5.0


def test_a_skipped_step_is_not_in_the_mean() -> None:
    window = MetricWindow()
    window.add(metrics(math.nan, math.nan, 0.5), YES)
    assert math.isnan(float(MetricWindow(dict(window.sums)).take()["loss"]))
    window.add(metrics(2.0, 0.5, 0.5), NO)
    row = window.take()
    assert float(row["loss"]) == 2.0 and float(row["loss_t3"]) == 1.0


def test_a_window_comes_back_from_json_to_the_last_bit() -> None:
    window = MetricWindow()
    window.add(metrics(1 / 3, 0.1, 0.7), NO)
    again = MetricWindow.from_numbers(json.loads(json.dumps(window.numbers())), torch.device("cpu"))
    for one in (window, again):
        one.add(metrics(1 / 7, 0.2, 0.1), NO)
    assert window.numbers() == again.numbers()
