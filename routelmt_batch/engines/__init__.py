"""Where models run: a Ray session and the pools of vLLM engines in it."""
