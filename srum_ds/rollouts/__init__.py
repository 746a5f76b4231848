"""A step's judged samples: collecting them, where they come from, and keeping them as shards."""
