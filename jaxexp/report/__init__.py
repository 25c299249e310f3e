"""Figures and pages, drawn from results alone.

Imports `results` and what lies below it.
"""
