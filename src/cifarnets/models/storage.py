"""Models in weight files: `save`, `load`, and the checks that a file and a model fit."""

import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cifarnets._checked import checked
from cifarnets._files import as_path
from cifarnets.errors import InputError, UnknownNameError, WeightsError, brief, unknown_name
from cifarnets.models.ensemble import Ensemble
from cifarnets.models.metadata import ModelMeta, annotate, get_meta, unwrap
from cifarnets.models.registry import build, is_same_class, model_class, registered, skeleton, unknown_model
from cifarnets.version import __version__
from cifarnets.weights import hub
from cifarnets.weights.files import check_sha256, parse_weights, read_weights, write_weights
from cifarnets.weights.index import Release, find_release, read_release, releases

_COMPUTING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""The dtypes that a model can compute in."""

_FACTS = ("classes", "mean", "std", "training", "results", "size", "provenance")
"""The entries of a header that say something about a model, and do not build it."""


@checked
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
        half: Round float32 to float16, which halves the file; the head, which chooses the class, stays as it is. `load`
            gives float32 again.

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
    head_name = getattr(unwrap(model), "head_name", None)
    halved = [name for name in state if half and not name.startswith(f"{head_name}.")]
    return write_weights(path, state, dict(vars(meta)), __version__, halved)


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
    if isinstance(unwrap(model), Ensemble):
        return (
            "an ensemble has no file of its own: save each model in `ensemble.models`, and put them together again "
            "with cifarnets.models.Ensemble([load(path), …])."
        )
    # A subclass inherits `meta`, but `load` would build the class of that name.
    if meta is None or not is_same_class(model_class(meta.architecture), kind):
        return (
            f"{kind.__name__} is not registered, so it could not be loaded again: put "
            "@cifarnets.models.register('name') before its class."
        )
    if not _are_classes(meta.classes):
        return f"the classes {brief(meta.classes)} must be a list of texts without control characters: see annotate."
    state = unwrap(model).state_dict()
    if faults := _misfits(meta, state):
        if advice := _how_to_undo(state):
            return f"the model has additional tensors ({faults}), which load could not restore: {advice}"
        return (
            f"the model is no longer what create({meta.architecture!r}, …) built, so it could not be loaded again: "
            f"{faults}. Pass sizes to create; for other layers, register a class of your own."
        )
    return ""


def _how_to_undo(names: Iterable[str]) -> str:
    """The advice for a model that torch's own tools have changed; empty for another."""
    ends = {"." + name.rpartition(".")[2] for name in names}
    if any(end.endswith("_mask") for end in ends) and any(end.endswith("_orig") for end in ends):
        return "make the pruning permanent first, with torch.nn.utils.prune.remove(module, 'weight')."
    if any(".parametrizations." in f".{name}" for name in names):
        return "remove them first, with torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')."
    if any(end.endswith("_g") for end in ends) and any(end.endswith("_v") for end in ends):
        return "remove the weight norm first, with torch.nn.utils.remove_weight_norm(module)."
    if any(end.endswith("_orig") for end in ends):
        return "remove the spectral norm first, with torch.nn.utils.remove_spectral_norm(module)."
    return ""


@checked
def load(source: str | os.PathLike[str], *, seed: int | None = None, expected_sha256: str | None = None) -> nn.Module:
    """Load a model from a weight file, on the CPU and in eval mode.

    Parameters are contiguous, as in a fresh model, whatever memory format the saved model had.

    Examples:
        >>> from cifarnets import load
        >>> load("convnet.cifar3").meta.classes
        ('airplane', 'automobile', 'ship')
        >>> model = load("convnet.safetensors")  # doctest: +SKIP

    Args:
        source: A name of `list_models(pretrained=True)`, whose weights come with the library and need no network; a
            path; or an address on the Hugging Face Hub: `hf://owner/repo[@revision][/file]`. A name stands for its
            newest version, and `name.v1` for the first one.
        seed: Released weights of another seed of the same runs; `info(name).variants` lists them.
        expected_sha256: The SHA-256 of the whole file, in hexadecimal. A file with another one is refused.

    Raises:
        WeightsError: The file is missing, damaged, a pickle or of another program; or the architecture is unknown, or
            the tensors do not fit it; or a released file was changed, or one is not the expected one; or the name is
            a file here as well. The message says which.
        DownloadError: The Hub cannot be reached, and the file is not in the cache.
        UnknownNameError: There are no released weights of that name and seed, and no such file.
        InputError: A seed is given for a file.
    """
    if seed is not None and not (isinstance(source, str) and re.fullmatch(r"[\w.]+", source)):
        raise InputError(f"only released weights have several seeds, not {brief(str(source))}.")
    if not isinstance(source, str):
        return _load_file(find_weights(source), expected_sha256)
    if source.startswith(hub.SCHEME):
        return _load_file(hub.fetch(source), expected_sha256)
    if re.match("https?://", source):
        address = hub.address_of(source)
        advice = f"write {brief(address)}" if address else "download the file, and load its path"
        raise InputError(f"load takes no web address such as {brief(source)}: {advice}.")
    if re.fullmatch(r"[\w.]+", source) and not source.endswith(".safetensors"):
        if release := find_release(source, seed):
            if _is_weight_path(Path(source)):
                raise WeightsError(f"{source!r} is a file here and the name of released weights: write './{source}'.")
            check_sha256(release.sha256, expected_sha256, source)
            return load_release(release)
        if seed is not None and find_release(source):
            raise unknown_weights(f"{source}.seed{seed}")
        if get_close_matches(source.partition(".")[0], registered()) and not as_path(source).exists():
            raise unknown_weights(source)
    return _load_file(find_weights(source), expected_sha256)


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


