"""A base model's folder: found, vetted before any library opens it, and read into frozen weights."""
