"""The parity gate: an export is tested in the program it is meant for before it is put in place."""
