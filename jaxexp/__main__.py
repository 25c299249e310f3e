"""`python -m jaxexp` is the command line."""

from jaxexp.cli.main import main

if __name__ == "__main__":  # processes that it starts may import it
    main()
