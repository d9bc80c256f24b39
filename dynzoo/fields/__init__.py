"""Vector fields: the right-hand sides of the differential equations, one file a family."""
