"""Learning: label, train, evaluate, calibrate. It meets serving only in a router folder."""
