"""`python -m host` is the command `jackfield`."""

from host.cli import main

if __name__ == "__main__":
    main()
