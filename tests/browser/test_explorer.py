"""The explorer in a real browser: its numbers are PyTorch's, and everything on it can be used."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page
from tests.browser.helpers import DESKTOP, PHONE, accessibility_faults, drop_file, sideways_scroll, watched_page
from torch import Tensor, nn

import cifarnets
from cifarnets.models import annotate, create
from cifarnets.prediction import Preprocessing
from cifarnets.report import write_explorer
from cifarnets.report.drawings import drawings

CONSTANTS: dict[str, Any] = {"mean": (0.49, 0.48, 0.45), "std": (0.25, 0.24, 0.26)}


class Odd(nn.Module):
    """Layers that no net of the registry has: groups, dilation, uneven padding, GELU of a tanh, joined maps …"""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(3, 12, 5, stride=2, padding=(2, 1), groups=3)
        self.depthwise = nn.Conv2d(12, 12, 3, padding="same", dilation=2, groups=12, bias=False)
        self.point = nn.Conv2d(12, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.grouped(x))
        x = nn.functional.avg_pool2d(self.depthwise(x), 3, 2, 1)
        x = nn.functional.gelu(self.norm(self.point(x)), approximate="tanh")
        x = torch.cat([x, (x * 0.5 - 1).sigmoid() - x], dim=1)
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        return self.head(self.pool(x).squeeze(3).squeeze(2)) / 3


def trained(model: nn.Module) -> nn.Module:
    """Statistics of BatchNorm as after a training, so that they count."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def of(name: str, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = trained(create(name, **config))
        if config.get("in_channels") == 1:
            annotate(model, mean=(0.5,), std=(0.25,))
        else:
            annotate(model, **CONSTANTS)
        return model

    return build


NETS: dict[str, Callable[[], nn.Module]] = {
    "convnet.cifar3": lambda: cifarnets.load("convnet.cifar3"),
    "convnet": lambda: cifarnets.load("convnet"),
    "fcnet": lambda: cifarnets.load("fcnet"),
    "resnet20": lambda: cifarnets.load("resnet20"),
    "airbench94": lambda: cifarnets.load("airbench94"),
    "convnet_functional": of("convnet_functional", pool="avg", kernel_size=5),
    "airbench96": of("airbench96", widths=(8, 16, 24)),
    "vgg11_bn": of("vgg11_bn", widths=(8, 8, 16, 16, 16)),
    "wide_resnet16_4": of("wide_resnet16_4"),
    "resnet20 with squeeze-excitation": of("resnet20", widths=(16, 16, 32), se=True, preact=True),
    "resnet20 with learned shortcuts": of("resnet20", widths=(4, 8, 8), shortcut="B"),
    "mobilenet_v2": of("mobilenet_v2", width=0.1),
    "densenet40_bc": of("densenet40_bc", growth=2),
    "grey pictures": of("convnet", in_channels=1, widths=(3, 2), num_classes=2),
    "layers of no family": lambda: trained(Odd()),
}
"""The article's two nets, every family of the registry, and what else a net may have."""


def constants(model: nn.Module) -> dict[str, Any]:
    return {} if getattr(model, "meta", None) is not None and model.meta.mean is not None else CONSTANTS


def open_explorer(page: Page, model: nn.Module, folder: Path) -> Page:
    return open_file(page, write_explorer(model, folder / "page.html", title="a net", **constants(model)))


def open_file(page: Page, path: Path) -> Page:
    page.goto(path.as_uri())
    page.locator("#answer li").first.wait_for()
    page.evaluate("settled()")
    return page


@pytest.fixture(scope="module")
def net() -> Any:
    return cifarnets.load("convnet.cifar3")


