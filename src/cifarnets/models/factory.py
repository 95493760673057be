"""Models in and out: by name, to a file, from a file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets.errors import InputError, WeightsError
from cifarnets.models.meta import Meta, describe, get_meta, unwrap
from cifarnets.models.registry import build, list_models, model_class, skeleton
from cifarnets.version import __version__
from cifarnets.weights import hub
from cifarnets.weights.files import read_weights, write_weights


def create(name: str, *, num_classes: int | None = None, in_channels: int | None = None, **config: Any) -> nn.Module:
    """A freshly initialised model; seed torch first to get the same one again.

    Examples:
        >>> create("convnet", num_classes=3).meta.architecture
        'convnet'

    Args:
        name: One of `list_models()`.
        num_classes: Outputs; None for the model's default, ten.
        in_channels: Channels of the images; None for three.
        config: The model's other arguments, such as `widths`; `info(name).config` lists them.

    Raises:
        UnknownNameError: There is no such model; the near match is suggested.
        InputError: The model has no such argument, or refuses its value.
    """
    given = {
        key: value
        for key, value in {"num_classes": num_classes, "in_channels": in_channels}.items()
        if value is not None
    }
    return build(name, {**given, **config})


def save(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model into one safetensors file that `load` needs nothing else for.

    The file is written whole or not at all. Wrappers (`torch.compile`, data parallel) leave no trace in it.

    Args:
        model: A registered model, of any dtype and layout, on any device.
        path: Where to; `.safetensors` is the usual ending.

    Returns:
        The path.

    Raises:
        WeightsError: The model is not a registered one, or was changed since it was built, so `load` could not rebuild
            it; or its `meta` holds something that JSON cannot say.
        OutputError: The file cannot be written; one that was there is untouched.
    """
    meta, kind = get_meta(model), type(unwrap(model))
    # A subclass inherits `meta`, but `load` would build the class that the name stands for.
    if meta is None or model_class(meta.architecture) is not kind:
        raise WeightsError(
            f"{kind.__name__} is not registered, so it could not be loaded again: put "
            "@cifarnets.models.register('name') before its class."
        )
    state = unwrap(model).state_dict()
    if faults := _misfits(meta, state):
        raise WeightsError(
            f"the model is no longer what create({meta.architecture!r}, …) built, so it could not be loaded again: "
            f"{faults}. Pass sizes to create; for other layers, register a class of your own."
        )
    # Not dataclasses.asdict, which would copy what users put into `training` before JSON can refuse it.
    return write_weights(path, state, dict(vars(meta)), __version__)


def load(source: str | os.PathLike[str]) -> nn.Module:
    """The model of a weight file: rebuilt, loaded strictly, in eval mode, on the CPU.

    Examples:
        >>> model = load("convnet.safetensors")  # doctest: +SKIP

    Args:
        source: A path, or an address on the Hugging Face Hub: `hf://owner/repo[@revision][/file]`.

    Raises:
        WeightsError: The file is missing, damaged, a pickle or foreign, its architecture is unknown, or its tensors
            do not fit; the message says which.
        DownloadError: The Hub cannot be reached, and the file is not in the cache.
    """
    path = hub.fetch(source) if isinstance(source, str) and source.startswith(hub.SCHEME) else Path(source)
    tensors, header = read_weights(path)
    if "state" in header:
        raise WeightsError(
            f"{str(path)!r} holds the state of a fit, to resume from; the model is beside it, in model.safetensors or "
            "last.safetensors."
        )
    meta = _read_meta(path, header)
    if meta.architecture not in list_models():
        raise WeightsError(
            f"{str(path)!r} holds a {meta.architecture!r}, which this version of cifarnets ({__version__}) does not "
            f"know (the file was written by {header['cifarnets']}). Known: {', '.join(list_models())}."
        )
    try:
        if faults := _misfits(meta, tensors):
            raise WeightsError(f"the tensors of {str(path)!r} do not fit the model: {faults}.")
        with torch.random.fork_rng(devices=[]):  # initialising what is overwritten must not move the user's numbers
            model = build(meta.architecture, dict(meta.config))
        describe(model, classes=meta.classes, mean=meta.mean, std=meta.std, training=meta.training)
    except InputError as error:
        raise WeightsError(f"the header of {str(path)!r} does not fit the architecture: {error}") from error
    for name, target in model.state_dict(keep_vars=True).items():
        # The file's dtype and layout win; `.data` keeps two names of one parameter one.
        target.data = tensors[name]
    return model.eval()


def _read_meta(path: Path, header: dict[str, Any]) -> Meta:
    def numbers(key: str) -> tuple[float, ...] | None:
        return None if header[key] is None else tuple(map(float, header[key]))

    try:
        return Meta(
            architecture=str(header["architecture"]),
            config={key: tuple(value) if isinstance(value, list) else value for key, value in header["config"].items()},
            classes=None if header["classes"] is None else tuple(map(str, header["classes"])),
            mean=numbers("mean"),
            std=numbers("std"),
            training=dict(header["training"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"the header of {str(path)!r} is incomplete or damaged ({error!r}).") from error


def _misfits(meta: Meta, tensors: Mapping[str, Tensor]) -> str:
    """How tensors differ from the model that `meta` tells of, in words; empty if they fit."""
    state = skeleton(meta.architecture, dict(meta.config)).state_dict()
    faults = [f"{name} is missing" for name in state.keys() - tensors.keys()]
    faults += [f"{name} is not part of the model" for name in tensors.keys() - state.keys()]
    faults += [
        f"{name} is {list(tensors[name].shape)} instead of {list(state[name].shape)}"
        for name in state.keys() & tensors.keys()
        if tensors[name].shape != state[name].shape
    ]
    return "; ".join(sorted(faults)[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
