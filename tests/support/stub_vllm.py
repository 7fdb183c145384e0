"""Stands for vLLM's server in a container: reads its options, checks that the files are there, and answers /health."""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("command", choices=["serve"])
parser.add_argument("model")
parser.add_argument("--enable-lora", action="store_true", required=True)
parser.add_argument("--enable-auto-tool-choice", action="store_true")
parser.add_argument("--exclude-tools-when-tool-choice-none", action="store_true")
parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
parser.add_argument("--chat-template-content-format", choices=["auto", "string", "openai"])
for name in ("tensor-parallel-size", "max-model-len", "port"):
    parser.add_argument(f"--{name}", type=int, required=True)
for name in ("tokenizer", "served-model-name", "lora-modules", "chat-template", "generation-config", "host"):
    parser.add_argument(f"--{name}", required=True)
for name in ("revision", "quantization", "tool-call-parser", "reasoning-parser"):
    parser.add_argument(f"--{name}")
options = parser.parse_args()
name, _, adapter = options.lora_modules.partition("=")
for path in (f"{options.model}/model.safetensors", f"{adapter}/adapter_model.safetensors", options.chat_template):
    assert Path(path).is_file(), path


class Handler(BaseHTTPRequestHandler):
    """What the tests ask."""

    def do_GET(self) -> None:
        models = {"data": [{"id": options.served_model_name}, {"id": name}]}
        body = json.dumps(models if self.path == "/v1/models" else vars(options)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
