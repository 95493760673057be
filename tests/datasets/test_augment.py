import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cifarnets.datasets import Augment, BatchLoader, ImageDataset, SyntheticCIFAR10
from cifarnets.datasets.augment import LARGEST_AMOUNTS
from cifarnets.errors import InputError

IMAGES = torch.randint(0, 256, (23, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATASET = ImageDataset(IMAGES, torch.arange(23) % 5, list("abcde"), view="unit")


def _loader(augment: Augment, batch_size: int = 8, seed: int = 3, **options: bool) -> BatchLoader:
    return BatchLoader(DATASET, batch_size, device="cpu", seed=seed, augment=augment, **options)


def _epoch(loader: BatchLoader) -> torch.Tensor:
    return torch.cat([images for images, _ in loader])


def _windows(image: torch.Tensor, pad: int) -> list[torch.Tensor]:
    """Every shifted and mirrored form of a picture, made one by one with torch's own padding."""
    whole = F.pad(image[None], (pad,) * 4, mode="reflect")[0] if pad else image
    crops = [whole[:, y : y + 32, x : x + 32] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    return [form for crop in crops for form in (crop, crop.flip(-1))]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    pad=st.integers(0, 4),
    flip=st.sampled_from(["random", "alternating", None]),
    channels_last=st.booleans(),
)
def test_each_image_is_one_of_its_own_shifts_and_mirror_images(
    seed: int, pad: int, flip: str | None, channels_last: bool
) -> None:
    augment = Augment(flip=flip, translate=pad)  # type: ignore[arg-type]
    seen = _epoch(_loader(augment, seed=seed, channels_last=channels_last))
    for image, view in zip(IMAGES.float() / 255, seen, strict=True):
        forms = _windows(image, pad)
        allowed = forms if flip else forms[::2]
        assert any(torch.equal(view, form) for form in allowed)


def test_all_shifts_and_both_sides_occur() -> None:
    drawn = SyntheticCIFAR10(size=2000)
    same = ImageDataset(drawn.images[:1].expand(2000, -1, -1, -1), [0] * 2000, ["a"], view="unit")
    seen = _epoch(BatchLoader(same, 500, device="cpu", seed=0, augment=Augment(translate=1)))
    forms = _windows(same.images[0].float() / 255, 1)
    counts = [int((seen == form).flatten(1).all(1).sum()) for form in forms]
    assert sum(counts) == 2000
    assert min(counts) > 2000 / 18 / 2
    assert max(counts) < 2000 / 18 * 2


def test_holes_are_as_likely_everywhere() -> None:
    white = ImageDataset(torch.full((4000, 3, 32, 32), 255, dtype=torch.uint8), [0] * 4000, ["a"], view="unit")
    seen = _epoch(BatchLoader(white, 1000, device="cpu", seed=0, augment=Augment(flip=None, cutout=1)))
    holes = (seen == 0).all(1)
    assert (holes.flatten(1).sum(1) == 1).all(), "a hole of one pixel in every picture"
    for counts in (holes.sum((0, 1)), holes.sum((0, 2))):  # 125 expected in each column and in each row
        assert (counts - 125).square().sum() / 125 < 66, "chi-square, 31 degrees of freedom, p = 0.0002"
    assert (holes.sum((1, 2)) == 1).all()


def test_half_of_the_images_are_mirrored_and_other_ones_each_epoch() -> None:
    half = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8)
    half[..., 16:] = 255
    loader = BatchLoader(
        ImageDataset(half, [0] * 4000, ["a"], view="unit"), 1000, device="cpu", seed=0, augment=Augment()
    )
    first, second = ((_epoch(loader)[:, 0, 0, 0] == 1) for _ in range(2))
    for flipped in (first, second, first ^ second):  # 2,000 expected, standard deviation 32
        assert abs(int(flipped.sum()) - 2000) < 4 * 32


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_shares_of_mixtures_are_spread_as_asked(kind: str) -> None:
    loader = _loader(Augment(flip=None, **{kind: 1.0}), batch_size=23)  # type: ignore[arg-type]
    shares = [float(next(iter(loader))[1][1, 1]) for _ in range(400)]  # image 1 is of class 1, its partner of class 0
    # Beta(1, 1) is uniform; a rectangle that is cut off at the border leaves a larger share.
    assert 0.45 < sum(shares) / 400 < (0.55 if kind == "mixup" else 0.75)
    assert min(shares) < 0.2
    assert max(shares) > 0.9


@pytest.mark.gpu
def test_on_cuda_the_chances_are_those_of_the_cpu() -> None:
    augment = Augment(translate=3, cutout=6, mixup=0.5)
    loaders = [
        BatchLoader(DATASET, 8, True, device=device, seed=1, augment=augment, channels_last=True)
        for device in ("cpu", "cuda")
    ]
    for (images, labels), (on_cuda, labels_on_cuda) in zip(*loaders, strict=True):
        torch.testing.assert_close(on_cuda.cpu(), images)
        torch.testing.assert_close(labels_on_cuda.cpu(), labels)


def test_alternating_flips_show_both_sides_in_two_epochs() -> None:
    loader = _loader(Augment(flip="alternating"))
    first, second, third = _epoch(loader), _epoch(loader), _epoch(loader)
    assert torch.equal(first, second.flip(-1))
    assert torch.equal(first, third)
    assert not torch.equal(first, IMAGES.float() / 255)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("flip", ["random", None])
def test_the_way_of_devices_that_copy_views_gives_the_same(
    flip: Any, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {"augment": Augment(flip=flip, translate=2), "shuffle": True, "channels_last": channels_last}
    expected = [images for images, _ in _loader(**options)]
    monkeypatch.setattr("cifarnets.datasets.augment._reads_through_views", lambda _: False)
    for images, other in zip(expected, (images for images, _ in _loader(**options)), strict=True):
        assert torch.equal(images, other)
        assert images.stride() == other.stride()


def test_what_a_batch_looks_like_depends_on_seed_and_epoch_alone() -> None:
    augment = Augment(translate=2, cutout=6, mixup=0.4)
    loader, again = _loader(augment, shuffle=True), _loader(augment, shuffle=True)
    first, second = list(loader), list(loader)
    again.load_state_dict({"seed": 3, "epoch": 1})
    repeated = list(again)
    assert all(
        torch.equal(a, b) for old, new in zip(second, repeated, strict=True) for a, b in zip(old, new, strict=True)
    )
    assert not torch.equal(first[0][0], second[0][0])
    other = list(_loader(augment, shuffle=True, seed=4))
    assert not torch.equal(first[0][0], other[0][0])
    again.load_state_dict({"seed": 4, "epoch": 0})  # another seed in the same loader, as a resumed fit brings
    assert torch.equal(other[0][0], next(iter(again))[0])


@pytest.mark.parametrize("augment", [Augment(translate=2, cutout=5), Augment(mixup=0.5), Augment(cutmix=1.0)])
def test_shares_of_several_processes_make_up_the_batch(augment: Augment) -> None:
    loaders = [_loader(augment, shuffle=True) for _ in range(3)]
    whole = next(loaders[0].shard(0, 1))
    parts = [next(loader.shard(rank, 2)) for rank, loader in enumerate(loaders[1:])]
    for rank, part in enumerate(parts):
        assert torch.equal(whole[0][rank::2], part[0])
        assert torch.equal(whole[1][rank::2], part[1])
        assert part[2] == 8


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutout_blanks_one_square_within_the_borders(channels_last: bool) -> None:
    plain = _epoch(_loader(Augment(flip=None)))
    cut = _epoch(_loader(Augment(flip=None, cutout=8), channels_last=channels_last))
    for image, view in zip(plain, cut, strict=True):
        changed = (image != view).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        hole = view[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert hole.abs().max() == 0
        assert hole.shape[1] <= 8
        assert hole.shape[2] <= 8
        outside = torch.ones(32, 32, dtype=torch.bool)
        outside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = False
        assert torch.equal(image[:, outside], view[:, outside])


def test_mixup_mixes_images_and_labels_with_one_share() -> None:
    plain = next(iter(_loader(Augment(flip=None), batch_size=8)))
    images, labels = next(iter(_loader(Augment(flip=None, mixup=1.0), batch_size=8, channels_last=True)))
    partner = torch.arange(8).roll(1)
    share = float(labels[0, plain[1][0]])
    assert 0 < share < 1
    torch.testing.assert_close(images, torch.lerp(plain[0][partner], plain[0], share))
    hard = F.one_hot(plain[1], 5).float()
    torch.testing.assert_close(labels, torch.lerp(hard[partner], hard, share))
    torch.testing.assert_close(labels.sum(1), torch.ones(8))


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutmix_pastes_a_rectangle_whose_area_is_the_share_of_the_other_label(channels_last: bool) -> None:
    loader = _loader(Augment(flip=None, cutmix=1.0), batch_size=8, channels_last=channels_last)
    plain = next(iter(_loader(Augment(flip=None), batch_size=8)))
    for _ in range(5):
        images, labels = next(iter(loader))
        partner = torch.arange(8).roll(1)
        pasted = (images != plain[0]).any(1)
        for index in range(8):
            assert torch.equal(images[index][:, pasted[index]], plain[0][partner[index]][:, pasted[index]])
        if plain[1][0] != plain[1][partner[0]]:
            assert float(labels[0, plain[1][0]]) == pytest.approx(1 - float(pasted[0].float().mean()), abs=0.01)


def test_channels_last_changes_the_layout_and_no_number() -> None:
    augment = Augment(translate=2, cutout=4)
    usual, other = _loader(augment), _loader(augment, channels_last=True)
    (a, _), (b, _) = next(iter(usual)), next(iter(other))
    assert b.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(a, b)


def test_a_ramp_lets_the_share_of_the_other_image_grow_and_the_last_epochs_have_whole_images() -> None:
    plain = _loader(Augment(flip=None, mixup=1.0), batch_size=23)
    ramped = _loader(Augment(flip=None, mixup=1.0, mix_ramp=4, mix_epochs=6), batch_size=23)
    hard = F.one_hot(torch.tensor(DATASET.targets), 5).float()
    for epoch in range(8):
        whole, part = (1 - float(next(iter(loader))[1][1, 1]) for loader in (plain, ramped))
        assert part == pytest.approx(0 if epoch >= 6 else whole * min(1, (epoch + 1) / 4), abs=1e-5)
    images, labels = next(iter(ramped))
    assert torch.equal(images, IMAGES.float() / 255)
    assert torch.equal(labels, hard), "labels keep their form"


def test_impossible_amounts_are_refused() -> None:
    for name, largest in LARGEST_AMOUNTS.items():
        for amount in (-0.1, largest + 0.1, float("nan"), "1", True, None):
            with pytest.raises(InputError, match=f"{name} must be a number from 0 to {largest:g}, not"):
                Augment(**{name: amount})  # type: ignore[arg-type]
    for epochs in (-1, 1.5, True):
        with pytest.raises(InputError, match="mix_ramp must be a whole number of epochs"):
            Augment(mixup=0.2, mix_ramp=epochs)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="choose one of these too"):
        Augment(mix_epochs=3)
    with pytest.raises(InputError, match="'random', 'alternating' or None, not 'always'"):
        Augment(flip="always")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must not be negative"):
        Augment(translate=-1)
    with pytest.raises(InputError, match="must not be negative"):
        Augment(cutout=-1)
    for amount in (float("nan"), float("inf"), 10**400):
        with pytest.raises(InputError, match="mixup and cutmix must be finite"):
            Augment(mixup=amount)
    with pytest.raises(InputError, match="whole numbers of pixels"):
        Augment(translate=2.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="choose one"):
        Augment(mixup=0.2, cutmix=1.0)


def test_passes_at_once_do_not_disturb_each_other() -> None:
    loader = _loader(Augment(translate=2))
    together = [(a, b) for (a, _), (b, _) in zip(loader, loader, strict=True)]
    again = _loader(Augment(translate=2))
    for pair, images in zip(together, again, strict=True):
        assert torch.equal(pair[0], images[0])
    for pair, images in zip(together, again, strict=True):
        assert torch.equal(pair[1], images[0])


def test_numpys_numbers_become_pythons() -> None:
    augment = Augment(translate=np.int64(2), cutout=np.uint8(4), mixup=np.float32(0.5))
    assert augment == Augment(translate=2, cutout=4, mixup=0.5)
    assert json.loads(json.dumps(asdict(augment)))["cutout"] == 4
