"""Several models as one: what it computes, what it agrees on, and where it works."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarnets import calibrate, evaluate, predict, save
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, denormalize, normalize
from cifarnets.errors import InputError, WeightsError
from cifarnets.models import Ensemble, annotate, create, head, summary, transform_for, with_normalization

CLASSES = SyntheticCIFAR10(size=10).classes
OURS, THEIRS = ((0.5, 0.4, 0.6), (0.25, 0.2, 0.3)), ((0.1, 0.2, 0.3), (0.5, 0.4, 0.3))


def net(constants: Any = OURS, **config: Any) -> Any:
    model = create("convnet", **{"widths": (4, 4), "hidden": 6, **config})
    mean, std = constants or (None, None)
    annotate(model, classes=CLASSES[: model.num_classes], mean=mean, std=std, size=(32, 32))
    return model.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32)


def test_probabilities_are_the_mean_of_those_of_the_models() -> None:
    models, x = [net() for _ in range(3)], images()
    expected = torch.stack([model(x).softmax(1) for model in models]).mean(0)
    torch.testing.assert_close(Ensemble(models)(x).softmax(1), expected)
    torch.testing.assert_close(Ensemble(models)(x), expected.log())


def test_logits_of_any_size_stay_finite() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1e4, -1e4]]).expand(len(x), 2)

    assert torch.equal(Ensemble([Sure(), Sure()])(images()).softmax(1), torch.tensor([[1.0, 0.0]]).expand(4, 2))
    assert Ensemble([Sure()])(images()).isfinite().all()


def test_meta_is_what_the_models_agree_on() -> None:
    meta = Ensemble([net(None), net()]).meta
    assert meta.classes == CLASSES
    assert (meta.mean, meta.std, meta.size) == (*OURS, (32, 32))
    assert meta.config == {"num_classes": 10, "in_channels": 3}
    assert Ensemble([nn.Flatten()]).meta.config == {}


def test_models_of_other_constants_get_the_images_as_they_know_them() -> None:
    ours, theirs, pixels = net(), net(THEIRS), torch.rand(4, 3, 32, 32)
    expected = (ours(normalize(pixels, *OURS)).softmax(1) + theirs(normalize(pixels, *THEIRS)).softmax(1)) / 2
    ensemble = Ensemble([ours, theirs])
    assert (ensemble.meta.mean, ensemble.meta.std) == OURS
    torch.testing.assert_close(ensemble(normalize(pixels, *OURS)).softmax(1), expected)
    torch.testing.assert_close(with_normalization(ensemble)(pixels).softmax(1), expected)
    other = Ensemble([theirs, ours])
    torch.testing.assert_close(other(normalize(pixels, *THEIRS)).softmax(1), expected)


def test_it_is_evaluated_and_predicts_like_one_model() -> None:
    models = [net(), net(THEIRS)]
    ensemble = Ensemble(models)
    data = SyntheticCIFAR10(train=False, size=40, mean=OURS[0], std=OURS[1])
    result = evaluate(ensemble, BatchLoader(data, 16), device="cpu", tta="mirror")
    assert result.n == 40
    found = dict(predict(ensemble, data.images[0], topk=10, device="cpu"))
    parts = [dict(predict(model, data.images[0], topk=10, device="cpu")) for model in models]
    for name, share in found.items():
        assert share == pytest.approx(sum(part[name] for part in parts) / 2, abs=1e-5)
    picture = transform_for(ensemble)(data.images[0])
    torch.testing.assert_close(denormalize(picture, *OURS), data.images[0] / 255)
    with pytest.raises(InputError, match="the loader's images are normalised with mean"):
        evaluate(ensemble, BatchLoader(SyntheticCIFAR10(size=40, mean=THEIRS[0], std=THEIRS[1])), device="cpu")


def test_modes_are_those_of_the_models() -> None:
    models = [net(), net().train()]
    ensemble = Ensemble(models)
    assert [ensemble.training, *(model.training for model in models)] == [True, False, True]
    evaluate(ensemble, BatchLoader(SyntheticCIFAR10(size=20, mean=OURS[0], std=OURS[1])), device="cpu")
    assert [ensemble.training, *(model.training for model in models)] == [True, False, True]
    ensemble.eval()
    assert not models[1].training


def test_it_counts_and_moves_all_its_models() -> None:
    models = [net(), net(THEIRS)]
    ensemble = Ensemble(models)
    assert summary(ensemble).parameters == sum(summary(model).parameters for model in models)
    assert list(ensemble.state_dict()) == [f"models.{i}.{key}" for i in range(2) for key in models[0].state_dict()]
    assert ensemble.half()(images().half()).dtype == torch.float32  # as logarithms, probabilities near 1 need it


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (list, "an ensemble needs at least one model"),
        (lambda: [net(), 5], r"models of Ensemble must be a list of Module, not \[ConvNet"),
        (lambda: [net(), net(num_classes=3)], "must have the same num_classes, not 10 and 3"),
        (lambda: [net(), create("convnet", in_channels=1)], "must have the same in_channels, not 3 and 1"),
        (lambda: [create("convnet", num_classes=0)], "must give logits, and num_classes=0 gives features"),
    ],
    ids=["none", "a number", "outputs", "channels", "features"],
)
def test_models_that_do_not_fit_are_refused(models: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ensemble(models())


def test_models_of_other_classes_or_sizes_are_refused() -> None:
    other = net()
    annotate(other, classes=CLASSES[::-1])
    with pytest.raises(InputError, match=r"must have the same classes, not \('disc'.* and \('"):
        Ensemble([net(), other])
    larger = net()
    annotate(larger, size=(64, 64))
    with pytest.raises(InputError, match=r"must have the same size, not \(32, 32\) and \(64, 64\)"):
        Ensemble([net(), larger])
    with pytest.raises(InputError, match=r"give outputs of other shapes: \[\[4, 10\], \[4, 3072\]\]"):
        Ensemble([net(), nn.Flatten()])(images())


def test_it_has_neither_a_file_nor_a_head(tmp_path: Path) -> None:
    ensemble = Ensemble([net(), net()])
    with pytest.raises(WeightsError, match=r"save each model in `ensemble.models`, and put them together again with"):
        save(ensemble, tmp_path / "ensemble.safetensors")
    assert list(tmp_path.iterdir()) == []
    before = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}
    for refused in (lambda: head(ensemble), lambda: calibrate(ensemble, BatchLoader(SyntheticCIFAR10(size=20)))):
        with pytest.raises(InputError, match="calibrate each model before you put them together"):
            refused()
    assert all(torch.equal(tensor, before[name]) for name, tensor in ensemble.state_dict().items())
