"""Runs on Modal."""
