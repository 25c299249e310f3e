"""Networks in Flax, and torchvision's weights for them.

Imports `training` and what lies below it.
"""
