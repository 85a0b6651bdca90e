"""A server that answers the kaggle command line as Kaggle does."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

METADATA = {
    "id": "me/arc-ttt-kernel",
    "title": "ARC TTT kernel",
    "code_file": "kernel.py",
    "language": "python",
    "kernel_type": "script",
    "is_private": True,
    "enable_gpu": True,
    "enable_tpu": False,
    "enable_internet": False,
    "machine_shape": "NvidiaTeslaT4",
    "keywords": [],
    "dataset_sources": ["me/arc-ttt-wheels"],
    "competition_sources": ["arc-prize-2026-arc-agi-2"],
    "kernel_sources": [],
    "model_sources": ["me/llama-arc/transformers/4bit/1"],
    "docker_image_pinning_type": "original",
}


CODE = 'print("hello")\n'


class FakeKaggle(ThreadingHTTPServer):
    """Answers by service and method; keeps every request. `answers` change single ones: (status, body)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.uploads: list[bytes] = []
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self.versions = 0
        self.absent = 404, {"code": 404, "message": "Not Found"}  # answer for a dataset that is not there
        self.unseen = 0  # so many questions after its creation are answered alike
        self.saved: dict[str, Any] = {}
        self.states = {"v3": "COMPLETE"}  # of the kernel's versions, the newest last

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self, method: str) -> list[Any]:
        return [body for name, body in self.requests if name == method]

    def answer(self, method: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if method in self.answers:
            return self.answers[method]
        if method == "GetDatasetStatus":
            self.unseen -= bool(self.versions)
            return (200, {"status": "READY"}) if self.versions and self.unseen < 0 else self.absent
        if method == "GetDataset":
            return 200, {"ref": "me/arc-ttt-wheels", "currentVersionNumber": self.versions}
        if method == "StartBlobUpload":
            return 200, {"token": f"token-{body['name']}", "createUrl": f"{self.url}/upload"}
        if method in ("CreateDataset", "CreateDatasetVersion"):
            self.versions += 1
            return 200, {"status": "ok", "url": "https://www.kaggle.com/datasets/me/arc-ttt-wheels"}
        if method == "SaveKernel":
            self.saved = body
            return 200, {"ref": "/code/me/arc-ttt-kernel", "url": "https://kaggle", "versionNumber": 3, "kernelId": 11}
        if method == "GetKernel":
            return 200, {"metadata": {"ref": METADATA["id"], "id": 11, **self.saved}, "blob": blob(self.saved)}
        if method == "GetKernelSessionStatus":
            asked = body.get("versionLabel", [*self.states][-1])
            return (200, {"status": self.states[asked]}) if asked in self.states else self.absent
        if method == "CreateCodeSubmission":
            return 200, {"message": "Successfully submitted", "ref": 5}
        return 200, {}


def blob(saved: dict[str, Any]) -> dict[str, Any]:
    return {"source": saved.get("text", ""), "language": "python", "kernelType": "script", "slug": "arc-ttt-kernel"}


class _Handler(BaseHTTPRequestHandler):
    server: FakeKaggle
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path.endswith("/upload"):
            self.server.uploads.append(content)
            status, body = 200, {}
        else:
            method = self.path.split("?")[0].rsplit("/", 1)[1]
            sent = json.loads(content) if content else {}
            self.server.requests.append((method, sent))
            status, body = self.server.answer(method, sent)
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have no use for a log."""
