"""Data sets: by name, from .npz files, from folders of images."""

from dynzoo.utils.lazy import loader

__getattr__, __all__ = loader(
    __name__,
    {
        "DATASETS": "loading",
        "Dataset": "loading",
        "Split": "loading",
        "class_names": "loading",
        "load": "loading",
        "load_exact": "loading",
        "load_image_folder": "image_folder",
        "split_validation": "loading",
        "to_float": "loading",
    },
)
