"""A row's keys and values -> an example: which column is which, turns, calls of tools, and what is to be learned."""
