"""A transformer layer's ops as a GPU should run them: few passes over memory, in Triton.

Between the frozen matrix products of a layer everything is bound by memory traffic. So each kernel here does in one
pass all that happens between two products: a low-rank term is added where its big output is read anyway, never in a
pass of its own; what a product reads is quantised, and multiplied by LoRA's thin matrix, in the kernel that makes it.

A thin matrix is LoRA's A transposed, (I, R), or its B, (O, R): wide by thin and contiguous, so that any run of its wide
rows is one run of memory. R is a power of two of at least 16, padded with zeros, and a projection without LoRA has a
thin matrix of zeros (`fused.lora_work`), so no kernel asks whether there is one.

Kernels compute in float32 and round where they store. Nothing uses float atomics: the same inputs give the same bits.
"""
