"""Checkpoints of other programs: their tensors in a model of this library, and a report of what matched.

A checkpoint is data of a stranger. A torch file is read with `weights_only=True`, which runs no code of it; everything
is checked before the first tensor is copied, so a file that does not fit leaves the model as it was.
"""

import argparse
import hashlib
import math
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._files import as_path, open_regular
from cifarnets.errors import InputError, WeightsError, brief
from cifarnets.models import VGG, MobileNetV2, ResNet, ResNet18, annotate, create
from cifarnets.models.metadata import get_meta, unwrap
from cifarnets.models.registry import registered, unknown_model
from cifarnets.weights.files import TENSORS, VERSION_KEY, read_weights

ENTRIES = (
    *("state_dict_ema", "model_state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow"),
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
)
"""Where training scripts put a state dict, averaged weights first: these are what a run is measured with."""

MARKERS = ("module", "_orig_mod")
"""What data parallel and `torch.compile` put into names, at the beginning or in the middle."""

HOLDERS = ("model", "net")
"""What a script calls the model inside its own class, at the beginning of names."""

NESTED = 4
"""How deep entries, or holders, are looked for in each other."""

SHOWN = 6
"""Names of one kind that a message lists."""

_SAFE_GLOBALS = threading.Lock()
"""What torch takes for safe is the same in all threads."""

_STARTS = (b"PK\x03\x04", b"\x80")
"""How torch files begin: a ZIP archive since torch 1.6, a pickle before."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_state` found in a file, and what it did; prints as a few lines.

    Examples:
        >>> import tempfile, torch
        >>> from cifarnets import create
        >>> from cifarnets.sharing import load_state
        >>> model = create("fcnet")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": torch.nn.DataParallel(model).state_dict()}, f"{folder}/mine.pth")
        ...     print(load_state(create("fcnet"), f"{folder}/mine.pth"))
        mine.pth: 8 of 8 tensors of the model
          entry   state_dict
          prefix  module. (removed)
          layout  cifarnets

    Attributes:
        file: The name of the file.
        entry: Where in the file the state dict lies: `"state_dict"`, `"ema.module"`; empty if it is all of the file.
        prefix: What was removed from the names.
        layout: Whose names these are.
        matched: How many tensors of the model the file had.
        total: How many tensors the model has.
        missing: Tensors of the model that the file lacks, all of them allowed.
        unexpected: Names in the file that the model has not, all of them allowed.
        notes: What else a reader should know.
    """

    file: str
    entry: str
    prefix: str
    layout: str
    matched: int
    total: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [
            ("entry", self.entry),
            ("prefix", self.prefix and f"{self.prefix} (removed)"),
            ("layout", self.layout),
            ("missing", _listed(self.missing)),
            ("left out", _listed(self.unexpected)),
            *(("note", note) for note in self.notes),
        ]
        head = f"{self.file}: {self.matched:,} of {self.total:,} tensors of the model"
        return "\n".join([head, *(f"  {title:<8}{text}" for title, text in rows if text)])


class _Layout(NamedTuple):
    """Whose names these are, and what a layer of theirs is called here."""

    name: str
    layers: Mapping[str, str]
    """Patterns of names, with what stands for them; groups named stage and unit say which block it is."""


class _Match(NamedTuple):
    """One way to read the names of a file."""

    layout: str
    prefix: str
    origins: dict[str, str]
    """The name in the file of each name in the model's layout; names that no layout knows stay as they are."""
    hits: int
    """How many of them the model has."""


