"""A first rendering of an untrusted chat template, in a child process with limits on its time and memory."""

import hashlib
import json
import subprocess
import sys
from typing import Any

from strop.errors import ModelError
from strop.resolve import cache_dir, writing_to_cache

_PROBE_SECONDS = 60
_PROBE_CODE = """
import json, sys
from contextlib import suppress
from transformers.utils.chat_template_utils import render_jinja_template
source, values, chats = json.load(sys.stdin)
with suppress(ImportError, ValueError, OSError):
    import resource, time
    seconds = int(time.process_time()) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
for chat in chats:
    for prompt in (False, True):
        try:
            text = render_jinja_template([chat], chat_template=source, add_generation_prompt=prompt, **values)
        except MemoryError:
            sys.exit(3)
        except Exception:
            pass
"""


def try_in_child(source: str, special_tokens: dict[str, Any]) -> None:
    """Render a few conversations, once per template on this machine.

    Args:
        source: The Jinja template.
        special_tokens: The tokenizer's, which templates write.

    Raises:
        ModelError: It does not finish, or takes too much memory.
    """
    marker = cache_dir() / "templates" / hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()
    if marker.exists():
        return
    roles = [["user"], ["user", "assistant"], ["system", "user", "assistant", "user", "assistant"]]
    chats = [[{"role": role, "content": f"{role} text"} for role in turns] for turns in roles]
    values = {key: value for key, value in special_tokens.items() if isinstance(value, str)}
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE_CODE],
            input=json.dumps([source, values, chats]),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the chat template did not finish within {_PROBE_SECONDS} s, so it is not used") from error
    if child.returncode == 3 or child.returncode < 0:
        raise ModelError("the chat template used more than 10 s or 4 GiB for a short conversation, so it is not used")
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"the chat template could not be tried: {last}")
    with writing_to_cache():
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
