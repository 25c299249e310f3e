"""Runs a plan: compiles its programs, drives them call by call, and saves checkpoints.

Imports `planning`, `training` and what lies below them: it knows tasks, but no network.
"""
