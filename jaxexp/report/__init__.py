"""Figures and pages, drawn only from results.

Imports `results` and what lies below it.
"""
