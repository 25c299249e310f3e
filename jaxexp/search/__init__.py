"""Searches over hyperparameters.

Imports jaxexp.api and what it imports; nothing but the command line imports it.
"""
