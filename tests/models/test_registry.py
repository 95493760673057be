"""Models by name: what is there, what is not, and a user's own."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cifarnets import load, models, save
from cifarnets.errors import CifarNetsError, InputError, UnknownNameError, WeightsError
from cifarnets.models import registry


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


def register_probe(name: str = "probe") -> type[nn.Module]:
    @models.register(name)
    class Probe(nn.Module):
        """A linear probe.

        More about it.
        """

        def __init__(self, num_classes: int = 10, in_channels: int = 3, widths: object = (4, 2), *, bias: bool = True):
            super().__init__()
            self.fc = nn.Linear(in_channels * 1024, num_classes, bias)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    return Probe


def test_the_article_s_nets_are_there() -> None:
    assert {"convnet", "convnet_functional", "fcnet"} <= set(models.list_models())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv*", ["convnet", "convnet_functional"]),
        ("*net", ["convnet", "fcnet"]),
        ("?cnet", ["fcnet"]),
        ("[cf]*l", ["convnet_functional"]),
        ("convnet", ["convnet"]),
        ("*", ["convnet", "convnet_functional", "fcnet"]),
        ("vit*", []),
    ],
)
def test_names_are_listed_by_wildcard_in_order(
    pattern: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dict.fromkeys(["fcnet", "convnet_functional", "convnet"], models.ConvNet)
    monkeypatch.setattr(registry, "_MODELS", known)
    assert models.list_models(pattern) == expected


def test_a_misspelt_name_is_repeated_and_the_near_match_suggested() -> None:
    for call in (models.create, models.info):
        with pytest.raises(UnknownNameError) as caught:
            call("ConvNett")
        assert str(caught.value) == (
            f"unknown model 'ConvNett'. Did you mean 'convnet'? Available: {', '.join(models.list_models())}."
        )
        assert isinstance(caught.value, KeyError)
        assert isinstance(caught.value, CifarNetsError)


def test_a_name_near_nothing_gets_no_suggestion() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model 'xyz'\. Available: ") as caught:
        models.create("xyz")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", models.list_models())
def test_info_tells_of_the_model_that_create_makes(name: str) -> None:
    facts = models.info(name)
    model = models.create(name)
    assert facts.name == name
    assert facts.config == model.meta.config
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.description.endswith(".")  # a sentence, and
    assert "\n" not in facts.description  # one line of it


def test_info_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    models.info("fcnet")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_own_class_is_created_saved_and_loaded_like_ours(tmp_path: Path) -> None:
    register_probe()
    assert models.list_models("probe") == ["probe"]
    facts = models.info("probe")
    assert (facts.description, facts.parameters) == ("A linear probe.", 30_730)

    model = models.create("probe", num_classes=4, widths=[7])
    loaded = load(save(model, tmp_path / "probe.safetensors"))
    assert type(loaded) is type(model)
    assert loaded.meta == model.meta
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


def test_a_file_of_a_class_that_is_no_longer_registered_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_probe()
    path = save(models.create("probe"), tmp_path / "probe.safetensors")
    monkeypatch.delitem(registry._MODELS, "probe")
    with pytest.raises(WeightsError, match="holds a 'probe', which this version of cifarnets"):
        load(path)


def test_the_config_holds_every_argument_however_it_was_given() -> None:
    probe = register_probe()
    defaults = {"num_classes": 10, "in_channels": 3, "widths": (4, 2), "bias": True}
    assert probe().meta.config == defaults
    assert probe(5, widths=[1, 2, 3], bias=False).meta.config == {
        "num_classes": 5,
        "in_channels": 3,
        "widths": (1, 2, 3),  # as after a round trip through a file, which knows only lists
        "bias": False,
    }
    assert models.create("probe", in_channels=1).meta.config == {**defaults, "in_channels": 1}


def test_another_class_of_a_name_is_refused_and_the_first_stays() -> None:
    first = register_probe()

    class Other(nn.Module):
        def __init__(self, num_classes: int = 10) -> None:
            super().__init__()

    with pytest.raises(InputError, match=r"a model named 'probe' is registered already \(.*Probe\)"):
        models.register("probe")(Other)
    assert type(models.create("probe")) is first
    with pytest.raises(InputError, match=r"'convnet' is registered already \(ConvNet\)"):
        register_probe("convnet")


def test_the_same_class_again_replaces_the_former(tmp_path: Path) -> None:
    """As when a cell of a notebook runs twice; a model of the first run can still be saved."""
    register_probe()
    old = models.create("probe")
    second = register_probe()
    assert type(models.create("probe")) is second
    assert type(load(save(old, tmp_path / "old.safetensors"))) is second


def test_arguments_that_a_file_could_not_record_are_refused() -> None:
    class Positional(nn.Module):
        def __init__(self, *widths: int) -> None:
            super().__init__()

    class Keywords(nn.Module):
        def __init__(self, **options: int) -> None:
            super().__init__()

    for cls in (Positional, Keywords):
        with pytest.raises(InputError, match=f"{cls.__name__} must name each of its arguments"):
            models.register("loose")(cls)
    assert models.list_models("loose") == []


def test_a_subclass_under_a_name_of_its_own_leaves_its_parent_alone(tmp_path: Path) -> None:
    @models.register("wide")
    class Wide(models.ConvNet):
        def __init__(self, num_classes: int = 10, factor: int = 2) -> None:
            super().__init__(num_classes, widths=(16 * factor, 8 * factor))

    @models.register("same")
    class Same(models.ConvNet):
        """Inherits its constructor."""

    assert Wide(factor=3).meta == models.ModelMeta("wide", {"num_classes": 10, "factor": 3})
    assert Same(3).meta.architecture == "same"
    assert models.ConvNet().meta.architecture == "convnet"
    for model in (Wide(factor=3), Same(3)):
        assert type(load(save(model, tmp_path / "model.safetensors"))) is type(model)


def test_a_constructor_that_create_could_not_call_is_refused() -> None:
    class Needy(nn.Module):
        def __init__(self, width: int, depth: int = 2) -> None:
            super().__init__()

    with pytest.raises(InputError, match=r"give width of .*Needy a default, so that create\('needy'\) works"):
        models.register("needy")(Needy)
    assert "needy" not in models.list_models()


def test_a_model_that_reads_numbers_while_it_is_built(tmp_path: Path) -> None:
    @models.register("deep")
    class Deep(nn.Module):
        def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
            super().__init__()
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.head = nn.Linear(in_channels * 1024, num_classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1))

    assert models.info("deep").parameters == 30730
    again = load(save(models.create("deep"), tmp_path / "deep.safetensors"))
    assert again.rates == [0, 0.5, 1]


def test_models_are_listed_by_size() -> None:
    small = models.list_models("*net*", max_params=500_000, sort="parameters")
    assert small == [
        *("quarternet16", "convnet", "convnet_functional", "quarternet32", "resnet8", "quarternet48"),
        *("densenet40_bc", "quarternet64", "resnet20", "resnet32"),
    ]
    assert models.list_models("resnet*", max_macs=70_000_000, sort="macs") == ["resnet8", "resnet20", "resnet32"]
    assert models.list_models(max_params=0) == []


def test_released_weights_are_listed_by_accuracy() -> None:
    names = models.list_models(pretrained=True, sort="accuracy")
    facts = [models.info(name).release for name in names]
    figures = [(len(release.classes), release.accuracy) for release in facts]
    assert figures == sorted(figures, reverse=True)  # more classes are harder: those come first
    assert sorted(names) == models.list_models(pretrained=True)
    assert models.list_models("convnet.*", pretrained=True, max_params=18_123) == ["convnet.cifar3"]
    assert models.list_models("convnet.*", pretrained=True, max_macs=753_759) == []


def test_only_released_weights_have_an_accuracy_to_sort_by() -> None:
    with pytest.raises(InputError, match="only released weights have an accuracy"):
        models.list_models(sort="accuracy")
    with pytest.raises(InputError, match="sort of list_models must be one of"):
        models.list_models(sort="size")


def test_info_of_released_weights_tells_what_is_known_of_them() -> None:
    facts = models.info("convnet.cifar3")
    assert facts.config["num_classes"] == 3
    assert facts.description == models.info("convnet").description
    assert facts.release.classes == ("airplane", "automobile", "ship")
    assert facts.macs == facts.release.macs == models.summary(models.create("convnet.cifar3")).macs
    assert models.info("fcnet").macs == models.summary(models.create("fcnet")).macs
    assert models.info("wide_resnet28_10").release is None


def test_patterns_ignore_upper_and_lower_case() -> None:
    assert models.list_models("ResNet*") == models.list_models("resnet*") != []
    assert models.list_models("ConvNet.*", pretrained=True) == ["convnet.cifar3"]


def test_a_model_that_cannot_be_counted_is_left_out_where_numbers_are_asked_for() -> None:
    @models.register("lazy")
    class Lazy(nn.Module):
        def __init__(self, num_classes: int = 10) -> None:
            super().__init__()
            self.head = nn.LazyLinear(num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    @models.register("large_images")
    class LargeImages(nn.Module):
        def __init__(self, num_classes: int = 10) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 224 * 224, num_classes, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    assert {"lazy", "large_images"} <= set(models.list_models())
    assert models.list_models("l*", sort="parameters") == ["large_images"]
    assert models.list_models("la*e*", max_params=20_000) == []
    assert models.list_models("l*", max_macs=10**12) == models.list_models("l*", sort="macs") == []
    with pytest.raises(InputError, match=r"the parameters of 'lazy' cannot be counted: head\.weight gets its size"):
        models.info("lazy")
    with pytest.raises(InputError, match="the multiply-adds of 'large_images' cannot be counted"):
        _ = models.info("large_images").macs


@pytest.mark.parametrize("name", ["resnet34", "ResNet-34", "resnet"])
def test_a_number_tells_two_nets_of_a_family_apart(name: str) -> None:
    for call in (models.create, models.info, lambda name: models.create(name, pretrained=True)):
        with pytest.raises(UnknownNameError) as caught:
            call(name)
        message = str(caught.value)
        assert "Did you mean" not in message
        assert (
            "Of this family there are resnet8, resnet18, resnet20, resnet32, resnet44, resnet56, resnet110." in message
        )


def test_a_misspelt_name_is_still_suggested() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet20'"):
        models.create("resent20")


@pytest.mark.parametrize("name", ["convnet", "vgg11_bn", "convnet.cifar3"])
def test_info_as_plain_values_has_every_fact(name: str) -> None:
    facts = models.info(name)
    plain = facts.to_dict()
    assert list(plain) == ["name", "description", "config", "parameters", "macs", "release", "variants"]
    assert json.loads(json.dumps(plain))["macs"] == facts.macs > 0
    assert (plain["release"] is None) == (facts.release is None)
