"""Models in and out: what is created, what survives a file, and which files are refused."""

import errno
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifarnets import Trainer, __version__, evaluate, load, models, predict, save
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, cifar_subset
from cifarnets.errors import InputError, OutputError, UnknownNameError, WeightsError
from cifarnets.models import registry
from cifarnets.weights import hub

EVERY_MODEL: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in models.list_models() if models.info(name).parameters < 4_000_000),
    ("fcnet", {"num_classes": 3, "in_channels": 1, "widths": (7, 5)}),
    ("fcnet", {"widths": ()}),
    *(
        (name, config)
        for name in ("convnet", "convnet_functional")
        for config in (
            {"num_classes": 3, "in_channels": 1},
            {"widths": (4, 12), "hidden": 9},
            {"kernel_size": 5, "pool": "avg"},
            {"kernel_size": 1},
        )
    ),
]


def old_header(model: Any) -> dict[str, Any]:
    """The header of a file from before there were digests; a file with any other entry must have one."""
    return {key: value for key, value in vars(model.meta).items() if key not in ("size", "provenance")}


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def small(**config: Any) -> nn.Module:
    return models.create("convnet", **{"num_classes": 3, "widths": (2, 2), "hidden": 4, **config})


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Same kind, same meta, and the same tensors in value, dtype and layout."""
    assert type(one) is type(other)
    assert one.meta == other.meta
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, tensor in one.state_dict().items():
        found = other.state_dict()[name]
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name


class TestCreate:
    def test_number_of_classes_and_channels_have_defaults_of_their_own(self) -> None:
        assert models.create("convnet").meta.config["num_classes"] == 10
        model = models.create("convnet", num_classes=3, in_channels=1)
        assert model(torch.rand(2, 1, 32, 32)).shape == (2, 3)

    def test_the_same_seed_gives_the_same_model(self) -> None:
        made = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            made.append(torch.cat([p.flatten() for p in small().parameters()]))
        assert torch.equal(made[0], made[1])
        assert not torch.equal(made[0], made[2])

    def test_an_unknown_name_is_not_an_unusable_argument(self) -> None:
        with pytest.raises(UnknownNameError, match=r"unknown model 'convent'. Did you mean 'convnet'\?"):
            models.create("convent", widths="nonsense")

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            ({"depth": 3}, "unexpected keyword argument 'depth'"),
            ({"widths": 16}, "widths of ConvNet must be a list of whole numbers, not 16."),
            ({"hidden": "many"}, "hidden of ConvNet must be a whole number, not 'many'."),
            ({"hidden": -1}, "negative dimension"),
            ({"hidden": 2**70}, "ConvNet cannot be built from {'hidden': "),
            ({"widths": {"first": 1}}, "widths of ConvNet must be a list of whole numbers, not {'first': 1}."),
        ],
    )
    def test_arguments_that_a_model_cannot_use_are_repeated(self, config: dict[str, Any], reason: str) -> None:
        with pytest.raises(InputError) as caught:
            models.create("convnet", **config)
        assert reason in str(caught.value)


class TestRoundTrip:
    @pytest.mark.parametrize(("name", "config"), EVERY_MODEL, ids=str)
    def test_every_model_comes_back_as_it_was(self, name: str, config: dict[str, Any], path: Path) -> None:
        model = models.create(name, **config)
        assert save(model, path) == path
        loaded = load(path)
        assert_same(model, loaded)
        images = torch.rand(2, model.meta.config["in_channels"], 32, 32)
        assert torch.equal(loaded(images), model.eval()(images))

    def test_a_string_is_a_path_too_and_folders_are_made(self, tmp_path: Path) -> None:
        model = small()
        written = save(model, str(tmp_path / "new" / "folder" / "model"))
        assert written == tmp_path / "new" / "folder" / "model"
        assert_same(model, load(str(written)))

    def test_meta_survives_whole(self, path: Path) -> None:
        model = small()
        training = {"epochs": 3, "lr": 0.1, "note": "größer — 大", "nested": {"seeds": [0, 1]}, "val": None}
        models.annotate(
            model, classes=["cat", "dog", "été"], mean=(0.1, 1 / 3, 0.5), std=(0.2, 0.3, 1e-7), training=training
        )
        meta = load(save(model, path)).meta
        assert meta == model.meta
        assert meta.classes == ("cat", "dog", "été")
        assert meta.mean == (0.1, 1 / 3, 0.5)
        assert meta.training == training

    def test_it_comes_back_ready_to_be_used_and_to_be_trained(self, path: Path) -> None:
        model = small().train()
        loaded = load(save(model, path))
        assert model.training
        assert not any(module.training for module in loaded.modules())
        assert all(p.requires_grad and p.is_leaf and p.device.type == "cpu" for p in loaded.parameters())
        loaded(torch.rand(2, 3, 32, 32)).sum().backward()
        assert all(p.grad is not None for p in loaded.parameters())

    def test_neither_side_hangs_on_the_file_or_the_other(self, path: Path) -> None:
        model = small()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        loaded = load(save(model, path))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        path.unlink()
        assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())

    def test_loading_does_not_move_the_random_numbers(self, path: Path) -> None:
        save(small(), path)
        before = torch.random.get_rng_state()
        load(path)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_another_program_can_read_the_tensors_and_the_header(self, path: Path) -> None:
        from safetensors import safe_open

        model = small()
        models.annotate(model, classes=("a", "b"))
        with safe_open(save(model, path), framework="pt") as file:
            entries = file.metadata()
            assert {name: file.get_tensor(name).shape for name in file.keys()} == {  # noqa: SIM118 (not a dict)
                name: tensor.shape for name, tensor in model.state_dict().items()
            }
        assert entries["format"] == "pt"
        assert entries["cifarnets"] == __version__
        assert entries["architecture"] == '"convnet"'
        assert json.loads(entries["config"])["widths"] == [2, 2]
        assert json.loads(entries["classes"]) == ["a", "b"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_the_dtype_survives_and_the_model_works_in_it(self, dtype: torch.dtype, path: Path) -> None:
        model = small().to(dtype)
        loaded = load(save(model, path))
        assert_same(model, loaded)
        assert {p.dtype for p in loaded.parameters()} == {dtype}
        images = torch.rand(4, 3, 32, 32)
        assert evaluate(loaded, [(images, torch.zeros(4, dtype=torch.int64))], device="cpu").n == 4
        assert predict(loaded, images[0], mean=(0,) * 3, std=(1,) * 3, device="cpu")[0][1] > 0.2

    def test_a_model_has_one_dtype(self, path: Path) -> None:
        """Another could be saved, but torch would compute nothing with it."""
        model = small()
        model.fc2.double()
        with pytest.raises(WeightsError, match=r"fc2\.bias is torch\.float64 instead of torch\.float32"):
            save(model, path)
        assert not path.exists()

    def test_a_loaded_model_is_contiguous_whatever_was_saved(self, path: Path) -> None:
        model = small(in_channels=4).to(memory_format=torch.channels_last)
        assert not model.conv1.weight.is_contiguous()
        loaded = load(save(model, path))
        assert_same(model, loaded)
        assert all(p.is_contiguous() for p in loaded.parameters())
        assert not model.conv1.weight.is_contiguous()

    def test_tensors_that_are_not_contiguous_survive(self, path: Path) -> None:
        model = small()
        model.fc1.weight.data = torch.randn(128, 4).t()
        model.fc2.weight.data = torch.randn(3, 8)[:, ::2]
        model.fc2.bias.data = torch.tensor(0.5).expand(3)
        assert not model.fc1.weight.is_contiguous()
        assert_same(model, load(save(model, path)))

    @pytest.mark.usefixtures("own_registry")
    def test_tied_weights_stay_tied(self, path: Path) -> None:
        @models.register("tied")
        class Tied(nn.Module):
            def __init__(self, width: int = 5) -> None:
                super().__init__()
                self.first = nn.Linear(width, width)
                self.second = nn.Linear(width, width)
                self.second.weight = self.first.weight

        model = Tied()
        loaded = load(save(model, path))
        assert_same(model, loaded)
        assert loaded.second.weight is loaded.first.weight
        assert len(list(loaded.parameters())) == 3

    @pytest.mark.usefixtures("own_registry")
    def test_buffers_and_scalars_survive(self, path: Path) -> None:
        @models.register("normed")
        class Normed(nn.Module):
            def __init__(self, width: int = 3) -> None:
                super().__init__()
                self.norm = nn.BatchNorm2d(width)
                self.temperature = nn.Parameter(torch.tensor(1.0))

            def forward(self, x: Tensor) -> Tensor:
                return self.norm(x) * self.temperature

        model = Normed()
        for _ in range(3):
            model(torch.randn(4, 3, 2, 2) + 5)
        loaded = load(save(model, path))
        assert_same(model, loaded)
        assert loaded.norm.num_batches_tracked == 3
        assert (loaded.norm.running_mean > 1).all()

    def test_wrappers_leave_no_trace(self, path: Path) -> None:
        model = small()
        names = list(model.state_dict())
        for wrapped in (
            torch.compile(model),
            nn.DataParallel(model),
            nn.DataParallel(torch.compile(model)),
            AveragedModel(model),
        ):
            assert list(wrapped.state_dict()) != names
            loaded = load(save(wrapped, path))
            assert list(loaded.state_dict()) == names
            assert_same(model, loaded)

    def test_whatever_the_length_of_the_header_the_file_is_no_pickle(self, path: Path) -> None:
        """The file begins with that length, and some lengths begin as pickles do."""
        model = small()
        models.annotate(model, training={"note": ""})
        shortest = struct.unpack("<Q", save(model, path).read_bytes()[:8])[0]
        for length in (0x0480, 0x0580, 0x1080):
            models.annotate(model, training={"note": "x" * (length - shortest)})
            start = save(model, path).read_bytes()[:2]
            assert start == struct.pack("<H", length)
            assert start[:1] == pickle.dumps(None)[:1]
            assert load(path).meta == model.meta

    @settings(derandomize=True, deadline=None, max_examples=30)
    @given(
        name=st.sampled_from(["convnet", "convnet_functional"]),
        config=st.fixed_dictionaries(
            {
                "num_classes": st.integers(1, 5),
                "in_channels": st.integers(1, 4),
                "widths": st.lists(st.integers(1, 6), min_size=2, max_size=2),
                "hidden": st.integers(1, 6),
                "kernel_size": st.sampled_from([1, 3, 5]),
                "pool": st.sampled_from(["max", "avg"]),
            }
        ),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    )
    def test_any_config_survives(
        self,
        name: str,
        config: dict[str, Any],
        dtype: torch.dtype,
        layout: torch.memory_format,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        model = models.create(name, **config).to(dtype=dtype, memory_format=layout)
        loaded = load(save(model, tmp_path_factory.getbasetemp() / "any.safetensors"))
        assert_same(model, loaded)
        assert all(p.is_contiguous() for p in loaded.parameters())


class TestSaveRefuses:
    def test_a_class_that_is_not_registered(self, path: Path) -> None:
        with pytest.raises(WeightsError, match=r"Linear is not registered.*@cifarnets.models.register\('name'\)"):
            save(nn.Linear(3, 3), path)
        with pytest.raises(WeightsError, match="Linear is not registered"):
            save(nn.DataParallel(nn.Linear(3, 3)), path)
        assert not path.exists()

    def test_a_subclass_whose_name_would_load_its_parent(self, path: Path) -> None:
        class Louder(models.ConvNet):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * 10

        with pytest.raises(WeightsError, match="Louder is not registered"):
            save(Louder(), path)

    def test_a_model_that_was_changed_after_it_was_built(self, path: Path) -> None:
        model = small()
        model.fc2 = nn.Linear(4, 7)
        with pytest.raises(WeightsError, match=r"no longer what create\('convnet', …\) built.*fc2.weight is \[7, 4\]"):
            save(model, path)
        assert not path.exists()

    def test_a_meta_that_json_cannot_say(self, path: Path) -> None:
        model = small()
        models.annotate(model, training={"optimizer": object()})
        with pytest.raises(WeightsError, match="must be plain values"):
            save(model, path)
        assert not path.exists()

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match=r"cannot write .*model.safetensors"):
            save(small(), tmp_path / "file" / "model.safetensors")
        with pytest.raises(OutputError, match="cannot write"):
            save(small(), tmp_path)

    def test_a_full_disk_leaves_the_old_file(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        old = small()
        save(old, path)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OutputError, match=r"No space left on device. The file that was there is unchanged."):
                save(small(), path)
        assert_same(old, load(path))
        assert list(path.parent.iterdir()) == [path]


class TestLoadRefuses:
    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"cannot read the weights '.*none.safetensors': No such file"):
            load(tmp_path / "none.safetensors")
        with pytest.raises(WeightsError, match=r"there is no '.*none': pass a weight file, the folder of a finished"):
            load(tmp_path / "none")
        with pytest.raises(WeightsError, match=r"the folder '.*' has no model\.safetensors"):
            load(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 100, b"{}" * 50, b"\x07seven!"], ids=repr)
    def test_what_is_no_safetensors_file(self, content: bytes, path: Path) -> None:
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="is not a whole safetensors file"):
            load(path)

    def test_a_file_cut_anywhere(self, path: Path) -> None:
        content = save(small(), path).read_bytes()
        for length in [*range(40), *range(40, len(content), 97), len(content) - 1]:
            path.write_bytes(content[:length])
            with pytest.raises(WeightsError, match="is not a whole safetensors file"):
                load(path)

    def test_a_safetensors_file_of_another_program(self, path: Path) -> None:
        for metadata in (None, {"format": "pt"}):
            path.write_bytes(to_safetensors({"w": torch.zeros(3)}, metadata))
            with pytest.raises(WeightsError, match="is a safetensors file of another program"):
                load(path)

    def test_tensors_of_whole_numbers(self, path: Path) -> None:
        model = small()
        state = model.state_dict() | {"fc1.weight": model.fc1.weight.detach().to(torch.int8)}
        texts = {key: json.dumps(value) for key, value in old_header(model).items()}
        path.write_bytes(to_safetensors(state, {"cifarnets": "9.9.9", **texts}))
        with pytest.raises(WeightsError, match=r"fc1\.weight is torch\.int8 instead of torch\.float32"):
            load(path)

    def test_a_pickle_is_named_as_one_and_never_opened(self, path: Path, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "sprung"),)

        zipped, legacy = io.BytesIO(), io.BytesIO()
        torch.save(small().state_dict(), zipped)
        torch.save(small().state_dict(), legacy, _use_new_zipfile_serialization=False)
        traps = [pickle.dumps(Trap(), protocol) for protocol in (2, 3, 4, 5)]
        for content in (zipped.getvalue(), legacy.getvalue(), *traps):
            path.write_bytes(content)
            with pytest.raises(WeightsError, match="is a pickle"):
                load(path)
        assert not (tmp_path / "sprung").exists()

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(data=st.data())
    def test_damaged_bytes_raise_nothing_else(
        self, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
        whole = path.with_suffix(".whole")
        if not whole.exists():
            save(small().to(memory_format=torch.channels_last), whole)
        content = bytearray(whole.read_bytes())
        header_end = 8 + struct.unpack("<Q", content[:8])[0]
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, header_end))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of layers without units
            try:
                model = load(path)
            except WeightsError:
                return
        assert not model.training  # a changed digit in a mean may well go unseen; what loads is whole


class TestHeaders:
    """Files whose tensors are sound and whose header is not."""

    @pytest.fixture
    def forge(self, path: Path) -> Callable[..., Path]:
        model = small()

        def write(*, without: str | None = None, raw: dict[str, str] | None = None, **entries: Any) -> Path:
            header = {**old_header(model), **entries}
            header.pop(without or "", None)
            texts = {key: json.dumps(value) for key, value in header.items()} | (raw or {})
            path.write_bytes(to_safetensors(model.state_dict(), {"cifarnets": "9.9.9", **texts}))
            return path

        load(write())  # sound, until a test changes it
        return write

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        return dict(small().meta.config)

    def test_an_unknown_architecture(self, forge: Callable[..., Path]) -> None:
        expected = (
            f"holds a 'vit_tiny', which this version of cifarnets ({__version__}) does not know (the file was written "
            f"by 9.9.9). Known: {', '.join(models.list_models())}."
        )
        with pytest.raises(WeightsError, match=re.escape(expected)):
            load(forge(architecture="vit_tiny"))

    def test_shapes_that_do_not_fit_are_listed(self, forge: Callable[..., Path], config: dict[str, Any]) -> None:
        with pytest.raises(WeightsError) as caught:
            load(forge(config={**config, "num_classes": 5}))
        assert str(caught.value).endswith(
            "do not fit the model: fc2.bias is [3] instead of [5]; fc2.weight is [3, 4] instead of [5, 4]."
        )

    def test_of_many_faults_six_are_listed(self, forge: Callable[..., Path]) -> None:
        with pytest.raises(WeightsError, match=r"1.bias is missing; 1.weight is missing; .*; and 10 more") as caught:
            load(forge(architecture="fcnet", config={}))
        assert str(caught.value).count(";") == 6

    def test_tensors_that_the_model_has_no_place_for(self, forge: Callable[..., Path], path: Path) -> None:
        state = small().state_dict()
        state["extra"] = torch.zeros(2)
        del state["fc1.bias"]
        texts = {key: json.dumps(value) for key, value in old_header(small()).items()}
        path.write_bytes(to_safetensors(state, {"cifarnets": "0.1.0", **texts}))
        with pytest.raises(WeightsError, match=r"model: extra is not part of the model; fc1.bias is missing\."):
            load(path)

    @pytest.mark.parametrize(
        "hostile",
        [{"hidden": 10**12}, {"widths": [10**6, 10**6]}, {"num_classes": 10**15}, {"in_channels": 10**14}],
        ids=str,
    )
    def test_a_gigantic_model_is_refused_before_it_takes_memory(
        self, hostile: dict[str, Any], forge: Callable[..., Path], config: dict[str, Any]
    ) -> None:
        # That the shapes are compared shows that the model was built: no machine has the memory for it.
        with pytest.raises(WeightsError, match=r"do not fit the model: .*instead of \[.*10{6}"):
            load(forge(config={**config, **hostile}))

    @pytest.mark.parametrize(
        "changes",
        [
            {"hidden": 10**30}, {"hidden": 1e300}, {"hidden": -4}, {"hidden": "4"}, {"hidden": None},
            {"kernel_size": 2}, {"kernel_size": "%d"}, {"kernel_size": [3, 3]}, {"pool": ["max"]}, {"pool": {}},
            {"widths": [2]}, {"widths": {"a": 1, "b": 2}}, {"widths": "22"}, {"widths": [[2], [2]]},
            {"depth": 3}, {"self": 1},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_config_that_the_architecture_refuses(
        self, changes: dict[str, Any], forge: Callable[..., Path], config: dict[str, Any]
    ) -> None:
        with pytest.raises(WeightsError, match=r"the header of .* does not fit the architecture: "):
            load(forge(config={**config, **changes}))

    @pytest.mark.parametrize(
        "entries",
        [{"classes": ["a", "b", "c", "d"]}, {"mean": [0.5], "std": [0.5]}, {"std": [1, 1, 1, 1]}],
        ids=str,
    )
    def test_classes_and_constants_that_do_not_fit(self, entries: Any, forge: Callable[..., Path]) -> None:
        with pytest.raises(WeightsError, match=r"the header of .* does not fit the architecture: .* do not fit"):
            load(forge(**entries))

    @pytest.mark.parametrize("key", ["architecture", "config", "classes", "mean", "std", "training"])
    def test_a_missing_entry(self, key: str, forge: Callable[..., Path]) -> None:
        with pytest.raises(WeightsError, match=f"is incomplete or damaged .*{key}"):
            load(forge(without=key))

    @pytest.mark.parametrize(
        "entries",
        [
            {"config": [1]}, {"config": None}, {"classes": 5}, {"mean": "abc"}, {"mean": [None] * 3},
            {"training": [1]}, {"training": None},
        ],
        ids=str,
    )  # fmt: skip
    def test_an_entry_of_another_kind(self, entries: Any, forge: Callable[..., Path]) -> None:
        with pytest.raises(WeightsError, match="is incomplete or damaged"):
            load(forge(**entries))

    @pytest.mark.parametrize("text", ["", "{", "nul", "[" * 100_000], ids=["empty", "open", "cut", "deep"])
    def test_an_entry_that_is_no_json(self, text: str, forge: Callable[..., Path]) -> None:
        with pytest.raises(WeightsError, match=r"the header of .* is damaged"):
            load(forge(raw={"config": text}))

    @pytest.mark.parametrize("listed", [None, 5, {}, [["conv1.weight"]], ["fc1.weight", "none"]], ids=str)
    def test_a_layout_that_makes_no_sense_is_passed_over(self, listed: object, forge: Callable[..., Path]) -> None:
        assert all(p.is_contiguous() for p in load(forge(channels_last=listed)).parameters())


def test_an_address_on_the_hub_is_fetched_and_then_a_file_like_any_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    save(model, path)
    monkeypatch.setattr(hub, "fetch", {"hf://owner/repo": path}.__getitem__)
    assert_same(model, load("hf://owner/repo"))


def test_create_takes_an_address_on_the_hub(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    models.annotate(model, classes=["a", "b", "c"], mean=(0.5,) * 3, std=(0.25,) * 3)
    save(model, path)
    monkeypatch.setattr(hub, "fetch", lambda address: path)
    assert_same(model, models.create("hf://owner/repo", pretrained=True))
    five = models.create("hf://owner/repo", pretrained=True, num_classes=5)
    assert (five.meta.config["num_classes"], five.meta.classes, five.meta.mean) == (5, None, (0.5,) * 3)
    assert torch.equal(five.conv1.weight, model.conv1.weight)
    with pytest.raises(InputError, match="were made with in_channels=3"):
        models.create("hf://owner/repo", pretrained=True, in_channels=1)
    with pytest.raises(InputError, match="'hf://owner/repo' is an address of weights: pass pretrained=True"):
        models.create("hf://owner/repo")


@pytest.mark.usefixtures("own_registry")
def test_a_model_without_reset_classifier_keeps_its_head(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @models.register("headless")
    class Headless(nn.Module):
        def __init__(self, num_classes: int = 10) -> None:
            super().__init__()
            self.fc = nn.Linear(3, num_classes)

    save(Headless(), path)
    monkeypatch.setattr(hub, "fetch", lambda address: path)
    with pytest.raises(
        InputError, match=r"Headless cannot change its head: derive it from cifarnets\.models\.Classifier"
    ):
        models.create("hf://owner/repo", pretrained=True, num_classes=5)


def test_a_default_device_of_the_user_is_left_out_of_a_load() -> None:
    with torch.device("meta"):
        model = load("convnet")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_a_malformed_address_says_how_one_reads() -> None:
    with pytest.raises(InputError, match=r"hf://owner/repo.*not 'hf://owner'"):
        load("hf://owner")


NAME = "convnet.cifar3"


def test_a_file_that_is_called_like_released_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small()
    save(model, "convnet")
    with pytest.raises(WeightsError, match=r"'convnet' is a file here and the name of released weights: write './conv"):
        load("convnet")
    assert_same(model, load("./convnet"))


def test_released_weights_come_ready_for_use() -> None:
    model = models.create(NAME, pretrained=True)
    assert not model.training
    assert model.meta.classes == ("airplane", "automobile", "ship")
    assert model.meta == load(NAME).meta
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load(NAME).parameters(), strict=True))
    assert len(predict(model, torch.zeros(3, 32, 32), topk=3)) == 3


def test_loading_released_weights_draws_no_random_numbers() -> None:
    before = torch.random.get_rng_state()
    load(NAME)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_name_with_a_tag_alone_gives_a_fresh_model_of_those_sizes() -> None:
    model = models.create(NAME)
    assert model.training
    assert model.meta.config == load(NAME).meta.config
    assert not torch.equal(model.fc1.weight, load(NAME).fc1.weight)
    assert models.create(NAME, num_classes=7).meta.config["num_classes"] == 7


def test_the_same_number_of_classes_is_no_new_head(caplog: pytest.LogCaptureFixture) -> None:
    model = models.create(NAME, pretrained=True, num_classes=3, widths=[16, 8])
    assert torch.equal(model.fc2.weight, load(NAME).fc2.weight)
    assert caplog.records == []


def test_another_number_of_classes_starts_a_new_head_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, released = models.create(NAME, pretrained=True, num_classes=5), load(NAME)
    assert caplog.messages == [
        "convnet.cifar3: fc2.weight, fc2.bias start anew, for 5 classes instead of 3: train them before use."
    ]
    assert model.fc2.weight.shape == (5, 32)
    for name, tensor in released.state_dict().items():
        if not name.startswith("fc2."):
            assert torch.equal(model.state_dict()[name], tensor), name
    assert model.meta.config == {**released.meta.config, "num_classes": 5}
    assert (model.meta.classes, model.meta.training, model.meta.results) == (None, {}, {})
    assert model.meta.provenance == {}, "it is another model now"
    assert (model.meta.mean, model.meta.std) == (released.meta.mean, released.meta.std)
    torch.manual_seed(1)
    assert torch.equal(
        models.create(NAME, num_classes=5).fc2.weight.std().sign(), model.fc2.weight.std().sign()
    )  # drawn, not zero


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"in_channels": 1}, "were made with in_channels=3: only num_classes may differ"),
        ({"widths": (4, 4), "num_classes": 5}, r"were made with widths=\(16, 8\)"),
        ({"wdths": 3}, "cannot be built"),
    ],
)
def test_released_weights_in_another_model_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.create(NAME, pretrained=True, **given)


def test_training_forgets_what_was_measured_before() -> None:
    model = load(NAME)
    assert model.meta.results["accuracy"] > 0.9
    assert model.meta.training["epochs"] == 100
    assert model.meta.provenance["recipe"] == NAME
    images = SyntheticCIFAR10(train=False, size=100)
    three = cifar_subset(images, images.classes[:3])
    Trainer(model, progress=False).fit(BatchLoader(three), epochs=1)
    assert (model.meta.results, model.meta.training, model.meta.provenance) == ({}, {}, {})
    assert model.meta.classes == images.classes[:3]


def test_half_files_are_half_as_large_and_load_as_float32(tmp_path: Path) -> None:
    model = models.create("convnet").eval()
    whole, half = save(model, tmp_path / "whole.safetensors"), save(model, tmp_path / "half.safetensors", half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    images = torch.rand(4, 3, 32, 32)
    assert load(half)(images).dtype == torch.float32
    assert torch.allclose(load(half)(images), model(images), atol=1e-2)


@pytest.mark.parametrize("number", [-1, 2.0, True, "3"])
def test_a_number_of_classes_is_a_whole_number(number: Any) -> None:
    for pretrained in (False, True):
        with pytest.raises(InputError, match=r"num_classes .*must be a whole number"):
            models.create(NAME, pretrained=pretrained, num_classes=number)


def test_a_header_of_more_layers_than_tensors_is_refused_at_once(tmp_path: Path) -> None:
    """Building them first would take minutes."""
    path = tmp_path / "deep.safetensors"
    header = {"architecture": "fcnet", "config": {"num_classes": 10, "in_channels": 3, "widths": [1] * 100_000}}
    entries = {**header, "classes": None, "mean": None, "std": None, "training": {}}
    path.write_bytes(
        to_safetensors({"x": torch.zeros(1)}, {"cifarnets": "1", **{k: json.dumps(v) for k, v in entries.items()}})
    )
    with pytest.raises(WeightsError, match="describes more layers than the file has tensors"):
        load(path)


@pytest.mark.parametrize(
    ("key", "value"), [("mean", [10**400] * 3), ("std", [0, 0, 0]), ("std", [1, 1, -1]), ("mean", [float("nan")] * 3)]
)
def test_constants_that_cannot_be_are_refused(key: str, value: list[float], tmp_path: Path) -> None:
    model = models.create("fcnet", widths=(1,))
    entries = {**old_header(model), key: value}
    path = tmp_path / "odd.safetensors"
    path.write_bytes(
        to_safetensors(model.state_dict(), {"cifarnets": "1", **{k: json.dumps(v) for k, v in entries.items()}})
    )
    with pytest.raises(WeightsError, match="is incomplete or damaged"):
        load(path)


def test_a_zipped_package_has_its_weights(tmp_path: Path) -> None:
    package = Path(models.__file__).parents[1]
    archive = shutil.make_archive(str(tmp_path / "zipped"), "zip", package.parent, "cifarnets")
    code = "import cifarnets; print(cifarnets.__file__); print(cifarnets.load('convnet.cifar3').meta.classes)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": archive},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "zipped.zip" in first
    assert second == "('airplane', 'automobile', 'ship')"
