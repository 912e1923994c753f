"""What a run found, as one self-contained page and as a table for the terminal.

Everything here is read from the run folder; nothing is computed with a model.
"""
