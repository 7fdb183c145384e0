"""Data files -> rows -> tokenised samples, cached on disk."""
