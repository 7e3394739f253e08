"""The verbs of the command line; ``cli.py`` chooses among them."""
