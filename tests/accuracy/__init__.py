"""How often `explain` is right: known causes in, answers out, counted with intervals, beside rules that anybody has.

grid       which simulated incidents are scored, and their seeds
labelled   real executions whose cause was set
scoring    incidents through the program, each beside its truth
asking     one question through ingest and explain, and through the baselines
rawlog     a log as lines
baselines  public rules over the raw log, written without a look at the analyser
tally      what counts as right, abstained, wrong; rates with Wilson intervals
report     docs/accuracy.md
"""
