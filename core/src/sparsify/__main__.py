"""Run the command line as `python -m sparsify`."""

from sparsify.cli.app import main

if __name__ == "__main__":
    main()
