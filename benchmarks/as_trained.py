"""A model compiled with the optimizer and the loss of its recipe: what the benchmarks time."""

from dynzoo.training import builders
from dynzoo.training.epoch_values import at_epoch


def compile_as_trained(model, recipe, jit):
    """At rates that change little: it is the time of a step that is asked for."""
    settings = recipe["training"]
    optimizer = dict(settings["optimizer"], learning_rate=1e-3)
    if "adam_learning_rate" in optimizer:
        optimizer["adam_learning_rate"] = 1e-3
    model.compile(
        optimizer=builders.make_optimizer(optimizer, 10_000, {"warmup": 0.0}),
        loss=builders.make_loss(at_epoch(settings["loss"], 0)),
        jit_compile=jit,
    )
