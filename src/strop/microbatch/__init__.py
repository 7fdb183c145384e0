"""Samples -> what one forward reads: their order, the tree of their prefixes, and the packed microbatches."""
