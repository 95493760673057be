"""Text for a terminal: harmless, short, and in the words of the command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarnets._terminal import in_options, printable, rounded

FLAGS = {
    "num_classes": "--num-classes",
    "data_root": "--data-root",
    "resume": "--resume",
    "epochs": "--epochs",
    "classes": "--classes",
    "label_smoothing": "--label-smoothing",
    "lr": "--lr",
    "model": "--model",
}


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_printed(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_lines_may_stay() -> None:
    assert printable("one\ntwo\r\x9b", keep="\n") == "one\ntwo\\r\\x9b"


@given(st.recursive(st.floats(allow_nan=False) | st.text() | st.integers(), st.lists))
def test_only_floats_change(value: object) -> None:
    found = rounded(value)
    if isinstance(value, float) and value and abs(value) > 1e-300:
        assert found == pytest.approx(value, rel=1e-5)
    elif not isinstance(value, list):
        assert found == value


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("create it with num_classes=10, or …", "create it with --num-classes 10, or …"),
        ("Pass root=, the folder", "Pass --data-root, the folder"),
        ("use download=True (or `cifarnets download`).", "use `cifarnets download`."),
        ("resume the run in it (resume=True).", "resume the run in it (--resume)."),
        ("epochs must be at least 1, not 0.", "--epochs must be at least 1, not 0."),
        ("lr of a recipe must be a number", "--lr must be a number"),
        ("lr of Trainer must be a number", "lr of Trainer must be a number"),
        ("epochs of run_recipe must be a whole number", "--epochs must be a whole number"),
        ("lr of a recipe has a number that is", "--lr has a number that is"),
        ("label_smoothing is of the cross-entropy", "--label-smoothing is of the cross-entropy"),
        ("or relabel with cifar_subset.", "or relabel with --classes."),
        ("there is no file 'epochs=3 num_classes=4.png'.", "there is no file 'epochs=3 num_classes=4.png'."),
        ("CIFAR-10's are 32×32: num_classes=3, it's so", "CIFAR-10's are 32×32: --num-classes 3, it's so"),
        ("pass mean= and std=.", "pass mean= and std=."),  # this command has no such options
        ("the model takes 3 channels", "the model takes 3 channels"),
        ("a/epochs=3/x", "a/epochs=3/x"),
    ],
)  # fmt: skip
def test_what_the_library_says_becomes_what_the_user_can_type(message: str, expected: str) -> None:
    assert in_options(message, FLAGS) == expected
