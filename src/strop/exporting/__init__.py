"""Exports of a run for other programs: adapter, merged checkpoint and GGUF file, each tested in its consumer."""
