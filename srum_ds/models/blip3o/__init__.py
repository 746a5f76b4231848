"""BLIP3-o (arXiv 2505.09568): a frozen Qwen2.5-VL whose hidden states condition a transformer of CLIP features."""
