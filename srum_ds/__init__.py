"""srum-ds: self-rewarding post-training of unified multimodal models on DeepSpeed."""

__version__ = "0.1.0"
