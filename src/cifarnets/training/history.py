"""The record of a fit: figures of every epoch."""

import csv
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnets._checked import checked
from cifarnets._figures import BLUE, VERMILLION, new_figure, save_figure, style_chart
from cifarnets._files import write_atomic
from cifarnets.errors import InputError

if TYPE_CHECKING:
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
