"""Tables of pandas, which is an extra."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cifarnets.errors import MissingExtraError

if TYPE_CHECKING:
    import pandas as pd


def dataframe(rows: Sequence[Mapping[str, Any]], *, index: Iterable[object], name: str) -> "pd.DataFrame":
    """Make a table of pandas.

    Examples:
        >>> float(dataframe([{"loss": 1.5}, {"loss": 1.25}], index=[1, 2], name="epoch").loc[2, "loss"])
        1.25

    Args:
        rows: The columns of each row by name; one that a row lacks is missing there.
        index: What each row is called.
        name: What the index is called.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError("tables need pandas: pip install 'cifarnets[tables]'.") from error
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return pd.DataFrame(list(rows), index=pd.Index(list(index), name=name), columns=columns)
