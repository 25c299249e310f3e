"""Which trials share a compiled program, on which devices it runs, and what it costs.

Imports `spec` and the packages below it, but not JAX.
"""