_OURS = _Layout("cifarnets", {})
_BLOCK = r"layer(?P<stage>\d{1,3})\.(?P<unit>\d{1,4})\."
_UNIT = r"features\.stage(?P<stage>\d{1,3})\.unit(?P<unit>\d{1,4})\."
_PLAIN = {"conv1": "conv", "bn1": "norm", _BLOCK + r"conv(?P<n>[12])": "conv{n}", _BLOCK + r"bn(?P<n>[12])": "norm{n}"}
LAYOUTS: dict[type[nn.Module], list[_Layout]] = {
    ResNet: [
        _Layout(
            "akamaster's or kuangliu's ResNet",
            {**_PLAIN, _BLOCK + r"shortcut\.(?P<n>[01])": "shortcut.{n}", "linear": "head"},
        ),
        _Layout("chenyaofo's ResNet", {**_PLAIN, _BLOCK + r"downsample\.(?P<n>[01])": "shortcut.{n}", "fc": "head"}),
        _Layout(
            "pytorchcv's CIFAR ResNet",
            {
                r"features\.init_block\.conv": "conv",
                r"features\.init_block\.bn": "norm",
                _UNIT + r"body\.conv(?P<n>[12])\.conv": "conv{n}",
                _UNIT + r"body\.conv(?P<n>[12])\.bn": "norm{n}",
                _UNIT + r"identity_conv\.conv": "shortcut.0",
                _UNIT + r"identity_conv\.bn": "shortcut.1",
                "output": "head",
            },
        ),
    ],
    MobileNetV2: [_Layout("chenyaofo's MobileNetV2", {r"classifier\.1": "head"})],
    VGG: [_Layout("kuangliu's VGG", {"classifier": "head"})],
}
"""The layouts of other libraries, by the class whose nets compute the same. The layout of this library comes first."""


