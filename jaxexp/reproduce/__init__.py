"""The published report: its data, its networks' inputs, its questions and tables.

A client of the library: it imports the public names of `jaxexp` and its own modules, nothing else.
"""
