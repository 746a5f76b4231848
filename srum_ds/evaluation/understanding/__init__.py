"""What a model understands of given pictures, before and after training: questions with answers to choose from."""

from srum_ds.evaluation.understanding.items import Item, ItemSet

__all__ = ["Item", "ItemSet"]
