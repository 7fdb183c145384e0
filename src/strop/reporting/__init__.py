"""A run, or several, as one HTML page that needs nothing else: no network, no other file, no trust in the data."""
