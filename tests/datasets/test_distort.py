"""Distortions against torchvision's functional transforms, one image at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.transforms.functional as T
from torch import Tensor

from cifarnets.datasets import Augment, BatchLoader, ImageDataset
from cifarnets.datasets.augment import ERASED_AREA
from cifarnets.datasets.distort import add_contrast, brighten, rotate, saturate, sharpen, turn_hue

IMAGES = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
IMAGES[0] = 0
IMAGES[1] = 255
IMAGES[2, 1:] = 0  # a pure red
IMAGES[3] = IMAGES[3, :1]  # grey
SPREAD: dict[str, Any] = {
    "rotate": 30,
    "sharpness": 1.2,
    "brightness": 0.3,
    "contrast": 0.4,
    "saturation": 0.5,
    "hue": 0.2,
    "erase": 0.5,
}


def rotated(image: Tensor, degrees: float) -> Tensor:
    """torchvision's rotation of a picture that was padded by its reflection."""
    height, width = image.shape[1:]
    larger = T.pad(image, [width - 1, height - 1], padding_mode="symmetric")
    return T.center_crop(T.rotate(larger, degrees, T.InterpolationMode.BILINEAR), [height, width])


REFERENCES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], float, float]] = {
    "rotate": (rotate, rotated, -180, 180),
    "sharpness": (sharpen, T.adjust_sharpness, 0, 3),
    "brightness": (brighten, T.adjust_brightness, 0, 3),
    "contrast": (add_contrast, T.adjust_contrast, 0, 3),
    "saturation": (saturate, T.adjust_saturation, 0, 3),
    "hue": (turn_hue, T.adjust_hue, -0.5, 0.5),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_each_image_is_distorted_as_torchvision_does_it(name: str, channels_last: bool) -> None:
    ours, theirs, low, high = REFERENCES[name]
    amounts = torch.linspace(low, high, len(IMAGES))
    unit = IMAGES.float() / 255
    expected = torch.stack([theirs(image, float(amount)) for image, amount in zip(unit, amounts, strict=True)])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    found = ours(IMAGES.float().contiguous(memory_format=layout), amounts) / 255
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["rotate", "sharpness", "brightness", "contrast"])
def test_pictures_that_are_neither_square_nor_coloured(name: str) -> None:
    ours, theirs, low, high = REFERENCES[name]
    grey = IMAGES[:, :1, :20, :26]
    amounts = torch.linspace(low, high, len(grey))
    expected = torch.stack([theirs(image, float(a)) for image, a in zip(grey.float() / 255, amounts, strict=True)])
    torch.testing.assert_close(ours(grey.float(), amounts) / 255, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("function", [saturate, turn_hue])
def test_grey_pictures_have_no_colours_to_change(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    grey = IMAGES[:, :1].float()
    assert torch.equal(function(grey, torch.full((len(grey),), 0.4)), grey)


def _epoch(augment: Augment, seed: int = 3, channels_last: bool = False, images: Tensor = IMAGES) -> Tensor:
    data = ImageDataset(images, [0] * len(images), ["a"], view="unit")
    loader = BatchLoader(data, 5, device="cpu", seed=seed, augment=augment, channels_last=channels_last)
    return torch.cat([batch for batch, _ in loader])


@pytest.mark.parametrize("name", REFERENCES)
def test_every_image_gets_an_amount_within_the_range_of_its_own(name: str) -> None:
    # The same picture many times: what the loader makes of it is one of the forms that the range allows.
    _, theirs, _, _ = REFERENCES[name]
    same = IMAGES[5:6].expand(60, -1, -1, -1)
    amount = {"rotate": 20.0, "hue": 0.3}.get(name, 0.5)
    low, high = {"sharpness": (1, 1.5), "rotate": (-20, 20), "hue": (-0.3, 0.3)}.get(name, (0.5, 1.5))
    seen = _epoch(Augment(flip=None, **{name: amount}), images=same)
    steps = torch.linspace(low, high, 81).tolist()
    forms = torch.stack([theirs(IMAGES[5].float() / 255, step) for step in steps])
    nearest = (seen[:, None] - forms).abs().mean((2, 3, 4)).min(1)
    step = (forms[1:] - forms[:-1]).abs().mean((1, 2, 3)).max()
    assert float(nearest.values.max()) <= float(step)
    chosen = torch.tensor(steps)[nearest.indices]
    assert len(set(nearest.indices.tolist())) > 30, "each has its own"
    assert float(chosen.min()) < low + 0.2 * (high - low)
    assert float(chosen.max()) > high - 0.2 * (high - low)


def test_erased_rectangles_are_as_large_and_as_many_as_asked() -> None:
    white = torch.full((2000, 3, 32, 32), 255, dtype=torch.uint8)
    holes = (_epoch(Augment(flip=None, erase=0.25), images=white) == 0).all(1)
    erased = holes.flatten(1).any(1)
    assert abs(int(erased.sum()) - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5
    for hole in holes[erased][:100]:
        rows, columns = hole.any(1).sum(), hole.any(0).sum()
        assert hole.sum() == rows * columns, "a rectangle"
    share = holes[erased].float().mean((1, 2))
    assert ERASED_AREA[0] * 0.7 < float(share.min()) < 0.04
    assert 0.28 < float(share.max()) < ERASED_AREA[1] * 1.1
    assert int(holes[erased].sum(0).min()) > 0, "everywhere"


@pytest.mark.parametrize("channels_last", [False, True])
def test_an_epoch_depends_on_seed_and_epoch_alone(channels_last: bool) -> None:
    augment = Augment(translate=2, cutout=4, **SPREAD)
    first, again = (_epoch(augment, channels_last=channels_last) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, _epoch(augment, seed=4))
    torch.testing.assert_close(first, _epoch(augment))  # the layout changes no number by more than its rounding


def test_one_distortion_does_not_change_the_chances_of_another() -> None:
    alone = _epoch(Augment(flip=None, brightness=0.3))
    beside = _epoch(Augment(flip=None, brightness=0.3, sharpness=1e-9, erase=1e-9))
    torch.testing.assert_close(alone, beside)


def test_the_form_of_before_stays_the_text_that_checkpoints_hold() -> None:
    assert repr(Augment("alternating", translate=2)) == (
        "Augment(flip='alternating', translate=2, cutout=0, mixup=0.0, cutmix=0.0)"
    )
    assert repr(Augment(hue=0.1)).endswith("cutmix=0.0, hue=0.1)")
    assert eval(repr(Augment(mixup=0.2, mix_ramp=3, **SPREAD))) == Augment(mixup=0.2, mix_ramp=3, **SPREAD)


@pytest.mark.gpu
def test_on_cuda_the_same_is_done() -> None:
    data = ImageDataset(IMAGES, [0] * len(IMAGES), ["a"], view="unit")
    batches = [
        next(iter(BatchLoader(data, 24, device=device, seed=1, augment=Augment(translate=2, **SPREAD))))[0].cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*batches, atol=1e-3, rtol=0)
