"""``python -m mm_autofocus``: the command line, in a form that ``torchrun -m`` can start."""

from mm_autofocus.cli import main

if __name__ == "__main__":
    main()
