"""Regions to judge locally: proposals in normalised coordinates, their selection, pixel crops.

A proposer (``components``, ``sam``, ``ground``: one file each) finds candidates; ``boxes.select`` makes
regions of them; ``relevance`` lets the judge keep those that concern the prompt; ``pipeline`` joins them.
"""

from srum_ds.rewards.regions.boxes import no_regions, non_maximum, pairwise_iou, select, suppress
from srum_ds.rewards.regions.crops import crop, crop_pictures, pixel_range

__all__ = ["crop", "crop_pictures", "no_regions", "non_maximum", "pairwise_iou", "pixel_range", "select", "suppress"]
