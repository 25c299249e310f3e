"""Training one trial, as pure functions of the trial and the data; their `vmap` is a batch.

Imports `spec` and what lies below it. Nothing here knows of grids, devices, files or progress.
"""
