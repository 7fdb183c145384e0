"""Experiment trackers: one file for each, opened and fed by `feed.py`, which keeps them from harming a run."""
