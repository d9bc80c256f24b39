"""Data sets: by name, from .npz files, from folders of images or of shards."""

from dynzoo.utils.lazy import loader

__getattr__, __all__ = loader(
    __name__,
    {
        "DATASETS": "datasets",
        "Dataset": "datasets",
        "Split": "datasets",
        "class_names": "datasets",
        "load": "datasets",
        "load_exact": "datasets",
        "load_shards": "sharded_images",
        "load_image_folder": "image_folder",
        "split_validation": "datasets",
        "to_float": "datasets",
        "write_shards": "sharded_images",
    },
)
