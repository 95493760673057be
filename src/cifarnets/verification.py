"""Checks that released weights are what the index says, for anyone on any machine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets.datasets import EVAL_BATCH_SIZE, BatchLoader, dataset_for, find_cifar10, normalize
from cifarnets.datasets.files import FOLDER
from cifarnets.errors import CifarNetsError, DataNotFoundError, InputError, WeightsError, brief, unknown_name
from cifarnets.inference import collect_logits
from cifarnets.models.storage import load
from cifarnets.weights import index
from cifarnets.weights.files import parse_weights
from cifarnets.weights.index import Release, find_release, releases, sha256

LOGIT_TOLERANCE = 1e-3
ACCURACY_TOLERANCE = 5e-4


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Examples:
        >>> import cifarnets
        >>> check = cifarnets.verify("convnet.cifar3")[0]
        >>> check.what, check.passed
        ('file', True)

    Attributes:
        name: The name of the weights.
        what: `"file"`, `"golden logits"` or `"test images"`.
        passed: None if the check could not be made here.
        detail: What was found, in words.
    """

    name: str
    what: str
    passed: bool | None
    detail: str


@checked
def verify(
    names: str | Sequence[str] = (), root: str | os.PathLike[str] | None = None, *, device: str | torch.device = "cpu"
) -> list[Check]:
    """Check released weights: every byte, the logits of a dozen pictures, and the accuracy on the test images.

    The pictures are drawn, and come with the library together with the logits that the weights had for them at their
    release. The accuracy must agree with the index to 0.05 points; without CIFAR-10 on this machine it is not checked.

    Examples:
        >>> import cifarnets
        >>> [check.what for check in cifarnets.verify("convnet.cifar3")]
        ['file', 'golden logits', 'test images']

    Args:
        names: One name or several of `list_models(pretrained=True)`; none for all, older versions and
            further seeds among them.
        root: The folder of CIFAR-10; see `CIFAR10Normalized`.
        device: Where to compute. Devices other than the CPU may round more than the check of the logits allows.

    Returns:
        Up to three checks for each name. If the file is not the released one, it is the only check.

    Raises:
        UnknownNameError: There are no weights of that name.
        InputError: `names` is neither text nor a list of texts.
        DataNotFoundError: `root` is given, and CIFAR-10 is not there.
    """
    if not isinstance(names, (str, list, tuple)) or not all(isinstance(name, str) for name in names):
        raise InputError(f"names must be a name of released weights, or a list of names, not {brief(names)}.")
    names = [names] if isinstance(names, str) else names
    if root is not None and find_cifar10(root) is None:
        raise DataNotFoundError(f"there is no CIFAR-10 in {str(root)!r}, the folder that holds {FOLDER!r}.")
    chosen = []
    for name in names or releases():
        release = find_release(name)
        if release is None:
            raise unknown_name("weights", name, releases())
        chosen.append(release)
    return [check for release in chosen for check in _checks(release, root, resolve_device(device))]


def _checks(release: Release, root: str | os.PathLike[str] | None, device: torch.device) -> list[Check]:
    try:
        model = load(release.name)
    except CifarNetsError as error:
        return [Check(release.name, "file", False, str(error))]
    found = f"SHA-256 {release.sha256[:12]}…, {release.size:,} bytes, {release.parameters:,} parameters"
    file = Check(release.name, "file", True, found)
    try:
        images, logits, predictions = read_golden(release)
    except WeightsError as error:
        return [file, Check(release.name, "golden logits", False, str(error))]
    checks = [file, _check_logits(release, model, images, logits, device)]
    if find_cifar10(root) is None:
        missing = "not looked at: CIFAR-10 is not here (`cifarnets download`, or CIFARNETS_DATA)"
        return [*checks, Check(release.name, "test images", None, missing)]
    try:
        return [*checks, _check_accuracy(release, model, predictions, root, device)]
    except CifarNetsError as error:  # of a damaged data file, say
        return [*checks, Check(release.name, "test images", False, str(error))]


def read_golden(release: Release) -> tuple[Tensor, Tensor, Tensor]:
    """What released weights gave at their release.

    Examples:
        >>> from cifarnets.verification import read_golden
        >>> from cifarnets.weights.index import releases
        >>> [list(tensor.shape) for tensor in read_golden(releases()["convnet.cifar3"])]
        [[12, 3, 32, 32], [12, 3], [3000]]

    Returns:
        A dozen drawn pictures, uint8; the logits of these; the predicted classes of the test images.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    try:
        golden, _ = parse_weights((index.FOLDER / index.GOLDEN_FILE).read_bytes(), index.GOLDEN_FILE)
        found = golden["images"], golden[f"{release.name}.logits"], golden[f"{release.name}.predictions"]
    except OSError as error:
        raise WeightsError(str(error)) from error
    except KeyError as error:
        raise WeightsError(f"{index.GOLDEN_FILE} lacks {error}.") from error
    wanted = [(12, 3, 32, 32), (12, len(release.classes)), (1000 * len(release.classes),)]
    if [tuple(tensor.shape) for tensor in found] != wanted:
        raise WeightsError(f"{index.GOLDEN_FILE} has tensors of other shapes.")
    return found


def _check_logits(release: Release, model: nn.Module, images: Tensor, expected: Tensor, device: torch.device) -> Check:
    inputs = normalize(images, release.mean, release.std)
    found, _ = collect_logits(model, [(inputs, torch.zeros(len(inputs), dtype=torch.long))], device)
    gap = (found - expected).abs().max().item()
    detail = f"of {len(images)} pictures within {gap:.1e} (allowed: {LOGIT_TOLERANCE:.0e})"
    return Check(release.name, "golden logits", gap <= LOGIT_TOLERANCE, detail)


def _check_accuracy(
    release: Release, model: nn.Module, expected: Tensor, root: str | os.PathLike[str] | None, device: torch.device
) -> Check:
    predictions, labels = predict_test_images(model, release, root, device)
    accuracy = (predictions == labels).double().mean().item()
    gap = abs(accuracy - release.file_accuracy)
    detail = f"accuracy {accuracy:.4f} (index: {release.file_accuracy:.4f}); "
    if sha256(predictions.byte().numpy().tobytes()) == release.predictions_sha256:
        detail += f"all {len(labels):,} predictions as at the release"
    else:
        differ = int((predictions != expected).sum())
        detail += f"{differ:,} of {len(labels):,} predictions differ from those at the release"
    return Check(release.name, "test images", gap <= ACCURACY_TOLERANCE, detail)


def predict_test_images(
    model: nn.Module, release: Release, root: str | os.PathLike[str] | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Predict all test images of a release's classes: the predictions and the labels, each int64 `[N]`.

    Examples:
        >>> import torch
        >>> from cifarnets import load
        >>> from cifarnets.verification import predict_test_images
        >>> from cifarnets.weights.index import releases
        >>> cpu, release = torch.device("cpu"), releases()["convnet.cifar3"]
        >>> predictions, labels = predict_test_images(load(release.name), release, None, cpu)  # doctest: +SKIP
    """
    batches = BatchLoader(dataset_for(release, root), EVAL_BATCH_SIZE, device=device, channels_last=True, seed=0)
    logits, labels = collect_logits(model, batches, device)
    return logits.argmax(1), labels
