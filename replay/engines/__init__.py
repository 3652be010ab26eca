"""A file is an engine: how to record it, and how to run it again. Torch and the engine are imported here only."""
