"""What is to be trained: trials, sweeps, and what the trials of one program have in common.

Imports `base`, and no JAX: describing a sweep starts at once.
"""
