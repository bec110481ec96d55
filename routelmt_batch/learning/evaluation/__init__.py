"""Evaluate: routers against each other on rows whose gain is known."""

SEVERE_LOSS_GAIN = -5.0  # a routed row with this gain or less is a severe loss (the paper's)
