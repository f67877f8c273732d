"""`python -m loschmidt` does the same as `loschmidt`."""

from .cli import main

if __name__ == "__main__":
    main()
