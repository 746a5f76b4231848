"""Where to look: region proposals in normalised coordinates, their selection, pixel crops.

A proposer (``components``, ``sam``, ``ground``: one file each) finds candidates; ``boxes.select`` makes
regions of them; ``relevance`` lets the judge keep those that concern the prompt; ``finder`` joins them.
"""

from srum_ds.rewards.regions.boxes import no_regions, non_maximum, pairwise_iou, select, suppress
from srum_ds.rewards.regions.crops import crop, crop_pictures
from srum_ds.rewards.regions.propose import REGION_KINDS, propose

__all__ = [
    "REGION_KINDS",
    "crop",
    "crop_pictures",
    "no_regions",
    "non_maximum",
    "pairwise_iou",
    "propose",
    "select",
    "suppress",
]
