"""Where models run: a Ray session, pools of engines in it, processes that hold a model. It knows no stage."""
