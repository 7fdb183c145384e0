"""What the commands print, a module for each part of a run's life, as in `strop.cli` and `strop.api`."""
