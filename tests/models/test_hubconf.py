"""`torch.hub` on a clone of the repository."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cifarnets import load
from cifarnets.errors import UnknownNameError
from cifarnets.models import list_models

hub: Any = torch.hub  # which has no types
REPO = str(Path(__file__).resolve().parents[2])


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hubconf.py` adds the clone to the path of the process."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_every_model_is_an_entry_point() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", Path(REPO) / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    # As `torch.hub.list` finds them, which takes no local folder.
    found = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")]
    assert sorted(found) == list_models()
    assert "weights of that tag: cifar3" in hubconf.convnet.__doc__


def test_released_weights() -> None:
    images = torch.rand(2, 3, 32, 32)
    model = hub.load(REPO, "convnet", source="local", pretrained=True)
    assert torch.equal(model(images), load("convnet")(images))
    tagged = hub.load(REPO, "convnet", source="local", weights="cifar3")
    assert torch.equal(tagged(images), load("convnet.cifar3")(images))
    assert hub.load(REPO, "resnet20", source="local", pretrained=True, num_classes=4).num_classes == 4


def test_fresh_models_and_missing_weights() -> None:
    assert hub.load(REPO, "vgg11_bn", source="local", num_classes=7).num_classes == 7
    with pytest.raises(UnknownNameError, match="no released weights for 'resnet56'"):
        hub.load(REPO, "resnet56", source="local", pretrained=True)


def test_nothing_but_its_dependencies_is_needed() -> None:
    """Without the package on the path, and with the other packages out of reach."""
    names = ["torchvision", "PIL", "huggingface_hub", "matplotlib", "platformdirs", "filelock"]
    script = f"""
import sys, torch
sys.path = [p for p in sys.path if "src" not in p]
sys.modules.update(dict.fromkeys({names}))
model = torch.hub.load({REPO!r}, "convnet", source="local", pretrained=True)
print([*model(torch.zeros(1, 3, 32, 32)).shape])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout or "0") == [1, 10], done.stderr


def test_the_dependencies_are_those_of_the_package() -> None:
    tree = ast.parse((Path(REPO) / "hubconf.py").read_text(encoding="utf-8"))
    (listed,) = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "dependencies"
    ]
    manifest = (Path(REPO) / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{name}>=' in manifest for name in ast.literal_eval(listed))
