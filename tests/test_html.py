"""Pieces of HTML: round ticks, escaped names, and what notebooks show of models and predictions."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cifarnets
from cifarnets._html import Line, bar, confusion_table, line_chart, reliability_chart, ticks
from cifarnets.prediction import Prediction, Predictions

numbers = st.floats(-1e9, 1e9).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(numbers, numbers)
def test_ticks_are_few_round_and_hold_all_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    assert found == sorted(set(found))
    slack = (found[1] - found[0]) * 1e-6
    assert found[0] <= low + slack
    assert found[-1] >= high - slack


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 100, [0, 20, 40, 60, 80, 100]),
        (0.3, 0.3, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_a_chart_places_its_points_by_the_axes() -> None:
    chart = line_chart(
        "loss", [1, 2, 3], [Line("training", [2.0, None, 0.0]), Line("nothing", [None, float("nan"), None])]
    )
    (points,) = re.findall(r'<polyline points="([^"]*)"', chart)
    assert points == "42.0,8.0 390.0,196.0"
    assert "nothing" not in chart
    assert re.findall(r"<li>.*?<b>(.*?)</b></li>", chart) == ["0"]
    assert line_chart("loss", [1], [Line("nothing", [None])]) == ""
    assert "<polyline" in line_chart("loss", [1], [Line("a single epoch", [0.5])])


def test_bins_without_images_have_no_bar() -> None:
    chart = reliability_chart([(0, 0.0, 0.0), (3, 0.5, 1.0), (1, 0.9, 0.0)], "<b>")
    assert re.findall("<title>(.*?)</title>", chart) == [
        "confidence 0.50: right about 1.00 of 3 images",
        "confidence 0.90: right about 0.00 of 1 images",
    ]
    assert "&lt;b&gt;" in chart


def test_names_are_text() -> None:
    assert "<i>" not in confusion_table([[1, 0], [0, 1]], ["<i>", "b"])
    assert "<i>" not in line_chart("<i>", [1, 2], [Line("<i>", [1, 2])])
    assert bar(None) == bar(float("nan")) == "–"


def test_a_notebook_shows_predictions_as_bars() -> None:
    model = cifarnets.load("convnet")
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    one = cifarnets.predict(model, grey, topk=2)
    assert isinstance(one, Prediction)
    assert one._repr_html_().count("airplane") == 1
    assert f"width:{100 * one[0][1]:.1f}%" in one._repr_html_()
    several = cifarnets.predict(model, [grey] * 60)
    assert isinstance(several, Predictions)
    shown = several._repr_html_()
    assert shown.count("<tr>") == 50
    assert "and 10 more" in shown
    assert "&lt;b&gt;" in Prediction([("<b>", 0.5)])._repr_html_()
    empty = cifarnets.predict(model, [])
    assert isinstance(empty, Predictions)
    assert empty == []


def test_a_notebook_shows_the_facts_about_a_model() -> None:
    shown = cifarnets.info("convnet.cifar3")._repr_html_()
    for fact in (
        "convnet.cifar3",
        "18,123",
        "753,760",
        "0.9238 ± 0.0033",
        "airplane, automobile, ship",
        "kernel_size=3",
    ):
        assert fact in shown
    assert "test accuracy" not in cifarnets.info("convnet_functional")._repr_html_()
