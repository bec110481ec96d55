"""Train: a router from label tables."""
