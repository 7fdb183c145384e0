"""Stands for strop in a container where the test is about what surrounds it: `train RECIPE`, in milliseconds.

What it does is in the recipe's name: exit-N ends with that code, small-on-GPU with 6 on that GPU, slow waits for a
signal and ends with 75 the first time.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

recipe: dict[str, Any] = yaml.safe_load(Path(sys.argv[2]).read_text(encoding="utf-8"))
run, name, gpu = Path(recipe["train"]["output_dir"]), recipe["name"], os.environ["STROP_MODAL_GPU"]
for spec in (recipe["model"]["model_name_or_path"], *recipe["data"]["train_file"]):
    assert Path(spec).exists(), spec
assert abs(time.time() - float(os.environ["STROP_ATTEMPT_STARTED"])) < 100
print(f"training on {gpu}, HF_TOKEN {'is set' if 'HF_TOKEN' in os.environ else 'is not set'}", flush=True)

run.mkdir(exist_ok=True)
(run / "run.json").write_text(json.dumps({"status": "running"}), encoding="utf-8")
(run / "recipe.yaml").write_text(Path(sys.argv[2]).read_text(encoding="utf-8"), encoding="utf-8")
if name.startswith("exit-") and (code := int(name.removeprefix("exit-"))):
    sys.exit(code)
if name == f"small-on-{gpu}":
    sys.exit(6)
if name.startswith("slow"):
    signal.signal(signal.SIGTERM, lambda *_: ((run / "saved").touch(), sys.exit(75)))
    for second in range(600):
        if (run / "go-on").exists():
            break
        print(f"second {second}", flush=True)
        time.sleep(0.1)
(run / "adapter").mkdir(exist_ok=True)
(run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
(run / "run.json").write_text(json.dumps({"status": "finished", "progress": {"step": 1, "seconds": 1}}))
