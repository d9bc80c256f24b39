"""What rounding may do to the logits: a rule a layer, and their sum over the graph."""
