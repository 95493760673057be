"""The record of a fit: figures of every epoch."""

import csv
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnets._checked import checked
from cifarnets._figures import BLUE, VERMILLION, new_figure, save_figure, style_chart
from cifarnets._files import as_path, open_regular, write_atomic
from cifarnets._html import Line, history_table, html, join, line_chart
from cifarnets._tables import dataframe
from cifarnets.errors import InputError, brief

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class History(list[dict[str, Any]]):
    """A list with one dict for each epoch, oldest first.

    The keys are `epoch` (from 1), `loss` and `accuracy` of the training (means over its images), `lr`, `seconds` and
    `images_per_second`. With a validation loader there are `val_loss` and `val_accuracy` too.

    Examples:
        >>> from cifarnets.training import History
        >>> history = History([{"epoch": 1, "loss": 1.5}, {"epoch": 2, "loss": 1.25}])
        >>> history[-1]["loss"]
        1.25
    """

    @checked
    def column(self, key: str) -> list[Any]:
        """Return one figure of every epoch; None for an epoch that does not have it.

        Examples:
            >>> from cifarnets.training import History
            >>> History([{"epoch": 1, "loss": 1.5}, {"epoch": 2, "loss": 1.25}]).column("loss")
            [1.5, 1.25]
        """
        return [row.get(key) for row in self]

    @checked
    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write all epochs to a CSV file. The file is replaced in one step, so it is never half written.

        Examples:
            >>> from cifarnets.training import History
            >>> path = History([{"epoch": 1, "loss": 1.5}]).to_csv("history.csv")
            >>> print(path.read_text())
            epoch,loss
            1,1.5

        Raises:
            OutputError: The file cannot be written.
        """
        text = io.StringIO()
        keys = list(dict.fromkeys(key for row in self for key in row))
        writer = csv.DictWriter(text, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        return write_atomic(path, text.getvalue())

    @checked
    def to_jsonl(self, path: str | os.PathLike[str]) -> Path:
        """Write all epochs to a file of JSON lines. The file is replaced in one step, so it is never half written.

        Examples:
            >>> from cifarnets.training import History
            >>> path = History([{"epoch": 1, "loss": 1.5}]).to_jsonl("history.jsonl")
            >>> print(path.read_text())
            {"epoch": 1, "loss": 1.5}

        Raises:
            OutputError: The file cannot be written.
        """
        return write_atomic(path, "".join(json.dumps(row) + "\n" for row in self))

    @classmethod
    @checked
    def from_csv(cls, path: str | os.PathLike[str]) -> "History":
        """Read what `to_csv` wrote, such as the `history.csv` of a run.

        Examples:
            >>> from cifarnets.training import History
            >>> path = History([{"epoch": 1, "loss": 1.5}]).to_csv("history.csv")
            >>> History.from_csv(path)
            [{'epoch': 1, 'loss': 1.5}]

        Raises:
            InputError: The file cannot be read, or is no history.
        """
        try:
            with open_regular(as_path(path)) as binary, io.TextIOWrapper(binary, "utf-8", newline="") as file:
                rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
            return cls([{**row, "epoch": int(row["epoch"])} for row in rows])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
            raise InputError(f"cannot read a history from {str(path)!r}: {brief(str(error), quotes=False)}.") from error

    def to_dataframe(self) -> "pd.DataFrame":
        """Return a pandas table with a row for each epoch and a column for each figure (the extra `tables`).

        Examples:
            >>> from cifarnets.training import History
            >>> table = History([{"epoch": 1, "loss": 1.5}, {"epoch": 2, "loss": 1.25}]).to_dataframe()
            >>> float(table["loss"].min())
            1.25

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [{key: value for key, value in row.items() if key != "epoch"} for row in self]
        return dataframe(rows, index=self.column("epoch"), name="epoch")

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no epoch yet</p>"
        charts = []
        epochs = [row.get("epoch", place) for place, row in enumerate(self, 1)]
        for title in ("loss", "accuracy"):
            names = {title: "training", f"val_{title}": "validation"}
            lines = [Line(name, self.column(key), color) for color, (key, name) in enumerate(names.items())]
            charts.append(line_chart(title, epochs, lines))
        return str(html('<div style="display:flex;flex-wrap:wrap">{}</div>{}', join(charts), history_table(self[-5:])))

    @checked
    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Plot loss and accuracy of training and validation over the epochs. This needs the extra `plots`.

        Examples:
            >>> from cifarnets.training import History
            >>> figure = History([{"epoch": 1, "loss": 1.5, "accuracy": 0.5}]).plot("history.png")

        Args:
            path: A file for the picture; its ending chooses PNG, SVG or PDF.

        Raises:
            InputError: There is no epoch yet.
            MissingExtraError: matplotlib is not installed.
        """
        if not self:
            raise InputError("there is nothing to plot: the history has no epoch yet.")
        figure = new_figure(6.4, 2.8)
        for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for name, label, color, line in (
                (key, "training", BLUE, "-"),
                (f"val_{key}", "validation", VERMILLION, "--"),
            ):
                if any(name in row for row in self):
                    axes.plot(self.column("epoch"), self.column(name), line, color=color, label=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            style_chart(axes, xlabel="epoch", ylabel=key)
        return save_figure(figure, path)
