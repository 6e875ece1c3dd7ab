"""``python -m ebmppl``: the command line."""

from ebmppl.cli import main

if __name__ == "__main__":
    main()
