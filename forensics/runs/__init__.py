"""What looks beyond one request: a run over time, runs of the same request against each other, tokens at risk."""
