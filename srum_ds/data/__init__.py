"""Prompt shards: written as webdataset tars with an index, read by offset in a stateless order."""
