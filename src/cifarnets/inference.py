"""The one gate where a model meets a batch: shapes, labels, eval mode, test-time augmentation, logits."""

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets._batch import Batch
from cifarnets.errors import DivergedError, InputError
from cifarnets.models.metadata import classes_of, constants_of, get_meta, in_channels, size_of, unwrap

Batches = Iterable[tuple[Tensor, Tensor]]
"""Anything that gives `(images [B, C, H, W], labels [B])`: a BatchLoader, a DataLoader, a list."""

TTA = Literal["mirror", "mirror_shift"]


def collect_logits(
    model: nn.Module, batches: Batches, device: torch.device, tta: TTA | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the float32 logits `[N, K]` of all batches; return them with the labels `[N]`, on the CPU.

    Raises:
        InputError: There is no batch, or one does not fit the model; the message says which.
    """
    check_model(model)
    logits, labels, channels = [], [], in_channels(model)
    with eval_mode(model, device) as session:
        for number, pair in enumerate(batches, 1):
            with batch_context("batch {}", number):
                batch = as_batch(pair)
                check_batch(batch, channels)
                logits.append(forward_logits(model, batch.images.to(device, session.dtype), tta))
            labels.append(batch.labels.to(device))
    if not labels:
        raise InputError("the loader gave no batch, so there is nothing to evaluate.")
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def forward_logits(model: nn.Module, images: Tensor, tta: TTA | None = None) -> Tensor:
    """Compute float32 logits `[B, K]`, as the mean over several views of each image where `tta` asks for it.

    Raises:
        InputError: There is no such augmentation, or the model gives something else than logits.
    """
    check_tta(tta)

    def both_sides(view: Tensor) -> Tensor:
        return (forward(model, view).float() + forward(model, view.flip(-1)).float()) / 2

    if tta is None:
        return forward(model, images).float()
    if tta == "mirror":
        return both_sides(images)
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    corners = (padded[:, :, :height, :width], padded[:, :, 2:, 2:])
    return both_sides(images) / 2 + (both_sides(corners[0]) + both_sides(corners[1])) / 4


def check_model(model: object) -> None:
    """Refuse what is no model.

    Raises:
        InputError: It is something else; for a name, the message says how to load it.
    """
    if isinstance(model, nn.Module):
        return
    hint = f": load it first, cifarnets.load({model!r})" if isinstance(model, (str, os.PathLike)) else ""
    raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__} {model!r}{hint}.")


def check_tta(tta: object) -> None:
    """Refuse an unknown test-time augmentation.

    Raises:
        InputError: It is neither `"mirror"`, `"mirror_shift"` nor None.
    """
    if not (tta is None or (isinstance(tta, str) and tta in ("mirror", "mirror_shift"))):
        raise InputError(f"tta must be 'mirror', 'mirror_shift' or None, not {tta!r}.")


def forward(model: nn.Module, images: Tensor) -> Tensor:
    """Call a model; refuse an output that is no matrix of logits, and name a wrong image size as the cause.

    Raises:
        InputError: The model gives something else than logits `[B, K]`, or torch raised and the images are not 32×32.
    """
    try:
        logits = model(images)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if images.shape[2:] == (32, 32):
            raise
        # Only the model knows how large its images may be.
        raise InputError(
            f"the model cannot take images {list(images.shape)}; CIFAR-10's are 32×32 ({error})."
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        kind = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"a model must give logits [B, K], one tensor, not {kind}.")
    return logits


class batch_context:  # noqa: N801 (used like contextlib's own; a generator would cost as much as a small layer)
    """Put the place of a batch before the message of each `InputError` and `DivergedError` in the block.

    Examples:
        >>> from cifarnets.errors import InputError
        >>> from cifarnets.inference import batch_context
        >>> with batch_context("epoch {}, batch {}", 3, 2):
        ...     raise InputError("the batch is empty.")
        Traceback (most recent call last):
        cifarnets.errors.InputError: epoch 3, batch 2: the batch is empty.

    Args:
        place: Such as `"epoch {}, batch {}"`; formatted only when there is an error.
        numbers: What to format it with.
    """

    __slots__ = ("numbers", "place")

    def __init__(self, place: str, *numbers: int) -> None:
        self.place = place
        self.numbers = numbers

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, (InputError, DivergedError)):
            error.args = (f"{self.place.format(*self.numbers)}: {error}",)


def as_batch(value: object, world_size: int = 1) -> Batch:
    """Take what a loader gave as a batch.

    Args:
        value: A `Batch`, or a pair of tensors: images and labels.
        world_size: How many processes got a shard of the same size.

    Raises:
        InputError: It is something else.
    """
    if isinstance(value, Batch):
        return value
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(isinstance(part, Tensor) for part in value):
        parts = ", ".join(type(part).__name__ for part in value) if isinstance(value, (tuple, list)) else ""
        raise InputError(
            "a loader must give (images [B, C, H, W], labels [B]), two tensors, not "
            f"{type(value).__name__}{f' of {parts}' if parts else ''}; put a dataset into a BatchLoader or DataLoader."
        )
    images, labels = value
    if not images.ndim or not labels.ndim:
        raise InputError(
            f"a loader must give batches, images [B, C, H, W] and labels [B], not single items {list(images.shape)} "
            f"and {list(labels.shape)}; put a dataset into a BatchLoader or DataLoader."
        )
    return Batch(images, labels, len(labels) * world_size)


def check_batch(batch: Batch, channels: int | None, *, soft: bool = False) -> None:
    """Refuse a batch that the model cannot take, from shapes and dtypes alone: nothing waits for the device.

    Args:
        batch: Images float `[B, C, H, W]`, labels int64 `[B]`.
        channels: What the model takes; None for any.
        soft: Whether labels may be weights of the classes too, float `[B, K]`.

    Raises:
        InputError: It does not fit.
    """
    images, labels, size = batch
    if not size:
        raise InputError("the batch is empty.")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"images must be float [B, C, H, W], not {images.dtype} {list(images.shape)}.")
    if channels is not None and images.shape[1] != channels:
        raise InputError(f"the model takes images of {channels} channels, not {list(images.shape)}.")
    if soft and labels.ndim == 2 and len(labels) == len(images) and labels.is_floating_point():
        return
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"{len(images)} images need int64 labels [{len(images)}], not {labels.dtype} {list(labels.shape)}."
        )


def check_labels(labels: Tensor, outputs: int) -> None:
    """Refuse labels `[B]`, or weights of the classes `[B, K]`, that a model of `outputs` classes cannot mean.

    Raises:
        InputError: A label is below 0, or not below `outputs`.
    """
    hard = labels if labels.ndim == 1 else labels.argmax(1)
    low, high = map(int, hard.aminmax())  # one pass: this runs for every batch
    if low < 0:
        raise InputError(
            f"labels run from {low} to {high}, and every label must be a class, 0 … {outputs - 1}: leave out images "
            "without a label, for none is ignored."
        )
    if high >= outputs:
        raise InputError(
            f"labels run from {low} to {high}, but the model has {outputs} outputs (0 … {outputs - 1}): "
            f"create it with num_classes={high + 1}, or relabel with cifar_subset."
        )


def check_probabilities(probabilities: Tensor) -> None:
    """Refuse probabilities `[N, K]` that a softmax made of NaN or infinite logits.

    Raises:
        InputError: There are some; the message says for how many images.
    """
    if probabilities.isnan().any():
        broken = int(probabilities.isnan().any(1).sum())
        raise InputError(f"the model gives NaN or infinity for {broken} of {len(probabilities)} images.")


def match_data(model: nn.Module, loader: object) -> tuple[str, ...] | None:
    """Check that a loader's images are what the model was trained on, and return the names of the outputs.

    Returns:
        The model's class names, else those of the loader's dataset; None where neither knows them.

    Raises:
        InputError: Both know the classes, the normalising constants, or the size of the images, and they differ.
    """
    meta, dataset = get_meta(model), getattr(loader, "dataset", None)
    own = meta.classes if meta else None
    classes = classes_of(dataset)
    if own is not None and classes is not None and classes != own:
        raise InputError(
            f"the loader's classes ({', '.join(classes)}) are not those that the model was trained on "
            f"({', '.join(own)}): choose them with cifar_subset, in that order."
        )
    served = constants_of(dataset)
    if meta is not None and meta.mean and meta.std and served is not None and served != (meta.mean, meta.std):
        raise InputError(
            f"the loader's images are normalised with mean {served[0]} and std {served[1]}, and the model was trained "
            f"with mean {meta.mean} and std {meta.std}: pass these as mean= and std= to the dataset."
        )
    size = size_of(dataset)
    if meta is not None and meta.size and size is not None and size != meta.size:
        raise InputError(
            f"the loader's images are {size[0]}×{size[1]}, and the model was trained on {meta.size[0]}×{meta.size[1]}: "
            "resize them."
        )
    return own or classes


def refuse_test_set(loader: object, user: str) -> None:
    """Refuse to choose on images that are visibly a test set, ours or torchvision's.

    Args:
        loader: What the choice would be made on.
        user: Who would choose, for the message.

    Raises:
        InputError: They are a test set.
    """
    if _is_test(loader):
        raise InputError(
            f"{user} would choose on the test set, whose figures would then be too good to be true: hold out a "
            "part of the training set with train_val_split, or say allow_test=True."
        )


def _is_test(loader: Any) -> bool:
    source = loader
    while hasattr(source, "dataset"):  # that of a loader, and of torch's Subset
        source = source.dataset
    if hasattr(source, "datasets"):  # torch's ConcatDataset
        return any(map(_is_test, source.datasets))
    return getattr(source, "split", None) == "test" or getattr(source, "train", None) is False


def name_outputs(classes: Sequence[str] | None, outputs: int) -> tuple[str, ...]:
    """Name every output; one beyond the known classes is called by its number."""
    if isinstance(classes, tuple) and len(classes) == outputs:
        return classes
    known = tuple(classes or ())[:outputs]
    return known + tuple(map(str, range(len(known), outputs)))


class eval_mode:  # noqa: N801 (used like contextlib's own; a generator would take longer than a small layer)
    """Hold the model on `device`, in eval mode and without gradients, until the block ends.

    Several threads may be inside at once: the first one in switches the model, the last one out puts back what it
    was. A thread that asks for another device waits.

    Examples:
        >>> import torch
        >>> from cifarnets.inference import eval_mode
        >>> model = torch.nn.Dropout()
        >>> with eval_mode(model, torch.device("cpu")) as session:
        ...     model.training, session.dtype
        (False, torch.float32)
        >>> model.training
        True
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        # Not inference_mode: nobody could train with a tensor that a loader or a model caches meanwhile.
        self._no_grad = torch.no_grad()

    def __enter__(self) -> "Session":
        key = self._key = id(unwrap(self._model))
        with _lock:
            while (session := _sessions.get(key)) is not None and session.device != self._device:
                _changed.wait()
            if session is None:
                session = _sessions[key] = Session(self._model, self._device)
            session.users += 1
        self._no_grad.__enter__()
        return session

    def __exit__(self, *error: object) -> None:
        self._no_grad.__exit__(*error)
        with _lock:
            session = _sessions[self._key]
            session.users -= 1
            if not session.users:
                del _sessions[self._key]
                session.close()
                _changed.notify_all()


class Session:
    """One model while it is being evaluated, by one thread or more; remembers what it was.

    Attributes:
        device: Where the model is for now.
        dtype: The dtype that it computes in: that of its first floating-point parameter.
        users: Threads that are evaluating it.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.device = device
        self.users = 0
        self._model = model
        self._home: torch.device | None = None
        self._training: list[nn.Module] = []
        on_cpu = device.type == "cpu"
        dtype: torch.dtype | None = None
        # By hand, since `modules()` and `parameters()` take longer than a small net needs for one picture.
        modules, seen = [model], {model}
        for module in modules:  # which grows meanwhile
            if module.training:
                self._training.append(module)
            for parameter in module._parameters.values():
                if parameter is None:
                    continue
                if dtype is None and parameter.is_floating_point():
                    dtype = parameter.dtype
                if not (on_cpu and parameter.is_cpu) and self._home is None and not _is_on(parameter, device):
                    self._home = parameter.device
            for child in module._modules.values():
                if child is not None and child not in seen:
                    seen.add(child)
                    modules.append(child)
        self.dtype = dtype or torch.float32
        if self._home is not None:
            model.to(device)
        if self._training:
            model.eval()

    def close(self) -> None:
        """Put the model back to what it was."""
        if self._home is not None:
            self._model.to(self._home)
        for module in self._training:
            module.training = True


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


_sessions: dict[int, Session] = {}
_lock = threading.RLock()
_changed = threading.Condition(_lock)
