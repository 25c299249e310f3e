"""What every other folder may use: errors, files that appear whole or not at all, digests, memory.

Imports nothing else of jaxexp, and no JAX.
"""
