"""A small HTTP service around an exported model: it needs onnxruntime, numpy and Pillow, and no torch.

cifarnets export convnet convnet.onnx --preprocess
python examples/serve.py convnet.onnx --port 8000

curl http://127.0.0.1:8000/health
curl --data-binary @cat.png -H 'Content-Type: image/png' 'http://127.0.0.1:8000/predict?topk=3'
curl -d '{"images": ["BASE64", "BASE64"]}' -H 'Content-Type: application/json' http://127.0.0.1:8000/predict

Ctrl-C or SIGTERM ends it, once the requests that it has begun are answered. It listens on this machine alone; put a web
server with TLS before it for others.
"""

import argparse
import base64
import binascii
import io
import json
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS = 20_000_000  # of one picture: a few bytes may claim to be a huge one


class RefusedError(Exception):
    """A request that is answered with an error: its status, and a sentence for the caller."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Classifier:
    """An exported model with its preprocessing inside; several threads may call it."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        facts = self.session.get_modelmeta().custom_metadata_map
        if facts.get("input") != "uint8":
            raise SystemExit(f"{path} takes no pictures: export it with --preprocess.")
        shape = self.session.get_inputs()[0].shape
        self.channels_last = facts["layout"] == "nhwc"
        self.mode = {1: "L", 3: "RGB"}[shape[3] if self.channels_last else shape[1]]
        self.height, self.width = json.loads(facts["size"])
        outputs = self.session.get_outputs()[0].shape[1]
        self.classes = json.loads(facts.get("classes", "[]")) or [str(number) for number in range(outputs)]

    def read(self, content: bytes) -> Any:
        """One picture as uint8 `[H, W, C]`, made as `cifarnets.predict` makes it."""
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"{picture.width} × {picture.height} pixels are too many")
            upright = ImageOps.exif_transpose(picture).convert(self.mode)
            small = upright.resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(small).reshape(self.height, self.width, -1)

    def predict(self, pictures: list[Any], topk: int) -> list[list[dict[str, Any]]]:
        """The likeliest classes of each picture."""
        batch = np.stack(pictures)
        inputs = batch if self.channels_last else np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        (probabilities,) = self.session.run(None, {"images": inputs})
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :topk]
        return [
            [{"class": self.classes[index], "probability": round(float(row[index]), 6)} for index in top]
            for row, top in zip(probabilities, best, strict=True)
        ]


class Service(ThreadingHTTPServer):
    """A server that finishes the requests that it has begun."""

    daemon_threads = False

    def __init__(self, classifier: Classifier, options: argparse.Namespace) -> None:
        super().__init__((options.host, options.port), Handler)
        self.classifier = classifier
        self.options = options
        self.free = threading.BoundedSemaphore(options.max_requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless the client has hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Service
    server_version = "cifarnets-example"
    timeout = 10  # seconds that a client may be silent

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        path = urlsplit(self.path).path
        routes = {"/health": ("GET", self._health), "/predict": ("POST", self._predict)}
        try:
            if path not in routes:
                raise RefusedError(
                    HTTPStatus.NOT_FOUND, f"there is nothing at {path[:100]!r}: use /health or /predict."
                )
            allowed, route = routes[path]
            if method != allowed:
                raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {allowed} only.")
            self._send(HTTPStatus.OK, route())
        except RefusedError as error:
            self._send(error.status, {"error": str(error)})
            self._drain()
        except TimeoutError:
            self._send(HTTPStatus.REQUEST_TIMEOUT, {"error": f"nothing came for {self.timeout} seconds."})

    def _health(self) -> dict[str, Any]:
        return {"status": "ok", "classes": self.server.classifier.classes}

    def _predict(self) -> dict[str, Any]:
        if not self.server.free.acquire(blocking=False):
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests at a time: try again in a second.")
        try:
            topk = self._topk()
            found = self._pictures(self._body())
            return {"predictions": self.server.classifier.predict(found, topk)}
        finally:
            self.server.free.release()

    def _topk(self) -> int:
        given = parse_qs(urlsplit(self.path).query).get("topk", ["1"])[-1]
        most = len(self.server.classifier.classes)
        if not (given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= most):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"topk must be a whole number between 1 and {most}.")
        return int(given)

    def _body(self) -> bytes:
        length, most = self.headers.get("Content-Length", ""), self.server.options.max_body
        if not (length.isascii() and length.isdigit()):
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "say how long the body is, with the header Content-Length.")
        if int(length[:20]) > most:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {most:,} bytes.")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body ended after {len(body):,} of {int(length):,} bytes.")
        return body

    def _pictures(self, body: bytes) -> list[Any]:
        kind = self.headers.get_content_type()
        if kind.startswith("image/"):
            contents = [body]
        elif kind == "application/json":
            contents = self._decoded(body)
        else:
            message = "send a picture (Content-Type: image/…), or application/json with a list of them."
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
        found = []
        for number, content in enumerate(contents, 1):
            try:
                found.append(self.server.classifier.read(content))
            except Exception as error:  # each decoder has its own ways to fail
                message = f"picture {number} cannot be read ({type(error).__name__}): send {', '.join(FORMATS)}."
                raise RefusedError(HTTPStatus.BAD_REQUEST, message) from error
        return found

    def _decoded(self, body: bytes) -> list[bytes]:
        most = self.server.options.max_pictures
        try:
            images = json.loads(body)["images"]
            if not isinstance(images, list) or not images:
                raise ValueError("no list")
            if len(images) > most:
                raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request may have {most} pictures.")
            return [base64.b64decode(image, validate=True) for image in images]
        except (ValueError, TypeError, KeyError, RecursionError, binascii.Error) as error:
            message = 'the body must be JSON of the form {"images": ["BASE64", …]}.'
            raise RefusedError(HTTPStatus.BAD_REQUEST, message) from error

    def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    def _drain(self) -> None:
        """Read a little of what the client still sends: it would not see the answer in a connection that breaks."""
        self.connection.settimeout(0.2)
        try:
            for _ in range(64):
                if not self.rfile.read1(65536):
                    return
        except OSError:
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what `cifarnets export MODEL FILE --preprocess` wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--max-body", type=int, default=16_000_000, help="bytes of a request (default: 16,000,000)")
    parser.add_argument("--max-pictures", type=int, default=64, help="pictures of a request (default: 64)")
    parser.add_argument("--max-requests", type=int, default=8, help="requests at a time (default: 8)")
    service = Service(Classifier(parser.parse_args().model), parser.parse_args())

    def stop(*_: object) -> None:
        threading.Thread(target=service.shutdown).start()  # which waits for the loop that this signal interrupts

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    host, port = service.server_address[:2]
    print(f"listening on http://{host!s}:{port}", flush=True)
    service.serve_forever(poll_interval=0.1)
    service.server_close()  # waits for the requests that have begun
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
