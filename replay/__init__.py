"""Record an engine and run it again. Standard library, torch and the engine; nothing of forensics.

This package installs into a serving image with `pip install --no-deps`.
"""

__version__ = "0.1.0"
