"""Whether a saved state is that of the present fit: all of it is checked before anything is touched."""

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cifarnets.errors import CifarNetsError, InputError, brief
from cifarnets.training.optimizers import optimizer_names, parameters_of

LARGEST_COUNT = 2**31
"""No fit counts as far: a larger number is damage."""
_NOT_COMPARED = {"initial_lr", "param_names"}  # entries of a parameter group that others add, or later versions
_LAST_STEP = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"}
"""What changes in the state of a named schedule; all else in it follows from its options."""


def check_state(saved: Any, own: Mapping[str, Any], steps: int | None) -> None:
    """Refuse a state that is damaged, or that another fit has left.

    The feed and the callbacks check their parts themselves.

    Args:
        saved: What was read from a file.
        own: The state of the trainer that is to continue, before its first batch.
        steps: Optimizer steps of the present fit; None if nobody knows.

    Raises:
        InputError: The message says what is damaged, or how the two fits differ.
    """
    _require(isinstance(saved, Mapping), "it is not a dict")
    missing = [key for key in own if key not in saved]
    _require(not missing, f"it has no {', '.join(missing)}")
    _check_progress(saved, own["progress"])
    _check_fit(saved["progress"], own["progress"])
    _check_tensors("model", saved["model"], own["model"])
    _check_groups(saved["optimizer"], own["optimizer"])
    _check_schedule(saved["schedule"], own["schedule"], _steps_so_far(saved["progress"], own["progress"], steps))
    _check_alike("scaler", saved["scaler"], own["scaler"])
    _require(
        all(value > 0 for key, value in saved["scaler"].items() if key != "_growth_tracker"), "scaler is not above 0"
    )
    _check_history(saved["history"])
    _check_metrics(saved["tally"], saved["progress"]["batch"])
    _require(_is_list(saved["rng"]) and len(saved["rng"]) > 0, "rng is not a list")
    entries = saved["callbacks"]
    _require(
        _is_list(entries)
        and all(_is_list(entry) and len(entry) == 2 and isinstance(entry[0], str) for entry in entries)
        and all(isinstance(state, dict) for _, state in entries),
        "callbacks is not a list of names and states",
    )


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], gradients: Any) -> None:
    """Refuse an optimizer's state, or gradients, that its next step could not use.

    A copy of the optimizer loads the state and takes a step with zero gradients.

    Raises:
        InputError: A value is missing, or has another type or shape, or the step fails.
    """
    parameters = parameters_of(optimizer)
    _require(
        _is_list(gradients)
        and len(gradients) in (0, len(parameters))
        and all(g is None or _is_tensor(g, p) for g, p in zip(gradients, parameters, strict=False)),
        "gradients do not fit the parameters",
    )
    state = saved["state"]
    _require(isinstance(state, dict), "the state of the optimizer is not a dict")
    trial = copy_of(optimizer)
    if trial is None:
        return
    trial.state.clear()
    for group, theirs in zip(trial.param_groups, saved["param_groups"], strict=True):
        group["lr"] = theirs["lr"]  # an optimizer may leave out parameters whose rate is 0
    take_zero_step(trial)
    fresh = trial.state_dict()["state"]
    for key, values in state.items():
        place = f"the optimizer's state of parameter {key}"
        if key not in fresh and key in range(len(parameters)):  # its rate is 0 now, and was not
            fresh[key] = dict.fromkeys(values, parameters[key]) if isinstance(values, dict) else {}
        _require(key in fresh, f"{place} belongs to no parameter")
        _require(isinstance(values, dict) and values.keys() == fresh[key].keys(), f"{place} has other entries")
        for name, value in values.items():
            _check_alike(f"{place}, {name}", value, fresh[key][name])
            if name == "step":
                _require(0 <= float(value) < LARGEST_COUNT, f"{place}, step is {float(value)}")
    with _as_damage("the optimizer cannot step from its state"):
        trial.load_state_dict(copy.deepcopy(dict(saved)))
        take_zero_step(trial)


