"""Models in weight files: save, load, and the checks between."""

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

from cifarnets.errors import InputError, WeightsError, unknown_name
from cifarnets.models.metadata import ModelMeta, annotate, get_meta, unwrap
from cifarnets.models.registry import build, model_class, registered, skeleton
from cifarnets.version import __version__
from cifarnets.weights import hub
from cifarnets.weights.files import read_weights, write_weights
from cifarnets.weights.index import checked_file, releases


def save(model: nn.Module, path: str | os.PathLike[str], *, half: bool = False) -> Path:
    """Write a model into one safetensors file that `load` needs nothing else for.

    The file is written whole or not at all. Wrappers (`torch.compile`, data parallel) leave no trace in it.

    Args:
        model: A registered model, of any dtype and layout, on any device.
        path: Where to; `.safetensors` is the usual ending.
        half: Round float32 to float16 in the file, which is then half as large; it is float32 again when loaded.

    Returns:
        The path.

    Raises:
        WeightsError: The model is not a registered one, or was changed since it was built, so `load` could not rebuild
            it; or its `meta` holds something that JSON cannot say; or a number is too large for float16.
        OutputError: The file cannot be written; one that was there is untouched.
    """
    if reason := why_not_loadable(model):
        raise WeightsError(reason)
    meta, state = get_meta(model), unwrap(model).state_dict()
    # Not dataclasses.asdict, which would copy what users put into `training` before JSON can refuse it.
    return write_weights(path, state, dict(vars(meta)), __version__, half)


def why_not_loadable(model: nn.Module) -> str:
    """Why `load` could not build a model again from a file, and what to do; empty if it could."""
    meta, kind = get_meta(model), type(unwrap(model))
    # A subclass inherits `meta`, but `load` would build the class that the name stands for.
    if meta is None or model_class(meta.architecture) is not kind:
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
    """The model of a weight file: rebuilt, loaded strictly, in eval mode, on the CPU.

    Examples:
        >>> load("convnet.cifar3").meta.classes
        ('airplane', 'automobile', 'ship')
        >>> model = load("convnet.safetensors")  # doctest: +SKIP

    Args:
        source: Released weights of `list_models(pretrained=True)`, which come with the library and need no network; a
            path; or an address on the Hugging Face Hub: `hf://owner/repo[@revision][/file]`.

    Raises:
        WeightsError: The file is missing, damaged, a pickle or foreign, its architecture is unknown, or its tensors
            do not fit; the message says which. Or it is not the file that was released under that name, or a file
            has that name too.
        DownloadError: The Hub cannot be reached, and the file is not in the cache.
        UnknownNameError: It reads like the name of released weights, and there are none of that name.
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
            raise unknown_name("weights", source, releases())
    return _load_file(Path(source))


def load_release(name: str) -> nn.Module:
    """Released weights, if they are what the index says."""
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
        # A long list makes a deep model, which takes its time; but each of its layers has a tensor here.
        raise WeightsError(f"the header of {str(path)!r} tells of more layers than the file has tensors.")
    try:
        if faults := _misfits(meta, tensors):
            raise WeightsError(f"the tensors of {str(path)!r} do not fit the model: {faults}.")
        with torch.random.fork_rng(devices=[]):  # initialising what is overwritten must not move the user's numbers
            model = build(meta.architecture, dict(meta.config))
        described = {key: getattr(meta, key) for key in ("classes", "mean", "std", "training", "results", "size")}
        annotate(model, **described)
    except InputError as error:
        raise WeightsError(f"the header of {str(path)!r} does not fit the architecture: {error}") from error
    for name, target in model.state_dict(keep_vars=True).items():
        # The file's dtype and layout win; `.data` keeps two names of one parameter one.
        target.data = tensors[name]
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
            size=None if header.get("size") is None else tuple(header["size"]),  # nor this
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise WeightsError(f"the header of {str(path)!r} is incomplete or damaged ({error!r}).") from error


def _misfits(meta: ModelMeta, tensors: Mapping[str, Tensor]) -> str:
    """How tensors differ from the model that `meta` tells of, in words; empty if they fit."""
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