@checked
def load_state(
    model: nn.Module,
    file: str | os.PathLike[str],
    *,
    entry: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> LoadReport:
    """Load the checkpoint of another program into a model, and report what matched.

    The file is a safetensors file, or one of `torch.save`; it is read without running any code of it. Prefixes of data
    parallel, `torch.compile` and wrapping classes are removed, the usual entries of training scripts are found, and
    the names of akamaster's, chenyaofo's, pytorchcv's and kuangliu's CIFAR ResNets, kuangliu's VGG
    and chenyaofo's MobileNetV2 are understood.

    Examples:
        >>> import tempfile, torch
        >>> from cifarnets import create
        >>> from cifarnets.sharing import load_state
        >>> theirs, ours = create("convnet"), create("convnet")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 9, "model": torch.compile(theirs).state_dict()}, f"{folder}/last.pt")
        ...     report = load_state(ours, f"{folder}/last.pt")
        >>> report.entry, report.prefix, torch.equal(ours.fc1.weight, theirs.fc1.weight)
        ('model', '_orig_mod.', True)

    Args:
        model: Any model; it keeps its dtype, its device and its mode.
        file: A path.
        entry: Which state dict of the file, such as `"state_dict"` or `"ema.module"`; None looks for it, and takes
            averaged weights (`ema`) before others.
        allow_missing: Names of the model that the file need not have, or patterns such as `"head.*"`. Those tensors
            stay as they are, also where the file has one of another shape.
        allow_unexpected: Names in the file that may be left over, or patterns.

    Raises:
        WeightsError: The file cannot be read, would run code, or holds no state dict; or something is missing, left
            over or of another shape, and was not allowed. The model is then unchanged.
    """
    found = as_path(file)
    return _load(model, found, *_state_dict(_read(found), found, entry), allow_missing, allow_unexpected)


@checked
def import_model(
    file: str | os.PathLike[str],
    name: str,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    entry: str | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    **config: Any,
) -> tuple[nn.Module, LoadReport]:
    """Create a model with the weights of another program's checkpoint; `cifarnets.save` then keeps it.

    The number of outputs and the kind of the shortcuts are those of the file, the channels those of `mean`.

    Examples:
        >>> import tempfile, torch
        >>> from cifarnets import create
        >>> from cifarnets.sharing import import_model
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(create("convnet", num_classes=3).state_dict(), f"{folder}/theirs.pth")
        ...     model, report = import_model(f"{folder}/theirs.pth", "convnet", mean=[0.5] * 3, std=[0.25] * 3)
        >>> model.num_classes, report.matched
        (3, 8)

    Args:
        file: A path, as for `load_state`.
        name: One of `list_models()`.
        mean: Mean of each channel of images in 0..1 that the model was trained with. No checkpoint has it; the script
            that wrote the checkpoint does.
        std: Standard deviation of each channel.
        classes: Names of the outputs, in their order.
        entry: As for `load_state`.
        allow_missing: As for `load_state`.
        allow_unexpected: As for `load_state`.
        config: Arguments of the model, such as `widths`.

    Returns:
        The model, in eval mode, and the report.

    Raises:
        UnknownNameError: There is no such model.
        InputError: The constants, the classes or an argument do not fit.
        WeightsError: As `load_state`.
    """
    if name not in registered():
        raise unknown_model(name)
    if len(mean) != len(std) or not mean or not min(std) > 0 or not all(map(math.isfinite, (*mean, *std))):
        raise InputError(
            f"mean {brief(mean)} and std {brief(std)} must be a finite number for each channel, and each std above 0."
        )
    found = as_path(file)
    state, where_found, others = _state_dict(_read(found), found, entry)
    given = config if len(mean) == 3 else {"in_channels": len(mean), **config}
    with torch.random.fork_rng(devices=[]):  # the weights come from the file, not from the user's random numbers
        model = create(name, **given)
        fitting = {**_from_names(model, _match(model, state), state), **given}
        if fitting != given:
            model = create(name, **fitting)
    report = _load(model, found, state, where_found, others, allow_missing, allow_unexpected)
    with open_regular(found) as content:
        digest = hashlib.sha256()
        while part := content.read(1 << 20):
            digest.update(part)
    source = {"file": found.name, "sha256": digest.hexdigest(), "entry": report.entry, "layout": report.layout}
    annotate(model, classes=classes, mean=mean, std=std, training={"imported": source})
    return model.eval(), report


def _from_names(model: nn.Module, match: _Match, state: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model that the tensors of a file give away."""
    found: dict[str, Any] = {}
    if outputs := _outputs(model, match, state):
        found["num_classes"] = outputs
    if isinstance(model, ResNet) and any(".shortcut." in name for name in match.origins):
        found["shortcut"] = "B"
    return found


def _outputs(model: nn.Module, match: _Match, state: Mapping[str, Any]) -> int | None:
    """How many outputs the head in a file has; None where there is no head, or the model has no such argument."""
    meta = get_meta(model)
    head: Any = state.get(match.origins.get(f"{getattr(model, 'head_name', 'head')}.weight", ""))
    if meta is None or "num_classes" not in meta.config or _fault(head) or head.ndim != 2:
        return None
    return len(head)


def _load(
    model: nn.Module,
    file: Path,
    state: Mapping[str, Any],
    entry: str,
    others: Sequence[str],
    allow_missing: Sequence[str],
    allow_unexpected: Sequence[str],
) -> LoadReport:
    """Check every tensor of a state dict against the model, and only then copy them."""
    targets = unwrap(model).state_dict(keep_vars=True)
    if any(not isinstance(target, Tensor) or target.is_meta for target in targets.values()):
        raise InputError("the model has tensors without numbers (on the device meta): build it on a device first.")
    match = _match(model, state)
    faults: list[str] = []
    copies: dict[str, Tensor] = {}
    missing: list[str] = []
    counters: list[str] = []
    dtypes: set[str] = set()
    for name, target in targets.items():
        origin = match.origins.get(name)
        if origin is None:
            # Files from before torch 0.4.1 have no such counters, and no output depends on them.
            (counters if name.endswith(".num_batches_tracked") else missing).append(name)
            continue
        tensor = state[origin]
        if fault := _fault(tensor) or _misfit(tensor, target):
            if _allowed(name, allow_missing):
                missing.append(name)
            else:
                faults.append(f"{_quoted(origin)} {fault}")
            continue
        copies[name] = tensor
        if tensor.dtype != target.dtype:
            dtypes.add(f"{tensor.dtype} in the file became {target.dtype}".replace("torch.", ""))
    left = [(name, origin) for name, origin in match.origins.items() if name not in copies]
    unexpected = [(name, origin) for name, origin in left if name not in targets]
    forbidden = [origin for name, origin in unexpected if not _allowed(name, allow_unexpected, origin)]
    lacking = [name for name in missing if not _allowed(name, allow_missing)]
    if lacking:
        faults.append(f"{len(lacking)} tensors of the model are missing: {_listed(lacking)}")
    if forbidden:
        faults.append(f"{len(forbidden)} names in the file are not part of the model: {_listed(forbidden)}")
    if not copies and not faults:
        faults.append("no name in the file is one of the model's")
    shown = type(unwrap(model)).__name__
    if faults:
        place = f" (its entry {entry!r})" if entry else ""
        listed = "; ".join(faults[:SHOWN]) + (f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else "")
        advice = _advice(model, match, state, targets) or (
            "If that is meant, name what may be missing or left over: allow_missing, allow_unexpected."
        )
        raise WeightsError(f"{brief(file.name)}{place} does not fit {shown}: {listed}. {advice}")
    notes = [f"the file has also: {', '.join(others)}"] if others else []
    notes += sorted(dtypes)
    if counters:
        notes.append(f"{len(counters)} num_batches_tracked are not in the file, and stay as they are")
    with torch.no_grad():
        for name, tensor in copies.items():
            targets[name].copy_(tensor)
    return LoadReport(
        file=file.name,
        entry=entry,
        prefix=match.prefix,
        layout=match.layout,
        matched=len(copies),
        total=len(targets),
        missing=tuple(missing),
        unexpected=tuple(origin for _, origin in left),
        notes=tuple(notes),
    )


def _match(model: nn.Module, state: Mapping[str, Any]) -> _Match:
    """The way to read the names of a file that gives the model most of its tensors; of equal ones the simplest."""
    inner = unwrap(model)
    wanted = inner.state_dict().keys()
    layouts = [_OURS, *(layout for kind, found in LAYOUTS.items() if isinstance(inner, kind) for layout in found)]
    ways = [
        _named(layout, prefix, names, wanted)
        for prefix, names in _without_prefixes(state, wanted)
        for layout in layouts
    ]
    return max(ways, key=lambda way: way.hits)  # the first of several


def _without_prefixes(state: Mapping[str, Any], wanted: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """The names of a file with ever more in front of them removed: `(removed, {name: name in the file})`."""
    yield "", {name: name for name in state}
    markers = [marker for marker in MARKERS if not any(marker in name.split(".") for name in wanted)]
    names: dict[str, str] = {}
    removed: dict[str, None] = {}  # a set in the order of first sight
    for name in state:
        parts = name.split(".")
        kept = ".".join(part for part in parts if part not in markers)
        if kept in names or (kept != name and kept in state):  # a copy of a layer beside the layer: which is meant?
            kept = name
        names[kept] = name
        removed |= dict.fromkeys(part for part in parts if part in markers)
    if removed:
        names = {name: origin for name, origin in names.items() if name != "n_averaged"}  # torch's AveragedModel
    level = [("".join(f"{marker}." for marker in removed), names)]
    for _ in range(NESTED):
        yield from level
        level = [
            (f"{prefix}{holder}.", _below(holder, found))
            for prefix, found in level
            for holder in HOLDERS
            if any(name.startswith(f"{holder}.") for name in found)
        ]


def _below(holder: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names below a holder, without it; others get a dot in front, so that no layer of the model has their name."""
    start = f"{holder}."
    return {
        name.removeprefix(start) if name.startswith(start) else f".{name}": origin for name, origin in names.items()
    }


def _named(layout: _Layout, prefix: str, names: Mapping[str, str], wanted: Any) -> _Match:
    """Names of one layout as the model has them."""
    patterns = [(re.compile(pattern), here) for pattern, here in layout.layers.items()]
    layers: dict[str, tuple[str, tuple[int, int] | None]] = {}
    for name in names:
        layer = name.rpartition(".")[0]
        for pattern, here in patterns:
            if found := pattern.fullmatch(layer):
                groups = found.groupdict()
                block = (int(groups["stage"]), int(groups["unit"])) if "stage" in groups else None
                layers[layer] = here.format(n=groups.get("n")), block
                break
    blocks = _block_numbers({block for _, block in layers.values() if block is not None})
    origins: dict[str, str] = {}
    for name, origin in names.items():
        layer, _, last = name.rpartition(".")
        ours = name
        if layer in layers:
            here, block = layers[layer]
            ours = f"{here}.{last}" if block is None else f"blocks.{blocks[block]}.{here}.{last}"
        # Where a file has a tensor under both names, theirs is left over.
        origins[name if ours in names or ours in origins else ours] = origin
    return _Match(layout.name, prefix, origins, len(origins.keys() & wanted))


def _block_numbers(found: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The place of each block, a (stage, unit), among all; a unit that is missing keeps its place."""
    first = min((unit for _, unit in found), default=0)
    sizes: dict[int, int] = {}
    for stage, unit in sorted(found):
        sizes[stage] = unit + 1 - first
    starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))  # but for the sum of all
    return {(stage, unit): starts[stage] + unit - first for stage, unit in found}


def _advice(model: nn.Module, match: _Match, state: Mapping[str, Any], targets: Mapping[str, Tensor]) -> str:
    """What to do about a file that does not fit, where the names say it."""
    inner = unwrap(model)
    name = type(inner).__name__
    four = any(re.search(r"(^|\.)layer4\.\d", origin) for origin in match.origins.values())
    if four and any(not _fault(t) and t.ndim == 4 and t.shape[2:] == (7, 7) for t in state.values()):
        return "The file begins with a 7×7 convolution: it is a net for large images, which no model here computes."
    if four and not isinstance(inner, ResNet18):
        return "The file has four stages: kuangliu's ResNet-18 is resnet18 here."
    theirs, ours = (
        sum(t.ndim == 4 and t.shape[2:] == (3, 3) for t in part) for part in (_dense(state), targets.values())
    )
    if theirs != ours:
        return f"The file has {theirs} convolutions of 3×3 and {name} has {ours}: is it the net of another depth?"
    if isinstance(inner, ResNet):
        learned = any(".shortcut." in key for key in match.origins)
        has = any(".shortcut." in key for key in targets)
        if learned != has:
            kind, words = ("B", "learned shortcuts (option B)") if learned else ("A", "shortcuts without weights (A)")
            return f"The file has {words}: create the model with shortcut={kind!r}."
    outputs, meta = _outputs(inner, match, state), get_meta(inner)
    if outputs and meta is not None and meta.config["num_classes"] != outputs:
        return f"The file has {outputs} outputs: create the model with num_classes={outputs}."
    return ""


def _dense(state: Mapping[str, Any]) -> list[Tensor]:
    return [tensor for tensor in state.values() if not _fault(tensor)]


def _fault(tensor: Any) -> str:
    """Why a value of a file is no tensor that could be copied; empty if it is one."""
    if not isinstance(tensor, Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "is a nested, sparse, quantised or empty (meta) tensor, for which no model here has a form"
    return ""


def _misfit(tensor: Tensor, target: Tensor) -> str:
    if tensor.shape != target.shape:
        return f"is {list(tensor.shape)} instead of {list(target.shape)}"
    if tensor.is_floating_point() != target.is_floating_point() or tensor.is_complex() != target.is_complex():
        return f"is {tensor.dtype} instead of {target.dtype}"
    return ""


def _allowed(name: str, patterns: Sequence[str], origin: str | None = None) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns for text in (name, origin) if text is not None)


def _state_dict(content: Mapping[Any, Any], file: Path, entry: str | None) -> tuple[dict[str, Any], str, list[str]]:
    """The state dict of a checkpoint, where it lies, and where others lie."""
    found = dict(_state_dicts(content))
    if entry is not None:
        value: Any = content
        for part in entry.split(".") if entry else ():
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, Mapping) or not any(isinstance(item, Tensor) for item in value.values()):
            known = ", ".join(map(repr, found)) or "none"
            raise WeightsError(f"{brief(file.name)} has no state dict at entry={brief(entry)}; there is: {known}.")
        found = {entry: value, **found}
        chosen = entry
    elif found:
        chosen = next(iter(found))
    else:
        keys = [key for key in content if isinstance(key, str)]
        raise WeightsError(
            f"{brief(file.name)} holds no state dict that is known: its entries are {_listed(keys) or 'none'}. "
            "Name the right one: entry='…'."
        )
    state = found.pop(chosen)
    if len(state) > TENSORS:
        raise WeightsError(f"{brief(file.name)} has {len(state):,} tensors; a checkpoint may have {TENSORS:,}.")
    if odd := [key for key in state if not isinstance(key, str)]:
        raise WeightsError(f"the state dict in {brief(file.name)} has a name that is no text: {brief(odd[0])}.")
    return dict(state), chosen, [name or "the tensors beside it" for name in found]


def _state_dicts(
    content: Mapping[Any, Any], path: str = "", depth: int = NESTED
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The state dicts in a checkpoint, by the path to each, in the order of `ENTRIES`."""
    deeper = False
    for name in ENTRIES:
        value = content.get(name)
        if depth and isinstance(value, Mapping):
            for found in _state_dicts(value, f"{path}.{name}" if path else name, depth - 1):
                deeper = True
                yield found
    # Beside an entry, a tensor is a figure of the training: akamaster's best_prec1.
    if not deeper and any(isinstance(value, Tensor) for value in content.values()):
        yield path, content


def _read(path: Path) -> Mapping[Any, Any]:
    """What a checkpoint holds; nothing in it has run."""
    shown = brief(str(path))
    try:
        with open_regular(path) as file:
            start = file.read(9)
            file.seek(0)
            if not start.startswith(_STARTS) or start[4:] == b"\0\0\0\0{":  # a long header begins like a pickle
                return _read_safetensors(path)
            if start.startswith(b"PK"):
                _check_archive(file, os.fstat(file.fileno()).st_size)
                file.seek(0)
            # Scripts that keep their options in a checkpoint keep a Namespace, which is a dict with dots.
            with _SAFE_GLOBALS, torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read the checkpoint {shown}: {error.strerror or error}.") from error
    except WeightsError:
        raise
    except Exception as error:  # a damaged file breaks readers in any way
        if wanted := re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error)):
            raise WeightsError(
                f"{shown} would run code of {brief(wanted[1], quotes=False)} while it is read; it was not opened. "
                "Where you trust it, load it with the program that wrote it, and save tensors only: "
                "torch.save(model.state_dict(), 'tensors.pth')."
            ) from error
        said = re.search(r"WeightsUnpickler error: (.*)", str(error)) or re.search(r"(.*)", str(error))
        reason = brief((said and said[1].strip(" .")) or type(error).__name__, quotes=False)
        raise WeightsError(f"{shown} is not a whole file of torch.save: {reason}.") from error
    if isinstance(content, Mapping):
        return content
    raise WeightsError(f"{shown} holds a {type(content).__name__}, and no state dict.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            ours = VERSION_KEY in (file.metadata() or {})
            if not ours:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise WeightsError(
            f"{brief(str(path))} is neither a whole safetensors file nor one of torch.save: "
            f"{brief(str(error), quotes=False)}."
        ) from error
    return read_weights(path)[0]  # which checks the digest too


def _check_archive(file: Any, size: int) -> None:
    """Refuse an archive that becomes larger when it is read: torch compresses nothing."""
    with zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > size:
            raise WeightsError(
                f"the archive {brief(str(getattr(file, 'name', '')))} has {size:,} bytes and would become larger; "
                "torch.save writes no such file."
            )


def _quoted(name: str) -> str:
    return brief(name, 100, quotes=False)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(_quoted(name) for name in names[:SHOWN]) + more
