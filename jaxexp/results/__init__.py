"""What a run leaves behind: labelled arrays, ranked and compared, and trained parameters.

Imports `execution` and what lies below it.
"""
