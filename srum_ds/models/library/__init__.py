"""What designs share whose classes come from a library (transformers, diffusers): building, loading, export.

``meta_module`` builds a model of a library without memory, ``FolderWeights`` knows which tensor of a checkpoint folder
is which parameter, checks that every one is there, and writes the folder again; ``export_adapted`` does so with a LoRA
adapter.
"""

from srum_ds.models.library.building import fill, meta_module
from srum_ds.models.library.export import export_adapted
from srum_ds.models.library.folder import FolderWeights, Part
from srum_ds.models.library.names import library_names
from srum_ds.models.library.plain import PlainModel

__all__ = ["FolderWeights", "Part", "PlainModel", "export_adapted", "fill", "library_names", "meta_module"]
