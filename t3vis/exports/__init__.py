"""Ways out: a run as tables, datasets and files that other tools load."""