@pytest.fixture(scope="module")
def file(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the article's net."""
    return write_explorer(net, tmp_path_factory.mktemp("explorer") / "page.html")


@pytest.fixture
def explorer(page: Page, file: Path) -> Page:
    return open_file(page, file)


def logits_on(page: Page) -> Tensor:
    return torch.tensor(page.evaluate("Array.from(logits)"))


def answers(page: Page) -> dict[str, str]:
    """Each class with its probability, as the page shows them."""
    rows = page.locator("#answer li[data-class]").all()
    return {row.locator(".name").inner_text(): row.locator(".share").inner_text() for row in rows}


def maps_of(page: Page, layer: str) -> Locator:
    return page.locator(f"section.layer[aria-label='{layer}'] canvas.values")


def choose(page: Page, label: str, option: str) -> None:
    page.locator(f"#view label:has-text('{label}') select").select_option(label=option)


def png(pixels: "np.ndarray[Any, Any]") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", NETS)
def test_every_number_is_that_of_pytorch(page: Page, tmp_path: Path, name: str) -> None:
    model = NETS[name]()
    open_explorer(page, model, tmp_path)
    preprocessing = Preprocessing.of(model, **constants(model))
    pictures = drawings(channels=len(preprocessing.mean))
    for drawn in ("airplane", "disc"):
        if drawn != "airplane":  # the page begins with it
            page.locator(f"#pictures button[title={drawn}]").click()
            page.evaluate("settled()")
        with torch.no_grad():
            expected = model.eval()(preprocessing.prepare(pictures[drawn])[0])[0]
        torch.testing.assert_close(logits_on(page), expected, atol=1e-4, rtol=1e-5)
    # Some numbers of every layer, taken apart: what they are made of gives them again.
    gaps = page.evaluate(
        """layers.map((layer, number) => Math.max(...[0, 0.37, 0.71, 0.999].map((share) => {
            const found = explain(layers, values, weights, number, Math.floor(values[number].length * share));
            return Math.abs(found.total - found.value) / Math.max(1, Math.abs(found.value));
        })))"""
    )
    assert len(gaps) > 5
    assert max(gaps) < 1e-4


def test_the_maps_are_those_of_the_layers(explorer: Page, net: Any) -> None:
    inner = cifarnets.features(net, drawings()["airplane"], ["conv1", "act1", "conv2", "fc1"])
    for name, expected in inner.items():
        number = explorer.evaluate("(name) => layers.findIndex((layer) => layer.name === name)", name)
        found = torch.tensor(explorer.evaluate("(number) => Array.from(values[number])", number))
        torch.testing.assert_close(found, expected.flatten(), atol=1e-4, rtol=1e-5)


def test_pointing_at_a_pixel_shows_the_sum_that_made_it(explorer: Page, net: Any) -> None:
    maps = cifarnets.features(net, drawings()["airplane"], ["conv1", "pool1", "act2", "conv2", "fc1", "fc2"])
    for name, expected in maps.items():
        canvas = maps_of(explorer, name)
        canvas.scroll_into_view_if_needed()
        canvas.hover(position={"x": 31, "y": 27})
        value = explorer.locator("#value")
        shown = float(value.get_attribute("data-total") or "nan")
        heading = explorer.locator("#view h3").inner_text()
        numbers = [int(word) for word in heading.replace(",", " ").split() if word.isdigit()]
        place = tuple(numbers[:3]) if expected.ndim == 3 else (numbers[0],)
        assert heading.startswith(name)
        assert shown == pytest.approx(float(value.get_attribute("data-value") or "nan"), abs=1e-4)
        assert shown == pytest.approx(expected[place].item(), abs=1e-4)
    # The patch, the kernel and the products of a convolution are on the screen, and add up.
    maps_of(explorer, "conv1").hover(position={"x": 40, "y": 40})
    products = explorer.locator("#view table[aria-label=products]")
    assert products.count() == 3
    rows = explorer.locator("#sum div").all_inner_texts()
    parts = [float(row.split()[-1].replace("−", "-")) for row in rows]
    assert parts[0] + parts[1] == pytest.approx(parts[2], abs=2e-3)


def test_keys_move_over_the_maps(explorer: Page) -> None:
    canvas = maps_of(explorer, "conv1")
    explorer.locator("#next").focus()
    explorer.keyboard.press("Tab")  # the maps of the picture
    heading = explorer.locator("#view h3")
    assert heading.inner_text() == "picture, red, row 0, column 0"
    explorer.locator("section[aria-label=conv1] button").focus()
    explorer.keyboard.press("Tab")
    assert canvas.evaluate("(element) => element === document.activeElement")
    for key, expected in [
        ("Home", "conv1, map 0, row 0, column 0"),
        ("ArrowRight", "conv1, map 0, row 0, column 1"),
        ("ArrowDown", "conv1, map 0, row 1, column 1"),
        ("PageDown", "conv1, map 1, row 1, column 1"),
        ("ArrowLeft", "conv1, map 1, row 1, column 0"),
        ("End", "conv1, map 15, row 31, column 31"),
        ("ArrowRight", "conv1, map 15, row 31, column 31"),
    ]:
        explorer.keyboard.press(key)
        assert heading.inner_text() == expected
    assert explorer.locator("#live").inner_text().startswith("conv1, map 15, row 31, column 31")


def test_what_is_kept_stays_until_it_is_let_go(explorer: Page) -> None:
    canvas, heading = maps_of(explorer, "conv1"), explorer.locator("#view h3")
    canvas.click(position={"x": 10, "y": 10})
    kept = heading.inner_text()
    canvas.hover(position={"x": 50, "y": 50})
    assert heading.inner_text() == kept
    explorer.keyboard.press("Escape")
    canvas.hover(position={"x": 52, "y": 52})
    assert heading.inner_text() != kept


def test_the_edge_detector_of_the_article_is_one_click(explorer: Page, net: Any) -> None:
    before = answers(explorer)
    explorer.locator("section[aria-label=conv1] button").click()
    explorer.get_by_role("button", name="Edge (−1 0 1)").click()
    explorer.locator("section[aria-label=conv1] .edited").wait_for()
    explorer.evaluate("settled()")
    edited: Any = cifarnets.load("convnet.cifar3")
    with torch.no_grad():
        edited.conv1.weight[0] = torch.tensor([-1.0, 0.0, 1.0])
        edited.conv1.bias[0] = 0
        expected = edited.eval()(Preprocessing.of(net).prepare(drawings()["airplane"])[0])[0]
    torch.testing.assert_close(logits_on(explorer), expected, atol=1e-4, rtol=1e-5)
    fields = explorer.locator(".editor input")
    assert [fields.nth(i).input_value() for i in range(9)] == ["-1", "0", "1"] * 3
    assert "airplane" in explorer.locator("#effect-words").inner_text()
    # Another picture: the marks are those of the net as it was.
    explorer.locator("#pictures button[title=ship]").click()
    explorer.evaluate("settled()")
    was = net.eval()(Preprocessing.of(net).prepare(drawings()["ship"])[0])[0].softmax(0)
    torch.testing.assert_close(torch.tensor(explorer.evaluate("before")), was, atol=1e-4, rtol=1e-4)
    explorer.locator("#pictures button[title=airplane]").click()
    explorer.locator("#reset").click()
    explorer.evaluate("settled()")
    assert answers(explorer) == before
    assert explorer.locator("section[aria-label=conv1] .edited").is_hidden()


def test_a_kernel_is_changed_number_by_number(explorer: Page, net: Any) -> None:
    explorer.locator("#tab-kernel").click()
    choose(explorer, "layer", "conv2")
    choose(explorer, "makes", "map 3")
    choose(explorer, "looks at", "map 5")
    explorer.get_by_label("Row 1, column 2").fill("2.5")
    explorer.get_by_label("Bias").fill("-1")
    explorer.evaluate("settled()")
    edited: Any = cifarnets.load("convnet.cifar3")
    with torch.no_grad():
        edited.conv2.weight[3, 5, 1, 2] = 2.5
        edited.conv2.bias[3] = -1
        expected = edited.eval()(Preprocessing.of(net).prepare(drawings()["airplane"])[0])[0]
    torch.testing.assert_close(logits_on(explorer), expected, atol=1e-4, rtol=1e-5)


def test_two_kernels_are_compared(explorer: Page, net: Any) -> None:
    explorer.locator("#tab-compare").click()
    choose(explorer, "first", "map 2")
    choose(explorer, "second", "map 9")
    a, b = net.conv1.weight.detach()[[2, 9]].flatten(1)
    cosine = float(explorer.locator("#alike").inner_text().split()[1].rstrip(",").replace("−", "-"))
    assert cosine == pytest.approx(torch.cosine_similarity(a, b, dim=0).item(), abs=0.006)
    cells = explorer.locator("#view table[aria-label=difference]").first.locator("td")
    assert cells.count() == 9
    shown = float((cells.nth(4).get_attribute("title") or "").replace("−", "-"))
    assert shown == pytest.approx((a - b)[4].item(), abs=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "mode"), [(60, 100, "RGB"), (32, 32, "RGB"), (20, 25, "RGB"), (480, 640, "RGB"), (33, 32, "L")]
)
def test_a_dropped_picture_is_shrunk_as_predict_shrinks_it(
    explorer: Page, net: Any, height: int, width: int, mode: str
) -> None:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    picture = png(pixels)
    drop_file(explorer, picture)
    explorer.locator(f"#status:has-text('{width} × {height}')").wait_for()
    explorer.evaluate("settled()")
    expected = Preprocessing.of(net).read(picture) * 255
    shown = torch.tensor(explorer.evaluate("Array.from(planes)")).view(3, 32, 32)
    assert torch.equal(shown.float(), expected.round())
    ((name, probability),) = cifarnets.predict(net, picture)
    assert answers(explorer)[name] == pytest.approx(f"{100 * probability:.1f} %")


