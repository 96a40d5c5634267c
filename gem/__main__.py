"""``python -m gem``: the command line."""

from gem.cli import main

if __name__ == "__main__":
    main()
