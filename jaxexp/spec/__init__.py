"""What is to be trained: trials, sweeps, and what the trials of one program have in common.

Imports `base`, but not JAX, so that describing a sweep starts at once.
"""
