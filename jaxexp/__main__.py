"""`python -m jaxexp` is the command line."""

from jaxexp.cli.main import main

main()
