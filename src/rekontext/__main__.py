"""`python -m rekontext` is the `rekontext` command."""

from rekontext.cli import main

if __name__ == "__main__":
    main()
