"""Other engines: what computes the steps of a recipe in place of strop's own, each in a process of its own."""
