"""The history: its columns, its files and its picture."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest

from cifarnets.errors import InputError, MissingExtraError, OutputError
from cifarnets.training import History


@pytest.fixture
def history() -> History:
    """Two epochs, of which the second was validated."""
    return History(
        [
            {"epoch": 1, "loss": 1.0986122886681098, "accuracy": 1 / 3, "lr": 0.01},
            {"epoch": 2, "loss": 0.5, "accuracy": 0.75, "lr": 0.01, "val_loss": 0.6, "val_accuracy": 0.7},
        ]
    )


def test_a_column_has_a_value_an_epoch(history: History) -> None:
    assert history.column("loss") == [1.0986122886681098, 0.5]
    assert history.column("val_loss") == [None, 0.6]
    assert History().column("loss") == []


def test_csv_keeps_every_digit_and_every_column(history: History, tmp_path: Path) -> None:
    path = history.to_csv(tmp_path / "new" / "history.csv")
    assert path == tmp_path / "new" / "history.csv"
    assert path.read_bytes().count(b"\r") == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "lr", "val_loss", "val_accuracy"]
    assert float(rows[0]["loss"]) == history[0]["loss"]
    assert float(rows[0]["accuracy"]) == history[0]["accuracy"]
    assert rows[0]["val_loss"] == ""
    assert rows[1]["val_loss"] == "0.6"


def test_json_lines_come_back_as_they_were(history: History, tmp_path: Path) -> None:
    path = history.to_jsonl(tmp_path / "history.jsonl")
    assert [json.loads(line) for line in path.read_text().splitlines()] == history


def test_csv_comes_back_as_it_was(history: History, tmp_path: Path) -> None:
    assert History.from_csv(history.to_csv(tmp_path / "history.csv")) == history
    assert History.from_csv(History().to_csv(tmp_path / "empty.csv")) == []


@pytest.mark.parametrize("content", ["loss\n1\n", "epoch,loss\n1,two\n", "epoch\n1,2\n", "epoch\ninf\n", "epoch\n\0\n"])
def test_what_is_no_history_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "history.csv").write_text(content)
    with pytest.raises(InputError, match=r"cannot read a history from .*history\.csv"):
        History.from_csv(tmp_path / "history.csv")
    with pytest.raises(InputError, match=r"cannot read a history from .*none\.csv"):
        History.from_csv(tmp_path / "none.csv")


def test_a_table_has_a_row_an_epoch(history: History) -> None:
    table = history.to_dataframe()
    assert table.index.tolist() == [1, 2]
    assert table.index.name == "epoch"
    assert list(table.columns) == ["loss", "accuracy", "lr", "val_loss", "val_accuracy"]
    assert table.loc[2, "val_loss"] == 0.6
    assert table["val_loss"].isna().tolist() == [True, False]


def test_a_table_without_pandas(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cifarnets\[tables\]'"):
        history.to_dataframe()


def test_a_notebook_shows_curves_and_the_last_epochs(history: History) -> None:
    shown = history._repr_html_()
    assert shown.count("<polyline") == 4
    assert 'aria-label="loss by epoch: training ends at 0.5; validation ends at 0.6"' in shown
    assert '<th scope="col">val accuracy</th>' in shown
    assert "<td>0.75</td>" in shown
    assert History()._repr_html_() == "<p>no epoch yet</p>"
    long = History({"epoch": n, "loss": 1 / n} for n in range(1, 5001))._repr_html_()
    assert len(re.findall(r"[\d.]+,[\d.]+", long.partition('points="')[2].partition('"')[0])) <= 402
    diverged = History([{"epoch": 1, "loss": float("inf")}])._repr_html_()
    assert "<polyline" not in diverged


@pytest.mark.parametrize("write", [History.to_csv, History.to_jsonl])
def test_where_nothing_can_be_written(history: History, tmp_path: Path, write: object) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write(history, tmp_path / "file" / "history")  # type: ignore[operator]


def test_the_picture_shows_loss_and_accuracy(history: History, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    left, right = figure.axes
    assert [axes.get_ylabel() for axes in (left, right)] == ["loss", "accuracy"]
    training, validation = left.get_lines()
    assert training.get_xydata().tolist() == [[1, 1.0986122886681098], [2, 0.5]]
    assert validation.get_ydata()[1] == 0.6
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["training", "validation"]


def test_the_ending_chooses_the_kind_of_picture(history: History, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history.plot(tmp_path / "history.svg")
    assert "<svg" in (tmp_path / "history.svg").read_text()
    with pytest.raises(InputError, match=r"cannot be saved as .*history\.xyz"):
        history.plot(tmp_path / "history.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["history.svg"]


def test_without_validation_one_curve_is_enough(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = History([{"epoch": 1, "loss": 1.0, "accuracy": 0.5}]).plot()
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1]


def test_there_must_be_something_to_plot() -> None:
    with pytest.raises(InputError, match="the history has no epoch yet"):
        History().plot()


def test_without_matplotlib_it_says_what_to_install(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'cifarnets\[plots\]'"):
        history.plot()


def test_a_notebook_shows_whatever_a_callback_puts_there() -> None:
    rows: list[dict[str, object]] = [
        {"epoch": 1, "loss": 1e308, "note": "best"},
        {"epoch": 2, "loss": -1e308},
        {"epoch": 3, "loss": 2.0},
    ]
    page = History(rows)._repr_html_()
    assert "<td>best</td>" in page
    assert "<b>2</b>" in page
    assert "<svg" in History([{"loss": 1.5}, {"loss": 1.25}])._repr_html_()
