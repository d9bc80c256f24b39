"""dynzoo: neural networks that are discretised dynamical systems, with guarantees, on Keras 3."""
