"""How a model is asked: images, labels, batches, draws, and whether answers depend on company."""
