"""One run on disk: its folder, checkpoints and metrics, and what a person sees of it."""
