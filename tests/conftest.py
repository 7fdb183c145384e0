"""Settings that hold for every test."""

import os
import signal
from importlib.util import find_spec

import hypothesis
import torch

if not torch.cuda.is_available():
    # Triton's own helpers become interpreted or compiled ones when it is first imported, which peft may do.
    os.environ["TRITON_INTERPRET"] = "1"
    if find_spec("triton"):  # it has builds for Linux only
        import fast_interpreter

        fast_interpreter.install()

# Two test processes share two cores whose speed varies fourfold; a deadline would measure the machine.
hypothesis.settings.register_profile("strop", deadline=None)
hypothesis.settings.load_profile("strop")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