def test_a_photograph_is_taken_as_nearly(explorer: Page, net: Any) -> None:
    """A JPEG of some size: decoders differ by a few levels."""
    y, x = np.mgrid[0:600, 0:800]
    pixels = np.stack([128 + 90 * np.sin(x / 60), 128 + 90 * np.cos(y / 50), (x + y) % 256 / 2 + 60], axis=2)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    drop_file(explorer, file.getvalue(), "photo.jpg")
    explorer.locator("#status:has-text('800 × 600')").wait_for()
    explorer.evaluate("settled()")
    expected = Preprocessing.of(net).read(file.getvalue()) * 255
    shown = torch.tensor(explorer.evaluate("Array.from(planes)")).view(3, 32, 32)
    assert (shown - expected).abs().max() <= 6


def test_what_is_no_picture_is_named(explorer: Page) -> None:
    before = answers(explorer)
    drop_file(explorer, b"not a picture", "notes.txt")
    explorer.locator("#status:has-text('notes.txt is no picture')").wait_for()
    assert answers(explorer) == before


def test_one_draws_a_picture(explorer: Page) -> None:
    before = logits_on(explorer)
    explorer.locator("#draw").click()
    explorer.get_by_role("button", name="red").click()
    box = explorer.locator("#source").bounding_box()
    assert box is not None
    explorer.mouse.move(box["x"] + 40, box["y"] + 60)
    explorer.mouse.down()
    explorer.mouse.move(box["x"] + 150, box["y"] + 140, steps=4)
    explorer.mouse.up()
    explorer.locator("#status:has-text('Your drawing')").wait_for()
    explorer.evaluate("settled()")
    assert not torch.equal(logits_on(explorer), before)
    middle = explorer.evaluate("[0, 1, 2].map((c) => planes[c * 1024 + 15 * 32 + 14])")
    assert middle[0] > 180 > 60 > middle[2]


