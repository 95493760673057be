"""A resolution curriculum: small images first, as torchvision makes them, and only for models that take them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as T
from torch import Tensor, nn

from cifarnets import Trainer, create, load, save
from cifarnets.cli import main
from cifarnets.datasets import Augment, BatchLoader, ImageDataset, SyntheticCIFAR10
from cifarnets.errors import InputError
from cifarnets.models import ConvNet, list_models
from cifarnets.recipes import Recipe, load_recipe, run_recipe

IMAGES = torch.randint(0, 256, (23, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES[0] = 0
IMAGES[1] = 255
SIZES: Any = ((24, 2), (28, 1))


def loader(augment: Augment, batch_size: int = 8, images: Tensor = IMAGES, **options: Any) -> BatchLoader:
    constants: Any = {"mean": [0.5] * images.shape[1], "std": [0.25] * images.shape[1]}
    constants["view"] = options.pop("view", "unit")
    data = ImageDataset(images, torch.arange(len(images)) % 5, list("abcde"), **constants)
    return BatchLoader(data, batch_size, **{"device": "cpu", "seed": 3, **options}, augment=augment)


def epoch_of(batches: BatchLoader) -> Tensor:
    return torch.cat([images for images, _ in batches])


def resized(images: Tensor, *size: int) -> Tensor:
    return T.resize(images, list(size), T.InterpolationMode.BILINEAR, antialias=True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("side", [8, 13, 24, 28, 31])
def test_images_are_those_that_torchvision_resizes(side: int, channels_last: bool) -> None:
    seen = epoch_of(loader(Augment(flip=None, curriculum=((side, 1),)), channels_last=channels_last))
    torch.testing.assert_close(seen, resized(IMAGES.float() / 255, side), atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pictures_that_are_neither_square_nor_coloured(channels_last: bool) -> None:
    grey = IMAGES[:, :1, :20, :26]
    seen = epoch_of(loader(Augment(flip=None, curriculum=((15, 1),)), images=grey, channels_last=channels_last))
    assert seen.shape[2:] == (15, 19), "the size is that of the shorter side"
    torch.testing.assert_close(seen, resized(grey.float() / 255, 15), atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("view", ["unit", "normalized"])
def test_each_epoch_has_its_size_and_whole_images_are_as_ever(view: str, channels_last: bool) -> None:
    rich: Any = {"translate": 2, "cutout": 6, "erase": 0.5, "rotate": 10, "hue": 0.1}
    options: Any = {"view": view, "channels_last": channels_last, "shuffle": True}
    plain, small = (loader(Augment(**rich, **more), **options) for more in ({}, {"curriculum": SIZES}))
    assert small.image_shapes == ((3, 24, 24), (3, 28, 28), (3, 32, 32))
    assert plain.image_shapes == ((3, 32, 32),)
    for side in (24, 24, 28, 32, 32):
        whole, found = epoch_of(plain), epoch_of(small)
        assert found.shape == (23, 3, side, side)
        if side == 32:
            assert torch.equal(found, whole)
        else:  # the chances are the same, so what is seen is the same picture
            torch.testing.assert_close(found, resized(whole, side), atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_small_batches_have_the_layout_of_whole_ones(channels_last: bool) -> None:
    images, _ = next(iter(loader(Augment(curriculum=SIZES), channels_last=channels_last)))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("kind", [{"mixup": 1.0}, {"cutmix": 1.0}, {"cutout": 5}], ids=str)
def test_a_batch_depends_on_seed_and_epoch_alone_and_processes_share_it(kind: Any) -> None:
    augment = Augment(translate=2, curriculum=SIZES, **kind)
    epochs = loader(augment, shuffle=True)
    seen = [list(epochs) for _ in range(4)]
    for number in (2, 0, 3, 1):
        again = loader(augment, shuffle=True, seed=9)
        again.load_state_dict({"seed": 3, "epoch": number})
        parts = [loader(augment, shuffle=True) for _ in range(2)]
        for part in parts:
            part.epoch = number
        for (images, labels), (others, same_labels), *shards in zip(
            seen[number], again, *(part.shard(rank, 2) for rank, part in enumerate(parts)), strict=True
        ):
            assert torch.equal(images, others)
            assert torch.equal(labels, same_labels)
            for rank, shard in enumerate(shards):
                torch.testing.assert_close(shard.images, images[rank::2], atol=1e-6, rtol=0)
                assert torch.equal(shard.labels, labels[rank::2])


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutmix_pastes_a_rectangle_into_small_images_whose_area_is_the_share_of_the_label(channels_last: bool) -> None:
    options: Any = {"batch_size": 8, "channels_last": channels_last}
    plain = next(iter(loader(Augment(flip=None, curriculum=((24, 9),)), **options)))
    batches = loader(Augment(flip=None, cutmix=1.0, curriculum=((24, 9),)), **options)
    partner, shares = torch.arange(8).roll(1), []
    for _ in range(5):
        images, labels = next(iter(batches))
        pasted = (images != plain[0]).any(1)
        for index in range(8):
            assert torch.equal(images[index][:, pasted[index]], plain[0][partner[index]][:, pasted[index]])
        shares.append(float(pasted[2].float().mean()))
        assert float(labels[2, plain[1][2]]) == pytest.approx(1 - shares[-1], abs=0.01)
    assert max(shares) > 0.05


def test_autocast_around_a_loop_changes_no_image() -> None:
    augment = Augment(curriculum=SIZES)
    expected = epoch_of(loader(augment))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(epoch_of(loader(augment)), expected)


@pytest.mark.gpu
def test_on_cuda_small_images_are_the_same() -> None:
    augment = Augment(translate=2, curriculum=SIZES)
    on_cpu, on_cuda = (epoch_of(loader(augment, device=device)).cpu() for device in ("cpu", "cuda"))
    torch.testing.assert_close(on_cuda, on_cpu, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "curriculum",
    [
        5,
        "24",
        None,
        [24, 3],
        [[24]],
        [[24, 3, 1]],
        [[7, 3]],
        [[24, 0]],
        [[24.0, 3]],
        [[24, True]],
        [["24", 3]],
        [[2**31, 1]],
    ],
    ids=str,
)
def test_what_is_no_curriculum(curriculum: Any) -> None:
    with pytest.raises(InputError, match=r"curriculum must be pairs of a size in pixels, .* such as \(\(24, 3\)"):
        Augment(curriculum=curriculum)


def test_sizes_above_the_images_are_refused() -> None:
    assert loader(Augment(curriculum=((32, 1),))).image_shapes == ((3, 32, 32),)
    assert loader(Augment(curriculum=((32, 1), (24, 1)))).image_shapes == ((3, 24, 24), (3, 32, 32))
    with pytest.raises(InputError, match="curriculum has images of 33 pixels, and the dataset's have 32×32"):
        loader(Augment(curriculum=((24, 1), (33, 1))))


def test_lists_of_a_file_become_tuples_and_the_text_is_that_of_before_without_one() -> None:
    augment = Augment(curriculum=json.loads("[[24, 3], [28, 3]]"))
    assert augment == Augment(curriculum=((24, 3), (28, 3)))
    assert hash(augment) == hash(eval(repr(augment)))
    assert json.loads(json.dumps(asdict(augment)))["curriculum"] == [[24, 3], [28, 3]]
    assert repr(Augment(curriculum=())) == repr(Augment())
    assert "curriculum" not in repr(Augment())


class TestTraining:
    @pytest.fixture
    def small(self) -> BatchLoader:
        drawn = SyntheticCIFAR10(size=60)
        return BatchLoader(drawn, 20, True, device="cpu", seed=0, augment=Augment(curriculum=[[16, 1], [24, 1]]))  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", [name for name in list_models() if name != "wide_resnet28_10"])
    def test_a_model_takes_all_sizes_or_is_refused_before_a_fit(self, name: str, small: BatchLoader) -> None:
        fixed = name.startswith(("convnet", "fcnet", "vgg"))
        small_ones: dict[str, Any] = {"airbench": {"widths": (4, 4, 4)}, "fcnet": {"widths": (4,)}}
        model: Any = create(name, **small_ones.get(name.rstrip("0123456789"), {}))
        trainer = Trainer(model, device="cpu", progress=False)
        if fixed:
            with pytest.raises(
                InputError, match=rf"{type(model).__name__} cannot take images of 24×24, which the load"
            ):
                trainer.plan(small, epochs=3)
            assert trainer.end_epoch == 0
        else:
            before = {key: value.clone() for key, value in model.state_dict().items()}
            trainer.plan(small, epochs=3)
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            assert model.meta.size == (32, 32)
        assert model.training
        assert small.epoch == 0

    def test_what_the_curriculum_is_not_to_blame_for_is_not_put_to_it(self, small: BatchLoader) -> None:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            Trainer(nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), device="cpu").plan(small)

    def test_lazy_layers_get_the_size_of_whole_images(self, small: BatchLoader) -> None:
        model = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10))
        assert len(Trainer(model, device="cpu", progress=False).fit(small, epochs=3)) == 3

    def test_a_fit_learns_from_all_sizes_and_the_model_stays_one_of_whole_images(
        self, small: BatchLoader, tmp_path: Path
    ) -> None:
        sizes: list[tuple[int, ...]] = []
        model: Any = create("resnet8", widths=(4, 8, 8))
        model.register_forward_hook(lambda _, inputs, __: sizes.append(tuple(inputs[0].shape)))
        history = Trainer(model, device="cpu", progress=False).fit(small, epochs=3)
        trained = [size for size in sizes if size[0] == 20]
        assert trained == [(20, 3, side, side) for side in (16, 24, 32) for _ in range(3)]
        assert all(row["images_per_second"] > 0 for row in history)
        saved: Any = load(save(model, tmp_path / "model.safetensors"))
        assert saved.meta.size == (32, 32)

    def test_a_checkpoint_of_another_curriculum_is_refused(self, small: BatchLoader) -> None:
        trainer = Trainer(create("resnet8"), device="cpu", progress=False)
        trainer.plan(small, epochs=3)
        state = trainer.state_dict()
        small.augment = Augment(curriculum=((16, 2),))
        with pytest.raises(InputError, match=r"augment .*\(\(16, 1\), \(24, 1\)\).*, not .*\(\(16, 2\),\)"):
            trainer.load_state_dict(state)


class TestRecipe:
    def test_a_model_that_cannot_take_small_images_leaves_no_folder(self, tmp_path: Path) -> None:
        recipe = Recipe("convnet", epochs=2, synthetic=True, augment={"curriculum": [[24, 1]]})
        with pytest.raises(InputError, match=f"{ConvNet.__name__} cannot take images of 24×24"):
            run_recipe(recipe, tmp_path / "run", device="cpu", progress=False)
        assert not (tmp_path / "run").exists()

    def test_whole_images_must_come_in_the_end(self) -> None:
        augment = {"curriculum": [[24, 2], [28, 1]]}
        assert Recipe("resnet20", epochs=4, augment=augment).augmentation() == Augment(curriculum=((24, 2), (28, 1)))
        with pytest.raises(InputError, match="takes 3 epochs, and the run has 3, so no epoch would be left for whole"):
            Recipe("resnet20", epochs=3, augment=augment)

    def test_on_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["train", "convnet", "--synthetic", "--epochs", "4", "--out", str(tmp_path / "run"), "--device", "cpu"]
        assert main([*words, "--augment", "curriculum=[[24,1],[28,1]]"]) == 1
        assert "ConvNet cannot take images of 28×28" in capsys.readouterr().err
        assert main([*words, "--augment", "curriculum=[[24,2],[28,2]]"]) == 2
        assert "no epoch would be left for whole images" in capsys.readouterr().err
        assert main([*words, "--augment", "curriculum=24"]) == 2
        assert "curriculum must be pairs of a size" in capsys.readouterr().err

    def test_the_recipe_of_the_library_saves_a_sixth_of_the_arithmetic(self) -> None:
        whole, small = load_recipe("airbench94"), load_recipe("airbench94.curriculum")
        different = {entry.split()[0] for entry in small.differences(whole)}
        assert different <= {"epochs", "augment"}
        macs = {24: 61_621_024, 28: 89_216_032, 32: 118_147_360}  # summary(create("airbench94"), size).macs
        augment = small.augmentation()
        assert augment is not None
        sides = [augment.size(epoch, (32, 32))[0] for epoch in range(small.epochs)]
        assert sides[-1] == 32
        assert sum(macs[side] for side in sides) / (whole.epochs * macs[32]) <= 0.85


@pytest.mark.parametrize("name", ["airbench94", "airbench95", "airbench96"])
@pytest.mark.parametrize("side", [16, 24, 28, 32, 40, 64])
def test_the_nets_of_airbench_take_images_of_any_size(name: str, side: int) -> None:
    model: Any = create(name, widths=(4, 8, 8)).eval()
    images = torch.randn(2, 3, side, side)
    features = model.forward_features(images)
    found = model.forward_head(features, pre_logits=True)
    assert torch.equal(found, features.amax((2, 3)))
    if side == 32:
        assert torch.equal(found, F.max_pool2d(features, 3).flatten(1)), "as in the source"
    assert model(images).shape == (2, 10)
