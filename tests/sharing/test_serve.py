"""examples/serve.py around an exported model, asked by a real client over the loopback."""

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
import pytest

from cifarnets import info, load, predict
from cifarnets.datasets import SyntheticCIFAR10
from cifarnets.datasets.images import to_pil
from cifarnets.sharing import export

SERVE = Path(__file__).resolve().parents[2] / "examples" / "serve.py"


class Server:
    """The example in a process of its own."""

    def __init__(self, model: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", SERVE, model, "--port", "0", "--max-body", "100000", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        address = urlsplit(line.removeprefix("listening on ").strip())
        assert address.port, self.process.communicate()[1]
        self.host, self.port = str(address.hostname), int(address.port)

    def ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = "image/png", **headers: str
    ) -> tuple[int, Any]:
        client = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            client.request(method, path, body, {"Content-Type": kind, **headers})
            response = client.getresponse()
            assert response.headers["Content-Type"] == "application/json"
            return response.status, json.loads(response.read())
        finally:
            client.close()

    def stop(self) -> str:
        """End it as a service manager does, and return what it printed last."""
        self.process.terminate()
        return self.end()

    def end(self) -> str:
        """Wait for the end of it, and return what it printed last."""
        output, errors = self.process.communicate(timeout=30)
        assert "Traceback" not in errors
        if os.name == "posix":
            assert self.process.returncode == 0, errors
        return output


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(load("convnet"), tmp_path_factory.mktemp("model") / "convnet.onnx", preprocess=True).path


@pytest.fixture(scope="module")
def server(model_file: Path) -> Iterator[Server]:
    started = Server(model_file, "--max-pictures", "3")
    yield started
    started.stop()


def png(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


PICTURES = [to_pil(image) for image in SyntheticCIFAR10(size=10).images[:3]]
CONTENTS = [png(picture.resize((50 + 20 * number, 40))) for number, picture in enumerate(PICTURES)]


def as_json(contents: list[bytes]) -> bytes:
    return json.dumps({"images": [base64.b64encode(content).decode() for content in contents]}).encode()


def test_it_says_that_it_is_well_and_what_it_knows(server: Server) -> None:
    status, answer = server.ask("GET", "/health")
    assert (status, answer["status"]) == (200, "ok")
    assert answer["classes"] == list(info("convnet").release.classes)


def test_a_picture_and_a_batch_are_classified_as_predict_does_it(server: Server) -> None:
    wanted: Any = predict(load("convnet"), CONTENTS, topk=3)
    status, batch = server.ask("POST", "/predict?topk=3", as_json(CONTENTS), "application/json")
    assert status == 200
    assert len(batch["predictions"]) == 3
    for content, expected, row in zip(CONTENTS, wanted, batch["predictions"], strict=True):
        assert [entry["class"] for entry in row] == [name for name, _ in expected]
        assert [entry["probability"] for entry in row] == pytest.approx([value for _, value in expected], abs=1e-4)
        status, single = server.ask("POST", "/predict?topk=3", content)
        assert status == 200
        assert [entry["class"] for entry in single["predictions"][0]] == [name for name, _ in expected]
    assert server.ask("POST", "/predict", CONTENTS[0])[1]["predictions"][0][0]["class"] == wanted[0][0][0]


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (("GET", "/"), 404, "use /health or /predict"),
        (("GET", "/predict"), 405, "/predict takes POST only"),
        (("POST", "/health", b""), 405, "/health takes GET only"),
        (("POST", "/predict", b"no picture"), 400, "picture 1 cannot be read"),
        (("POST", "/predict", CONTENTS[0][:-30]), 400, "picture 1 cannot be read"),
        (("POST", "/predict", b""), 400, "picture 1 cannot be read"),
        (("POST", "/predict?topk=11", CONTENTS[0]), 400, "between 1 and 10"),
        (("POST", "/predict?topk=x", CONTENTS[0]), 400, "between 1 and 10"),
        (("POST", "/predict", CONTENTS[0], "text/plain"), 415, "image/"),
        (("POST", "/predict", bytes(100_001)), 413, "the body may have 100,000 bytes"),
        (("POST", "/predict", bytes(3_000_000)), 413, "the body may have 100,000 bytes"),
        (("POST", "/predict", as_json(CONTENTS + CONTENTS[:1]), "application/json"), 413, "may have 3 pictures"),
        (("POST", "/predict", as_json([CONTENTS[0], b"x"]), "application/json"), 400, "picture 2 cannot be read"),
        (("POST", "/predict", b'{"images": []}', "application/json"), 400, "BASE64"),
        (("POST", "/predict", b'{"images": ["?"]}', "application/json"), 400, "BASE64"),
        (("POST", "/predict", b"[" * 50_000, "application/json"), 400, "BASE64"),
        (("POST", "/predict", b'{"images": "x"}', "application/json"), 400, "BASE64"),
        (("POST", "/predict", b"\xff", "application/json"), 400, "BASE64"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_it_cannot_answer_is_refused_in_a_sentence(
    server: Server, request_: tuple[Any, ...], status: int, words: str
) -> None:
    found, answer = server.ask(*request_)
    assert found == status
    assert words in answer["error"]
    assert server.ask("GET", "/health")[0] == 200


def test_a_body_of_unknown_length_is_refused(server: Server) -> None:
    client = http.client.HTTPConnection(server.host, server.port, timeout=30)
    client.request("POST", "/predict", iter([CONTENTS[0]]), {"Content-Type": "image/png"}, encode_chunked=True)
    assert client.getresponse().status == 411
    client.close()


def test_a_picture_of_too_many_pixels_is_refused(server: Server) -> None:
    huge = png(PIL.Image.new("1", (6000, 4000)))
    assert len(huge) < 100_000
    status, answer = server.ask("POST", "/predict", huge)
    assert status == 400
    assert "picture 1 cannot be read" in answer["error"]


def begin(server: Server, content: bytes) -> socket.socket:
    """Send all of a request but its last byte."""
    connection = socket.create_connection((server.host, server.port), timeout=30)
    head = f"POST /predict HTTP/1.0\r\nContent-Type: image/png\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content[:-1])
    return connection


def test_more_requests_than_allowed_are_asked_to_come_again(model_file: Path) -> None:
    server = Server(model_file, "--max-requests", "1")
    with begin(server, CONTENTS[0]) as connection:
        while server.ask("POST", "/predict", CONTENTS[0])[0] != 503:  # until the first has its place
            pass
        assert server.ask("GET", "/health")[0] == 200
        connection.sendall(CONTENTS[0][-1:])
        assert connection.recv(100).startswith(b"HTTP/1.0 200")
    while (status := server.ask("POST", "/predict", CONTENTS[0])[0]) == 503:  # the thread is about to end
        pass
    assert status == 200
    server.stop()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM that a program could catch")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_the_requests_that_it_has_begun_are_answered(model_file: Path, number: signal.Signals) -> None:
    server = Server(model_file)
    with begin(server, CONTENTS[0]) as connection:
        assert server.ask("GET", "/health")[0] == 200  # it came later, so the first is accepted
        server.process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(0.5)
        connection.sendall(CONTENTS[0][-1:])
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert b'"predictions"' in answer
    assert server.end().strip() == "stopped"


def test_a_model_without_preprocessing_is_refused_at_the_start(tmp_path: Path) -> None:
    path = export(load("convnet"), tmp_path / "convnet.onnx").path
    done = subprocess.run([sys.executable, SERVE, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == f"{path} takes no pictures: export it with --preprocess."
