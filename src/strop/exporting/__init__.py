"""What leaves a run: the adapter, as other tools read it."""
