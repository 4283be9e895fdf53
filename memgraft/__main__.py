"""`python -m memgraft`: the command line."""

from memgraft.cli import main

if __name__ == "__main__":
    main()
