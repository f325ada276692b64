"""`python -m ldm`."""

from ldm.cli.app import main

if __name__ == "__main__":
    main()
