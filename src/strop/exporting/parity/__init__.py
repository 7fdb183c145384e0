"""The parity gate: an export is tried out in the program that it is for, before it is put in place."""
