"""From samples and an adapter to a trained adapter."""
