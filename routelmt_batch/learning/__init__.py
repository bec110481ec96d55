"""Label, train, evaluate, calibrate. A job uses only the router folder that they make."""
