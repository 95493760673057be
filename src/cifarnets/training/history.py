"""What happened in a fit, epoch by epoch."""

import csv
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnets._figures import new_figure, save_figure
from cifarnets._files import write_atomic
from cifarnets.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History(list[dict[str, Any]]):
    """One dict an epoch, oldest first.

    Keys: `epoch` (from 1), `loss` and `accuracy` of training, `val_loss` and `val_accuracy` where there was a
    validation loader, `lr`, `seconds` and `images_per_second` of the epoch's training.
    """

    def column(self, key: str) -> list[Any]:
        """One value an epoch; None where an epoch has none."""
        return [row.get(key) for row in self]

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write all epochs as CSV, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        text = io.StringIO()
        keys = list(dict.fromkeys(key for row in self for key in row))
        writer = csv.DictWriter(text, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        return write_atomic(path, text.getvalue())

    def to_jsonl(self, path: str | os.PathLike[str]) -> Path:
        """Write all epochs as JSON lines, atomically.

        Raises:
            OutputError: The file cannot be written.
        """
        return write_atomic(path, "".join(json.dumps(row) + "\n" for row in self))

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Loss and accuracy over the epochs, training and validation.

        Args:
            path: Where to save the picture too; the ending chooses PNG, SVG or PDF.

        Raises:
            InputError: There is no epoch yet.
            MissingExtraError: matplotlib is not installed.
        """
        if not self:
            raise InputError("there is nothing to plot: the history has no epoch yet.")
        figure = new_figure(9, 3.5)
        for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for name, label in ((key, "training"), (f"val_{key}", "validation")):
                if any(name in row for row in self):
                    axes.plot(self.column("epoch"), self.column(name), label=label)
            axes.set(xlabel="epoch", ylabel=key)
            axes.grid(alpha=0.3)
            axes.legend()
        return save_figure(figure, path)
