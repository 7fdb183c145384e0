"""Unsloth as the engine: TRL's trainer computes a recipe's steps, in a process of its own."""