@pytest.mark.parametrize("way", ["open", "paste"])
def test_a_picture_is_opened_or_pasted(explorer: Page, net: Any, tmp_path: Path, way: str) -> None:
    path = tmp_path / "ship.png"
    Image.fromarray(drawings((64, 96))["ship"].permute(1, 2, 0).numpy()).save(path)
    if way == "open":
        explorer.locator("#file").set_input_files(path)
    else:
        drop_file(explorer, path.read_bytes(), paste=True)
    explorer.locator("#status:has-text('96 × 64')").wait_for()
    explorer.evaluate("settled()")
    expected = net.eval()(Preprocessing.of(net).prepare(str(path))[0])[0]
    torch.testing.assert_close(logits_on(explorer), expected, atol=1e-4, rtol=1e-5)


def test_the_webcam_is_looked_at_until_it_is_stopped(explorer: Page) -> None:
    explorer.context.grant_permissions(["camera"])
    before = logits_on(explorer)
    explorer.locator("#webcam").click()
    explorer.locator("#status:has-text('The webcam')").wait_for()
    explorer.locator("#webcam:has-text('Stop')").click()
    explorer.evaluate("settled()")
    assert not torch.equal(logits_on(explorer), before)
    assert explorer.evaluate("camera === null")


def test_the_webcam_says_why_it_does_not_run(explorer: Page) -> None:
    explorer.locator("#webcam").click()
    explorer.locator("#status:has-text('No webcam')").wait_for()


def test_one_goes_through_the_layers_step_by_step(explorer: Page) -> None:
    explorer.emulate_media(reduced_motion="reduce")  # a page that still scrolls can move a button away under the mouse
    name = explorer.locator("#step-name")
    explorer.locator("#next").click()
    assert name.inner_text() == "1 of 10: picture"
    explorer.locator("#next").click()
    assert name.inner_text() == "2 of 10: conv1"
    assert explorer.locator("section[aria-label=conv1].now").count() == 1
    assert explorer.locator("section[aria-label=pool1].later").count() == 1
    explorer.locator("#back").click()
    assert explorer.locator("section[aria-label=conv1].later").count() == 1
    explorer.locator("#step").press("End")
    assert name.inner_text() == "10 of 10: fc2"
    explorer.locator("#next").click()
    assert name.inner_text() == "All 10 steps"
    assert explorer.locator(".later").count() == 0


