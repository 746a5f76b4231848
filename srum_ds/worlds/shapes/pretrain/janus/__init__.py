"""What makes the embedded tiny Janus again from a seed: its codes, its examples, its training, its files."""
