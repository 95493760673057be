import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _compiler_starts_afresh() -> Iterator[None]:
    """torch compiles one method of all models at most eight times in a process."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
