"""The numbers of this program, measured side by side in one run: `python -m bench`."""