def load_release(release: Release) -> nn.Module:
    """Load released weights, after a check of the file against the index.

    Examples:
        >>> from cifarnets.models.storage import load_release
        >>> from cifarnets.weights.index import releases
        >>> load_release(releases()["convnet"]).training
        False

    Raises:
        WeightsError: The file, or its header, is not what the index says.
    """
    model = _rebuild(*parse_weights(read_release(release), release.file), brief(release.file))
    meta = get_meta(model)
    assert meta is not None
    found = {**vars(meta), "parameters": sum(p.numel() for p in model.parameters())}
    for key in ("architecture", "config", "parameters", "classes", "mean", "std"):
        theirs, ours = getattr(release, key), found[key]
        if json.dumps(theirs) != json.dumps(ours):
            raise WeightsError(
                f"the index of released weights says {key} {brief(theirs)} of {release.name!r}; its file "
                f"has {brief(ours)}."
            )
    annotate(model, provenance=release.provenance)  # which the first files lack
    return model


def _is_weight_path(path: Path) -> bool:
    return path.is_file() or (path / hub.DEFAULT_FILE).is_file()


def find_weights(source: str | os.PathLike[str]) -> Path:
    """The weight file of a path: the file itself, or the model in the folder of a run.

    Raises:
        WeightsError: There is no such folder, or it has no model.
        InputError: No file can have such a path.
    """
    path = as_path(source)
    if not path.is_dir():
        if not path.exists() and not path.suffix:  # the folder of a run, mistyped
            raise WeightsError(
                f"there is no {brief(str(source))}: pass a weight file, the folder of a finished run, or the name of "
                "released weights, which `cifarnets list --pretrained` prints."
            )
        return path
    if (path / hub.DEFAULT_FILE).is_file():
        return path / hub.DEFAULT_FILE
    names = sorted(other.name for other in path.glob("*.safetensors"))
    if "checkpoint.safetensors" in names:
        advice = f"its run has not ended: cifarnets train --resume {shlex.quote(str(source))} continues it."
    elif names:
        advice = f"name one of its files: {', '.join(brief(name, quotes=False) for name in names[:5])}."
    else:
        advice = "the folder of a finished run has one."
    raise WeightsError(f"the folder {brief(str(source))} has no {hub.DEFAULT_FILE}; {advice}")


def _load_file(path: Path, expected_sha256: str | None) -> nn.Module:
    return _rebuild(*read_weights(path, expected_sha256), brief(str(path)))


def _rebuild(tensors: dict[str, Tensor], header: dict[str, Any], name: str) -> nn.Module:
    """Build the model of a weight file; `name` is what messages call the file."""
    if "state" in header:
        raise WeightsError(
            f"{name} holds the state of a fit, to resume from; the model is beside it, in model.safetensors or "
            "last.safetensors."
        )
    meta = _read_meta(header, name)
    if meta.architecture not in registered():
        raise WeightsError(
            f"{name} holds a {brief(meta.architecture)}, which this version of cifarnets ({__version__}) does not "
            f"know (the file was written by {brief(header['cifarnets'], quotes=False)}). Known: "
            f"{', '.join(registered())}."
        )
    if any(len(value) > len(tensors) for value in meta.config.values() if isinstance(value, tuple)):
        # A long list makes a deep model, which takes long to build; but every layer must have a tensor in the file.
        raise WeightsError(f"the header of {name} describes more layers than the file has tensors.")
    try:
        if faults := _misfits(meta, tensors):
            raise WeightsError(f"the tensors of {name} do not fit the model: {faults}.")
        # Neither the user's random numbers nor a default device of the user take part in a load.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = build(meta.architecture, dict(meta.config))
        described = {key: getattr(meta, key) for key in _FACTS}
        annotate(model, **described)
        if len(meta.mean or ()) != len(meta.std or ()):
            raise InputError(f"mean {brief(meta.mean)} and std {brief(meta.std)} belong together.")
    except (InputError, RecursionError, MemoryError) as error:
        lines = str(error).splitlines() or [type(error).__name__]  # torch adds its own stack
        reason = brief(lines[0], 600, quotes=False)
        raise WeightsError(f"the header of {name} does not fit the architecture: {reason}") from error
    for key, target in model.state_dict(keep_vars=True).items():
        # The dtype of the file wins. `.data` keeps a parameter that has two names a single one.
        target.data = tensors[key].contiguous()
    return model.eval()


