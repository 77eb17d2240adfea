"""Scale-invariant vision transformers: an executable paper, and the library that falls out of it."""

__version__ = "0.1.0"

import importlib

# The stable names of the package and the module each lives in; a module is imported when its first name is used.
_PUBLIC = {
    "create_model": "vit", "list_models": "vit", "ViT": "vit", "ViTConfig": "vit",
    "list_positions": "vit", "list_mergers": "vit",
    "create_position": "position", "Position": "position", "FuzzyPositionalEncoding": "position",
    "create_merger": "merge", "Merger": "merge", "AdaptiveTokenMerger": "merge",
    "create_dataset": "data", "list_datasets": "data", "create_loader": "data",
    "draw_scenes": "scenes",
    "SegmentationModel": "segment", "Detector": "detect", "MaskedAutoencoder": "mae",
    "from_timm": "interop", "from_torchvision": "interop",
    "load_subject": "subject", "report_card": "evaluate",
}  # fmt: skip

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"sivit.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'sivit' has no attribute {name!r}; public names: {', '.join(_PUBLIC)}")


def __dir__():
    return sorted({*globals(), *_PUBLIC})
