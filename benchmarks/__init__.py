"""Measurements and broken runs; each module is a command that prints a table.

Speed and memory, ours beside the reference or the plain form in one run:
    inference (separation), training_step (one step), training (through Ray), loader (windows),
    preprocess, scoring (BSS Eval), fanout (tasks), search (early stopping), scaling (many GPUs),
    peers (other networks), gpu (everything about one GPU)

Faults, each run compared with an undisturbed one:
    kills (train, preprocess, search), damage (shards), reliability (hosts),
    elastic_hosts (hosts that come and go), search_places, scaling_hosts

What the networks learn: learning. Whether every kind of network can be exported: exports.
"""
