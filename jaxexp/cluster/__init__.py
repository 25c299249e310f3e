"""Programs of a plan on the nodes of a Ray cluster, which may come and go.

Imports `execution` and what lies below it, and Ray, which nobody else imports.
"""
