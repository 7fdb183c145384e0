"""What a run will take and cost on each GPU, before any money is spent; and afterwards, how wrong that was."""
