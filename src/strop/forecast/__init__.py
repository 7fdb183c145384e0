"""What a run will take and cost on each GPU, before any money is spent; and afterwards, how far off that was."""
