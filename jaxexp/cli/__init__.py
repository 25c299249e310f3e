"""The command line: commands, run directories, signals.

Imports everything but `reproduce`, which it finds as any user's code is found: through sweep files.
"""