def test_the_animation_fills_the_maps(explorer: Page) -> None:
    explorer.locator("#next").click()
    explorer.locator("#next").click()  # at conv1
    # Read through a copy: a canvas that is read from twice gets a warning.
    filled = """(() => {
        const copy = new OffscreenCanvas(4, 4).getContext("2d"), { canvas } = viewOf[1];
        copy.drawImage(canvas, 0, canvas.height - 4, 4, 4, 0, 0, 4, 4);
        return copy.getImageData(1, 1, 1, 1).data[3];
    })()"""
    assert explorer.evaluate(filled) == 255
    explorer.locator("#play").click()
    explorer.locator("section[aria-label=conv1].now").wait_for()
    explorer.locator("#view h3:has-text('conv1, map 0, row 1')").wait_for()
    assert explorer.evaluate(filled) == 0  # the last row is not there yet
    explorer.locator("#play").click()
    explorer.locator("#play:has-text('Play')").wait_for()
    assert explorer.evaluate(filled) == 255


def test_whoever_wants_calm_gets_no_sweep(chromium: Browser, file: Path) -> None:
    with watched_page(chromium) as page:
        page.emulate_media(reduced_motion="reduce")
        open_file(page, file)
        page.locator("#next").click()
        page.locator("#next").click()
        page.locator("#play").click()
        page.locator("#view h3:has-text('conv1, map 0, row 0, column 0')").wait_for()
        page.locator("#play").click()


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_it_can_be_seen_and_used_by_all(chromium: Browser, file: Path, size: Any, scheme: Any) -> None:
    with watched_page(chromium) as page:
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        open_file(page, file)
        assert page.evaluate("theme") == scheme
        assert sideways_scroll(page) == 0
        for name in ("picture", "conv1", "pool1", "act1", "conv2", "pool2", "act2", "fc1", "act3", "fc2"):
            box = maps_of(page, name).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= size["width"]
            assert box["height"] > 15
        assert accessibility_faults(page) == []
        maps_of(page, "conv2").click(position={"x": 20, "y": 20})
        assert page.locator("#panel").is_visible()
        assert accessibility_faults(page) == []
        page.locator("#tab-kernel").click()
        assert accessibility_faults(page) == []
        assert sideways_scroll(page) == 0


def test_a_tap_on_a_phone_opens_the_closer_look(chromium: Browser, file: Path) -> None:
    context = chromium.new_context(viewport=PHONE, has_touch=True, is_mobile=True, offline=True)
    page = open_file(context.new_page(), file)
    assert page.locator("#panel").is_hidden()
    maps_of(page, "conv1").tap(position={"x": 20, "y": 20})
    assert page.locator("#view h3").inner_text().startswith("conv1, map 0")
    page.locator("#close").tap()
    assert page.locator("#panel").is_hidden()
    context.close()


def test_the_theme_can_be_chosen(explorer: Page) -> None:
    explorer.locator("#theme").click()
    assert explorer.evaluate("document.documentElement.dataset.theme") == "dark"
    explorer.locator("#theme").click()
    assert explorer.evaluate("document.documentElement.dataset.theme") == "light"


@pytest.mark.parametrize(
    "script",
    [
        "delete window.Worker",
        """window.Worker = class {
            constructor() { setTimeout(() => this.onerror(new Event("error")), 20); }
            postMessage() {}
        }""",
    ],
    ids=["there is none", "it does not start"],
)
def test_it_works_without_a_worker(chromium: Browser, net: Any, file: Path, script: str) -> None:
    with watched_page(chromium) as page:
        page.add_init_script(script)
        open_file(page, file)
        page.locator("#pictures button[title=ship]").click()
        page.evaluate("settled()")
        expected = net.eval()(Preprocessing.of(net).prepare(drawings()["ship"])[0])[0]
        torch.testing.assert_close(logits_on(page), expected, atol=1e-4, rtol=1e-5)


def test_names_cannot_break_the_page(page: Page, tmp_path: Path) -> None:
    model = create("convnet", num_classes=2, widths=(2, 2), hidden=4)
    names = ["</script><script>throw 1</script>", '<img src=x onerror=throw> & \u2028 "quotes"']
    annotate(model, classes=names, **CONSTANTS)
    open_file(page, write_explorer(model, tmp_path / "page.html", title="<b>bold</b>"))
    assert page.locator("h1").inner_text() == "<b>bold</b>"
    assert sorted(answers(page)) == sorted(names)
    assert json.loads(page.locator("#content").inner_text())["classes"] == names


@pytest.mark.parametrize("screen", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_long_names_stay_on_the_screen(page: Page, tmp_path: Path, screen: Any) -> None:
    page.set_viewport_size(screen)
    model = create("convnet", num_classes=2, widths=(2, 2), hidden=4)
    annotate(model, classes=("x" * 200, "cat"), **CONSTANTS)
    open_file(page, write_explorer(model, tmp_path / "page.html", title="y" * 200))
    assert sideways_scroll(page) == 0
