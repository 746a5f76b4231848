"""What makes the embedded tiny model again from a seed: its VAE and its supervised examples."""
