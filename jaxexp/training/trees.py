"""What a tree of arrays is to the type checker."""

from typing import Any, TypeAlias

# Tuples, named tuples, lists and dicts of arrays: whatever the user's own model, loss and examples
# are made of. Python has no type for it.
PyTree: TypeAlias = Any
