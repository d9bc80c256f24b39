"""Training: recipes, runs that can be resumed, fine-tuning, distribution."""

from dynzoo.utils.lazy import loader

__getattr__, __all__ = loader(
    __name__,
    {
        "RecipeError": "recipes",
        "TrainingDivergedError": "loop",
        "build_model": "loop",
        "finetune": "finetuning",
        "train": "loop",
    },
)
