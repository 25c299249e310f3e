"""Which trials share a compiled program, on which devices it runs, and what it costs.

Imports `spec` and what lies below it, and no JAX.
"""
