"""The errors: one tree, built-ins beside it, messages that help."""

import inspect
import pickle

import pytest

from cifarnets import CifarNetsError, errors
from cifarnets.errors import unknown_name

CLASSES = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.CifarNetsError)
]
BUILT_INS = {
    errors.DataNotFoundError: FileNotFoundError,
    errors.DataCorruptError: ValueError,
    errors.DownloadError: OSError,
    errors.UnknownNameError: KeyError,
    errors.InputError: ValueError,
    errors.WeightsError: ValueError,
    errors.OutputError: OSError,
    errors.UploadError: OSError,
    errors.MissingExtraError: ImportError,
    errors.TrainingError: RuntimeError,
    errors.CallbackError: RuntimeError,
    errors.DivergedError: RuntimeError,
}


def test_each_error_has_its_built_in() -> None:
    # A new error must be given its place here.
    assert set(BUILT_INS) | {CifarNetsError} == set(CLASSES)


@pytest.mark.parametrize("error", BUILT_INS, ids=lambda error: error.__name__)
def test_caught_as_ours_and_as_the_built_in(error: type[CifarNetsError]) -> None:
    for caught in (CifarNetsError, BUILT_INS[error]):
        with pytest.raises(caught, match=r"^what to do$"):
            raise error("what to do")


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_message_reads_as_written(error: type[CifarNetsError]) -> None:
    # KeyError would put it in quotes; a worker process sends its errors pickled.
    assert str(error("it's 'this'")) == "it's 'this'"
    there_and_back = pickle.loads(pickle.dumps(error("it's 'this'")))
    assert (type(there_and_back), str(there_and_back)) == (error, "it's 'this'")


def test_several_arguments_are_not_lost() -> None:
    assert str(CifarNetsError("one", 2)) == "('one', 2)"
    assert str(CifarNetsError()) == ""


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_the_drawn_tree_shows_it(error: type[CifarNetsError]) -> None:
    assert error.__name__ in str(errors.__doc__)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("automobil", "unknown class 'automobil'. Did you mean 'automobile'? Available: automobile, cat, ship."),
        ("CAT", "unknown class 'CAT'. Did you mean 'cat'? Available: automobile, cat, ship."),
        ("zebra", "unknown class 'zebra'. Available: automobile, cat, ship."),
        (7, "unknown class 7. Available: automobile, cat, ship."),
    ],
)
def test_unknown_name_repeats_suggests_and_lists(name: object, message: str) -> None:
    error = unknown_name("class", name, ["ship", "automobile", "cat"])
    assert isinstance(error, errors.UnknownNameError)
    assert str(error) == message
