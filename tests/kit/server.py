"""The HTTP application without Ray: a real server and a real replica."""

from __future__ import annotations

import json
import threading
import time

import httpx
import openai
import uvicorn

from dbray.serving.http.access.tenants import Gate, new_key
from dbray.serving.http.catalogue import Catalogue
from dbray.serving.http.ingress import guarded
from dbray.serving.http.predictions import Predictions
from dbray.serving.http.service import Service
from dbray.serving.options import ServeOptions
from dbray.serving.replica.replica import Replica
from kit.serving import free_port, publish


class Server:
    """uvicorn in a thread, with three keys or, without `folder`, with open access."""

    def __init__(self, storage, tiny_base, folder=None, **options):
        self.storage, self.base = storage, tiny_base
        self.keys = {}
        file = self._write_keys(folder) if folder else None
        options = ServeOptions(registry=str(storage), base=str(tiny_base), device="cpu",
                               keys=str(file) if file else None, **options)  # fmt: skip
        self.replica = Replica(options)
        self.service = Service(options, Catalogue(str(storage), 0.0), Gate(file), self.replica)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        app = guarded(self.service, Predictions(self.replica))
        self._server = uvicorn.Server(
            uvicorn.Config(app, port=self.port, log_level="info", log_config=None)
        )
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def _write_keys(self, folder):
        lines = []
        for name, tenant, scopes in (
            ("acme", "acme", ["generate", "manage"]),
            ("zeta", "zeta", ["generate"]),
            ("boss", "*", ["generate", "manage", "watch"]),
        ):
            self.keys[name], digest = new_key()
            lines.append({"name": name, "sha256": digest, "tenant": tenant, "scopes": scopes})
        file = folder / "keys.yaml"
        file.write_text(json.dumps({"keys": lines, "images_per_minute": {"zeta": 60}}))
        return file

    def publish(self, model_id, seed=0, **fields):
        return publish(self.storage, self.base, model_id, seed, **fields)

    def close(self):
        self._server.should_exit = True
        self._thread.join()
        self.replica.close()

    def openai(self, name="acme", **options):
        key = self.keys.get(name, name)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)

    def http(self, name="acme"):
        headers = {"authorization": f"Bearer {self.keys[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)
