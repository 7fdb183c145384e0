"""Several ranks, one run: each is a process with its own GPU, started by torchrun or by what sets the same."""
