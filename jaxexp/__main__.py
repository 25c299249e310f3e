"""`python -m jaxexp` is the command line."""

from jaxexp.cli import main

main()
