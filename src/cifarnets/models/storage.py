"""Models in weight files: `save`, `load`, and the checks that a file and a model fit."""

import json
import math
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets.errors import InputError, UnknownNameError, WeightsError, unknown_name
from cifarnets.models.metadata import ModelMeta, annotate, get_meta, unwrap
from cifarnets.models.registry import build, is_same_class, model_class, registered, skeleton, unknown_model
from cifarnets.version import __version__
from cifarnets.weights import hub
from cifarnets.weights.files import read_weights, write_weights
from cifarnets.weights.index import checked_file, releases


def save(model: nn.Module, path: str | os.PathLike[str], *, half: bool = False) -> Path:
    """Write a model into one safetensors file, which is all that `load` needs.

    The file is complete or not there: an interrupted `save` leaves the former file. Wrappers (`torch.compile`, data
    parallel) leave no trace in it.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from cifarnets import create, load, save
        >>> model = create("convnet", num_classes=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(model, Path(folder) / "mine.safetensors"))
        >>> again.meta == model.meta
        True

    Args:
        model: A registered model, of any dtype and memory format, on any device.
        path: The file; its usual ending is `.safetensors`.
        half: Round float32 to float16, which halves the file. `load` gives float32 again.

    Returns:
        The path.

    Raises:
        WeightsError: `load` could not build the model again, because its class is not registered or its layers were
            changed; or `model.meta` has values that JSON has no form for; or a number is too large for float16.
        OutputError: The file cannot be written. An existing file stays as it was.
    """
    if reason := why_not_loadable(model):
        raise WeightsError(reason)
    meta, state = get_meta(model), unwrap(model).state_dict()
    # Not dataclasses.asdict, which would copy what users put into `training` before JSON can refuse it.
    return write_weights(path, state, dict(vars(meta)), __version__, half)


def why_not_loadable(model: nn.Module) -> str:
    """The reason why `load` could not build a model again from a file, with advice; empty if it could.

    Examples:
        >>> import torch
        >>> from cifarnets.models import create
        >>> from cifarnets.models.storage import why_not_loadable
        >>> why_not_loadable(create("convnet"))
        ''
        >>> why_not_loadable(torch.nn.Linear(2, 2)).partition(",")[0]
        'Linear is not registered'
    """
    meta, kind = get_meta(model), type(unwrap(model))
    # A subclass inherits `meta`, but `load` would build the class of that name.
    if meta is None or not is_same_class(model_class(meta.architecture), kind):
        return (
            f"{kind.__name__} is not registered, so it could not be loaded again: put "
            "@cifarnets.models.register('name') before its class."
        )
    if faults := _misfits(meta, unwrap(model).state_dict()):
        return (
            f"the model is no longer what create({meta.architecture!r}, …) built, so it could not be loaded again: "
            f"{faults}. Pass sizes to create; for other layers, register a class of your own."
        )
    return ""


def load(source: str | os.PathLike[str]) -> nn.Module:
    """Load a model from a weight file, on the CPU and in eval mode.

    Parameters are contiguous, as in a fresh model, whatever memory format the saved model had.

    Examples:
        >>> from cifarnets import load
        >>> load("convnet.cifar3").meta.classes
        ('airplane', 'automobile', 'ship')
        >>> model = load("convnet.safetensors")  # doctest: +SKIP

    Args:
        source: A name of `list_models(pretrained=True)`, whose weights come with the library and need no network; a
            path; or an address on the Hugging Face Hub: `hf://owner/repo[@revision][/file]`.

    Raises:
        WeightsError: The file is missing, damaged, a pickle or of another program; or the architecture is unknown, or
            the tensors do not fit it; or a released file was changed; or the name is a file here as well. The message
            says which.
        DownloadError: The Hub cannot be reached, and the file is not in the cache.
        UnknownNameError: There are no released weights of that name, and no such file.
    """
    if not isinstance(source, str):
        return _load_file(Path(source))
    if source.startswith(hub.SCHEME):
        return _load_file(hub.fetch(source))
    if re.fullmatch(r"[\w.]+", source) and not source.endswith(".safetensors"):
        if source in releases():
            if Path(source).is_file():
                raise WeightsError(f"{source!r} is a file here and the name of released weights: write './{source}'.")
            return load_release(source)
        if get_close_matches(source.partition(".")[0], registered()) and not Path(source).exists():
            raise unknown_weights(source)
    return _load_file(Path(source))


