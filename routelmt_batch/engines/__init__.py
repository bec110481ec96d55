"""Runs models: a Ray session, pools of engines in it, and processes that hold a model. It knows no stage."""
