"""Arguments, files, formats and Ctrl-C: what everything stands on. Imports nothing of the house."""