def unknown_weights(name: str) -> UnknownNameError:
    """The error for a name without released weights: it says whether there is at least a model of that name.

    Examples:
        >>> from cifarnets.models.storage import unknown_weights
        >>> print(str(unknown_weights("resnet56")).partition(":")[0])
        there are no released weights for 'resnet56'
    """
    architecture = name.partition(".")[0]
    if architecture not in registered():
        return unknown_model(architecture)  # a misspelt architecture is the likelier mistake
    if architecture != name:
        return unknown_name("weights", name, releases())
    return UnknownNameError(
        f"there are no released weights for {name!r}: the model exists, but only untrained, as create({name!r}). "
        f"Weights are released for {', '.join(releases())}."
    )


def load_release(name: str) -> nn.Module:
    """Load released weights, after a check of the file against the index.

    Examples:
        >>> from cifarnets.models.storage import load_release
        >>> load_release("convnet").training
        False

    Raises:
        WeightsError: The file, or its header, is not what the index says.
    """
    release = releases()[name]
    with checked_file(release) as path:
        model = _load_file(path)
    meta = get_meta(model)
    assert meta is not None
    found = {**vars(meta), "parameters": sum(p.numel() for p in model.parameters())}
    for key in ("architecture", "config", "parameters", "classes", "mean", "std"):
        theirs, ours = getattr(release, key), found[key]
        if json.dumps(theirs) != json.dumps(ours):
            raise WeightsError(
                f"the index of released weights says {key} {theirs!r} of {name!r}; its file has {ours!r}."
            )
    return model


def _load_file(path: Path) -> nn.Module:
    tensors, header = read_weights(path)
    if "state" in header:
        raise WeightsError(
            f"{str(path)!r} holds the state of a fit, to resume from; the model is beside it, in model.safetensors or "
            "last.safetensors."
        )
    meta = _read_meta(path, header)
    if meta.architecture not in registered():
        raise WeightsError(
            f"{str(path)!r} holds a {meta.architecture!r}, which this version of cifarnets ({__version__}) does not "
            f"know (the file was written by {header['cifarnets']}). Known: {', '.join(registered())}."
        )
    if any(len(value) > len(tensors) for value in meta.config.values() if isinstance(value, tuple)):
        # A long list makes a deep model, which takes long to build; but every layer must have a tensor in the file.
        raise WeightsError(f"the header of {str(path)!r} describes more layers than the file has tensors.")
    try:
        if faults := _misfits(meta, tensors):
            raise WeightsError(f"the tensors of {str(path)!r} do not fit the model: {faults}.")
        # Neither the user's random numbers nor a default device of the user take part in a load.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = build(meta.architecture, dict(meta.config))
        described = {key: getattr(meta, key) for key in ("classes", "mean", "std", "training", "results")}
        annotate(model, **described)
    except InputError as error:
        raise WeightsError(f"the header of {str(path)!r} does not fit the architecture: {error}") from error
    for name, target in model.state_dict(keep_vars=True).items():
        # The dtype of the file wins. `.data` keeps a parameter that has two names a single one.
        target.data = tensors[name].contiguous()
    return model.eval()


def _read_meta(path: Path, header: dict[str, Any]) -> ModelMeta:
    def numbers(key: str) -> tuple[float, ...] | None:
        values = None if header[key] is None else tuple(map(float, header[key]))
        if values and not (all(map(math.isfinite, values)) and (key == "mean" or min(values) > 0)):
            raise ValueError(f"{key} {values}")
        return values

    try:
        return ModelMeta(
            architecture=str(header["architecture"]),
            config={key: tuple(value) if isinstance(value, list) else value for key, value in header["config"].items()},
            classes=None if header["classes"] is None else tuple(map(str, header["classes"])),
            mean=numbers("mean"),
            std=numbers("std"),
            training=dict(header["training"]),
            results=dict(header.get("results", {})),  # files of earlier versions have none
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WeightsError(f"the header of {str(path)!r} is incomplete or damaged ({error!r}).") from error


def _misfits(meta: ModelMeta, tensors: Mapping[str, Tensor]) -> str:
    """The differences between tensors and the model of `meta`, in words; empty if there are none."""
    state = skeleton(meta.architecture, dict(meta.config)).state_dict()
    faults = [f"{name} is missing" for name in state.keys() - tensors.keys()]
    faults += [f"{name} is not part of the model" for name in tensors.keys() - state.keys()]
    faults += [
        f"{name} is {list(tensors[name].shape)} instead of {list(state[name].shape)}"
        for name in state.keys() & tensors.keys()
        if tensors[name].shape != state[name].shape
    ]
    faults += [
        f"{name} is {tensors[name].dtype} instead of {state[name].dtype}"
        for name in state.keys() & tensors.keys()
        if tensors[name].is_floating_point() != state[name].is_floating_point()
    ]
    return "; ".join(sorted(faults)[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
