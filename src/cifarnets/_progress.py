"""Progress bars: on a terminal, and in a notebook."""

import sys
import warnings
from typing import Any


def progress_bar(show: bool | None = None, **settings: Any) -> Any:
    """Make a bar of tqdm: in a notebook the notebook's own, where ipywidgets is installed, and else one of text.

    Examples:
        >>> with progress_bar(False, total=3) as bar:
        ...     bar.update(3)

    Args:
        show: True for a bar and False for none, wherever stderr goes; None for a bar on a terminal and in a notebook.
        settings: What else tqdm takes.
    """
    notebook = in_notebook()
    if notebook:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that ipywidgets is missing: a bar of text does as well
            import tqdm.auto as kind
    else:
        import tqdm.std as kind  # type: ignore[no-redef]
    disable = (False if notebook else None) if show is None else not show
    return kind.tqdm(disable=disable, dynamic_ncols=True, **settings)


def in_notebook() -> bool:
    """Whether a notebook shows what is printed: its shell has a kernel, and IPython's on a terminal has none."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None
