"""Run the command line from a checkout: `python cli.py --help`."""

from jobrunner.cli.main import main

if __name__ == "__main__":
    main()
