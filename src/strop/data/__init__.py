"""Rows of files -> tokenised samples -> packed microbatches."""
