"""A drill: the same prompts at idle and under regimes of load, recorded, and how often the answer differed.

prompts → regimes → run (the engine in a process of its own, under the recorder) → pairs → rates (from the log alone).
"""
