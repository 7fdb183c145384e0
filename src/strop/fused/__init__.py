"""The decoder as a GPU trains it: fused layers over one block of inputs, replayed as CUDA graphs."""
