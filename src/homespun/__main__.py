"""`python -m homespun` is the command `homespun`."""

from homespun.cli.main import main

if __name__ == "__main__":
    main()
