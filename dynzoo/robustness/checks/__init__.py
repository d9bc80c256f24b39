"""Checks of a model, of attacks and of their outcomes; each gives warnings with a name."""
