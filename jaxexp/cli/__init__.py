"""The command line: commands, run directories, signals.

Imports everything below it, and of `reproduce` which sweeps make up the report.
"""
