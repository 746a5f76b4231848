"""Prompt sets as shards: writing, importing public ones, and reading them in an order without state."""
