"""The map of a model: start `python -m replay.plan_map`, and show which launches give the same bits."""
