"""Search over options with Ray Tune: spaces, samples, trials, the table and the winner's settings.

A search is files first: ``search/plan/`` says what each trial is, each trial's folder how far it
came. Ray Tune only decides what runs now and what ends early, so a search that was killed anywhere
goes on from the files.
"""

# Raised by whoever changes what a search makes of the same shards and options.
VERSION = 1