def _read_meta(header: Mapping[str, Any], name: str) -> ModelMeta:
    """What a header says of its model, if each entry is of its type and in its bounds."""
    entries = {"results": {}, "size": None, "provenance": {}, **header}  # files of earlier versions have none of them
    wanted: dict[str, tuple[Callable[[Any], bool], str]] = {
        "architecture": (lambda value: isinstance(value, str), "a name"),
        "config": (lambda value: isinstance(value, dict), "a table"),
        "classes": (_are_classes, "a list of texts without control characters, or null"),
        "mean": (_are_numbers, "a list of finite numbers, or null"),
        "std": (lambda value: _are_numbers(value) and min(value or [1]) > 0, "a list of numbers above 0, or null"),
        "training": (lambda value: isinstance(value, dict), "a table"),
        "results": (lambda value: isinstance(value, dict), "a table"),
        "provenance": (lambda value: isinstance(value, dict), "a table"),
        "size": (_is_size, "a height and a width, or null"),
    }
    for key, (is_right, words) in wanted.items():
        if key not in entries:
            raise WeightsError(f"the header of {name} is incomplete or damaged (it has no {key}).")
        if not is_right(entries[key]):
            shown = brief(entries[key])
            raise WeightsError(f"the header of {name} is incomplete or damaged ({key} must be {words}, not {shown}).")
    mean, std, classes = (None if (v := entries[key]) is None else tuple(v) for key in ("mean", "std", "classes"))
    return ModelMeta(
        architecture=entries["architecture"],
        config={key: tuple(value) if isinstance(value, list) else value for key, value in entries["config"].items()},
        classes=classes,
        mean=mean and tuple(map(float, mean)),
        std=std and tuple(map(float, std)),
        training=entries["training"],
        results=entries["results"],
        size=entries["size"] and tuple(entries["size"]),
        provenance=entries["provenance"],
    )


def _are_numbers(value: object) -> bool:
    return value is None or (isinstance(value, list) and bool(value) and all(_is_finite(number) for number in value))


def _is_size(value: object) -> bool:
    sides = value if isinstance(value, list) and len(value) == 2 else []
    return value is None or (bool(sides) and all(type(side) is int and 0 < side <= 4096 for side in sides))


def _is_finite(value: object) -> bool:
    # A whole number too large for a float is not finite for us either.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _are_classes(value: object) -> bool:
    """Whether these are names that can be printed: a terminal obeys control characters."""
    return value is None or (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(
            isinstance(text, str) and not any(unicodedata.category(c) in ("Cc", "Cs") for c in text) for text in value
        )
    )


def _misfits(meta: ModelMeta, tensors: Mapping[str, Tensor]) -> str:
    """The differences between tensors and the model of `meta`, in words; empty if there are none."""
    state = skeleton(meta.architecture, dict(meta.config)).state_dict()
    faults = [f"{name} is missing" for name in state.keys() - tensors.keys()]
    faults += [f"{brief(name, quotes=False)} is not part of the model" for name in tensors.keys() - state.keys()]
    dtypes: dict[torch.dtype, torch.dtype] = {}
    for name in state:
        if name not in tensors:
            continue
        tensor, wanted = tensors[name], state[name]
        if is_lazy(tensor):
            faults.append(f"{name} has no shape before the first batch")
            continue
        if tensor.shape != wanted.shape:
            faults.append(f"{name} is {list(tensor.shape)} instead of {list(wanted.shape)}")
        # A model computes in one dtype. (If it was built of two, each of them may be changed into another.)
        dtype = dtypes.setdefault(wanted.dtype, tensor.dtype) if tensor.dtype in _COMPUTING else wanted.dtype
        if tensor.dtype != (dtype if wanted.dtype in _COMPUTING else wanted.dtype):
            faults.append(
                f"{name} is {tensor.dtype} instead of {dtype if wanted.dtype in _COMPUTING else wanted.dtype}"
            )
    return "; ".join(sorted(faults)[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
