"""Label, train, evaluate, calibrate. It meets serving in a router folder alone."""
