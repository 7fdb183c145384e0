"""A checkpoint folder -> a frozen decoder with LoRA on it."""
