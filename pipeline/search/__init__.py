"""Search over options with Ray Tune: spaces, candidates, trials, the table, the best settings.

The files are the truth: ``search/plan/`` says what each trial is, each trial's folder how far it
came. Ray Tune only decides what runs now and what ends early, so a search that was killed anywhere
goes on from the files.
"""

# Raised by whoever changes what a search makes of the same shards and options.
VERSION = 1
