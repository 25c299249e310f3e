"""What all other folders may use: errors, files written whole or not at all, digests, memory.

Imports nothing else from jaxexp, and not JAX.
"""
