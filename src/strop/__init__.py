"""strop: fine-tune a language model on your own rows with LoRA."""

__version__ = "0.1.0"