def check_schedule_step(schedule: LRScheduler, saved: Mapping[str, Any]) -> None:
    """Refuse the state of a schedule from which it could not take its next step.

    Raises:
        InputError: A copy of the schedule fails.
    """
    try:
        trial = copy.deepcopy(schedule)
    except (TypeError, RuntimeError):  # a user's, which holds something that cannot be copied
        return
    with _as_damage("the schedule cannot step from its state"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the optimizer's own step
        trial.load_state_dict(copy.deepcopy(dict(saved)))
        if isinstance(trial, ReduceLROnPlateau):
            trial.step(0.0)
        else:
            trial.step()


def copy_of(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """Copy one of the library's or torch's optimizers with its parameters; None for others, whose copies may share."""
    known = type(optimizer) in optimizer_names().values()
    return copy.deepcopy(optimizer) if known else None


def take_zero_step(optimizer: torch.optim.Optimizer) -> None:
    """Take one step with zero gradients."""
    for parameter in parameters_of(optimizer):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Say in which settings two fits differ; a setting that an earlier version did not save counts as equal.

    Examples:
        >>> from cifarnets.training.resume import differences
        >>> differences({"lr": [0.1], "optimizer": "SGD"}, {"lr": [0.5], "optimizer": "SGD"})
        ['lr [0.1], not [0.5]']
    """
    saved, own = _each_option(saved), _each_option(own)
    return [
        f"{key} {brief(saved[key])}, not {brief(own[key])}"
        for key in own
        if key in saved and not _equal(saved[key], own[key])
    ]


def _each_option(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Make each option of the optimizer a setting of its own, since torch adds one to them when it loads a state."""
    named = dict(settings)
    if isinstance(options := named.get("optimizer_options"), Mapping):
        del named["optimizer_options"]
        named |= {f"optimizer_options {name}": value for name, value in options.items()}
    return named


def _check_progress(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    progress = saved["progress"]
    _require(isinstance(progress, Mapping), "progress is not a dict")
    missing = [key for key in own if key not in progress and key != "settings"]  # earlier versions wrote no settings
    _require(not missing, f"progress has no {', '.join(missing)}")
    counts = {key: progress[key] for key in ("first", "epoch", "batch", "step", "epochs")}
    if progress["batches"] is not None:
        counts["batches"] = progress["batches"]
    for key, value in counts.items():
        _require(type(value) is int and 0 <= value < LARGEST_COUNT, f"{key} is {brief(value)}")
    done = counts["epoch"] - counts["first"]
    _require(0 <= done <= counts["epochs"], f"epoch is {counts['epoch']} of a fit of {counts['epochs']}")
    _require(counts["batch"] <= counts.get("batches", math.inf), f"batch is {counts['batch']}")
    _require(done < counts["epochs"] or not counts["batch"], f"batch is {counts['batch']} after the last epoch")
    lr = progress["lr"]
    _require(isinstance(lr, Tensor) or (_is_number(lr) and math.isfinite(lr)), f"lr is {brief(lr)}")
    _require(isinstance(progress.get("settings", {}), dict), "settings is not a dict")
    _require(isinstance(progress["schedule"], (str, type(None))), "schedule is not a name")


def _check_fit(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse another fit: other settings, another schedule, another loader."""
    if different := differences(saved.get("settings", {}), own["settings"]):
        raise InputError(f"the checkpoint is of a fit with {'; '.join(different)}.")
    if saved["schedule"] != own["schedule"]:
        raise InputError(
            f"the checkpoint is of a fit with another schedule: {saved['schedule']!r}, not {own['schedule']!r}."
        )
    if saved["batches"] != own["batches"]:
        raise InputError(
            f"the checkpoint is of a fit on another loader: {saved['batches']} batches an epoch, not {own['batches']}."
        )


def _check_tensors(name: str, saved: Any, own: Mapping[str, Tensor]) -> None:
    _require(isinstance(saved, Mapping), f"{name} is not a dict")
    if saved.keys() != own.keys():
        strange = sorted(map(str, saved.keys() ^ own.keys()))
        raise InputError(f"the checkpoint is of another {name}: {', '.join(strange[:5])} are in only one of them.")
    for key, tensor in own.items():
        found = saved[key]
        if isinstance(tensor, Tensor):
            _require(isinstance(found, Tensor), f"{key} of the {name} is not a tensor")
            if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                raise InputError(
                    f"the checkpoint is of another {name}: size mismatch for {key}, {found.dtype} "
                    f"{list(found.shape)}, not {tensor.dtype} {list(tensor.shape)}."
                )
        else:  # what get_extra_state gave
            _require(type(found) is type(tensor), f"{key} of the {name} is a {type(found).__name__}")


def _check_groups(saved: Any, own: Mapping[str, Any]) -> None:
    """Refuse parameter groups of another optimizer."""
    _require(isinstance(saved, Mapping) and {"state", "param_groups"} <= saved.keys(), "optimizer is incomplete")
    theirs, ours = saved["param_groups"], own["param_groups"]
    _require(_is_list(theirs) and all(isinstance(group, dict) for group in theirs), "param_groups is not a list")
    if not _equal([group.get("params") for group in theirs], [group["params"] for group in ours]):
        raise InputError("the checkpoint is of an optimizer with a different number of parameter groups, or of others.")
    for number, (group, mine) in enumerate(zip(theirs, ours, strict=True)):
        missing = sorted(mine.keys() - _NOT_COMPARED - group.keys())
        if missing:
            raise InputError(f"the checkpoint is of a fit with another optimizer, without {', '.join(missing)}.")
        for key in mine.keys() & group.keys() - _NOT_COMPARED:
            place, value = f"{key} of parameter group {number}", group[key]
            if isinstance(mine[key], (float, Tensor)) or (key == "lr" and _is_number(mine[key])):
                _check_alike(place, value, mine[key])  # a schedule or a callback may have changed it
                _require(isinstance(value, Tensor) or math.isfinite(value), f"{place} is {brief(value)}")
            elif isinstance(mine[key], tuple):
                _check_alike(place, value, mine[key])
                _require(key != "betas" or all(0 <= beta < 1 for beta in value), f"{place} is {brief(value)}")
            else:
                _require(_same(value, mine[key]), f"{place} is {brief(value)}, not {mine[key]!r}")


def _steps_so_far(saved: Mapping[str, Any], own: Mapping[str, Any], steps: int | None) -> int | None:
    """Optimizer steps that a named schedule has seen at most; None for another, or where nobody knows."""
    if own["schedule"] is None or steps is None:
        return None
    epochs: int = saved["epoch"] - saved["first"]
    return epochs * (steps // int(own["epochs"])) + int(saved["batch"]) // int(own["settings"]["accumulate"])


def _check_schedule(saved: Any, own: Mapping[str, Any], steps: int | None) -> None:
    _require(isinstance(saved, Mapping), "schedule is not a dict")
    if saved.keys() != own.keys():
        raise InputError("the checkpoint is of a fit with another schedule.")
    for key, value in own.items():
        place = f"{key} of the schedule"
        if steps is not None and key not in _LAST_STEP:
            _require(_same(saved[key], value), f"{place} is {brief(saved[key])}, not {brief(value)}")
        else:
            _check_alike(place, saved[key], value)
    if "last_epoch" in own:
        last = saved["last_epoch"]
        _require(0 <= last <= (LARGEST_COUNT if steps is None else steps), f"last_epoch of the schedule is {last}")


def _check_history(saved: Any) -> None:
    plain = (int, float, str, bool, type(None))
    _require(
        _is_list(saved)
        and all(isinstance(row, dict) for row in saved)
        and all(isinstance(key, str) and isinstance(value, plain) for row in saved for key, value in row.items()),
        "history is not a list of dicts of plain values",
    )


def _check_metrics(saved: Any, batches: int) -> None:
    """Refuse metrics that are not of so many batches; earlier versions have a number of images, and no sizes."""
    _require(isinstance(saved, dict), "tally is not a dict")
    if not batches:
        return
    losses = saved.get("losses")
    _require(
        _is_list(losses)
        and len(losses) == batches
        and all(isinstance(loss, Tensor) and loss.ndim == 0 and loss.is_floating_point() for loss in losses),
        f"tally does not have the losses of {batches} batches",
    )
    sizes = saved.get("sizes", [1] * batches)
    _require(
        _is_list(sizes)
        and len(sizes) == batches
        and all(type(size) is int and 0 < size < LARGEST_COUNT for size in sizes),
        f"tally does not have the sizes of {batches} batches",
    )
    images = saved.get("images", sum(sizes))
    _require(type(images) is int and 0 < images < LARGEST_COUNT * batches, "images of tally is not a count")
    correct, seconds = saved.get("correct"), saved.get("seconds")
    whole = isinstance(correct, Tensor) and (correct.ndim, correct.dtype) == (0, torch.int64)
    _require(whole and 0 <= int(correct) <= max(images, sum(sizes)), "correct of tally is not a count")
    _require(_is_number(seconds) and 0 <= seconds < math.inf, f"seconds of tally is {brief(seconds)}")


def check_rng(saved: Any) -> None:
    """Refuse what `restore_rng` would not notice: NumPy believes the place in its table of numbers.

    Raises:
        InputError: The state is damaged.
    """
    _require(isinstance(saved, dict) and {"python", "numpy", "torch"} <= saved.keys(), "rng is incomplete")
    numpy = saved["numpy"]
    _require(_is_list(numpy) and len(numpy) == 5, "numpy of rng has not five parts")
    name, keys, place, has_gauss, gauss = numpy
    _require(
        name == "MT19937"
        and isinstance(keys, Tensor)
        and (keys.dtype, keys.shape) == (torch.int64, (624,))
        and bool(((keys >= 0) & (keys < 2**32)).all())
        and type(place) is int
        and 0 <= place <= 624
        and type(has_gauss) is int
        and has_gauss in (0, 1)
        and _is_number(gauss),
        "numpy of rng is no state of MT19937",
    )


def check_plain_values(place: str, saved: Any, own: Mapping[str, Any]) -> None:
    """Refuse a state whose numbers and texts have other types; what else is in it only its owner can judge.

    Raises:
        InputError: It is no dict, or a value has another type.
    """
    _require(isinstance(saved, dict), f"the state of {place} is not a dict")
    for key in own.keys() & saved.keys():
        if isinstance(own[key], (bool, int, float, str)):
            _check_alike(f"{key} of {place}", saved[key], own[key])


@contextlib.contextmanager
def _as_damage(what: str) -> Iterator[None]:
    """Raise whatever comes from a trial of a saved state as an `InputError`."""
    try:
        yield
    except CifarNetsError:
        raise
    except Exception as error:  # each optimizer and each schedule fails in its own way
        raise InputError(f"the checkpoint is damaged: {what} ({type(error).__name__}: {error}).") from error


def _check_alike(place: str, saved: Any, own: Any) -> None:
    """Refuse a value of another type or shape than one's counterpart; numbers may differ."""
    if isinstance(own, Tensor):
        _require(_is_tensor(saved, own), f"{place} is not a tensor {list(own.shape)} of that type")
    elif isinstance(own, bool) or own is None or isinstance(own, str):
        _require(type(saved) is type(own), f"{place} is {brief(saved)}")
    elif isinstance(own, int):
        _require(type(saved) is int and abs(saved) < LARGEST_COUNT**2, f"{place} is {brief(saved)}")
    elif isinstance(own, float):
        _require(_is_number(saved), f"{place} is {brief(saved)}")
    elif isinstance(own, Mapping):
        _require(isinstance(saved, Mapping) and saved.keys() == own.keys(), f"{place} has other keys")
        for key, value in own.items():
            _check_alike(f"{place}, {key}", saved[key], value)
    elif _is_list(own):
        _require(_is_list(saved) and len(saved) == len(own), f"{place} has not {len(own)} parts")
        for number, value in enumerate(own):
            _check_alike(f"{place}, {number}", saved[number], value)


def _equal(saved: Any, own: Any) -> bool:
    try:
        return bool(saved == own)
    except Exception:  # a tensor, or a nesting that is too deep
        return False


def _same(saved: Any, own: Any) -> bool:
    """Whether two plain values are equal; what a file cannot hold as it is (a class, a function) is not compared."""
    if isinstance(saved, Tensor) or isinstance(own, Tensor):
        return isinstance(saved, Tensor) and isinstance(own, Tensor) and torch.equal(saved, own.to(saved))
    if _is_list(own) and _is_list(saved):
        return len(own) == len(saved) and all(map(_same, saved, own))
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        return own.keys() == saved.keys() and all(_same(saved[key], own[key]) for key in own)
    return type(saved) is type(own) and bool(saved == own)


def _is_tensor(value: object, like: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        and value.shape == like.shape
        and value.is_floating_point() == like.is_floating_point()
    )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < LARGEST_COUNT**2  # what is larger has no float
    return isinstance(value, float)


def _require(is_right: bool, fault: str) -> None:
    if not is_right:
        raise InputError(f"the checkpoint is damaged: {fault}.")
