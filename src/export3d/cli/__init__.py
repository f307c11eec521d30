"""The command line: thin doors that parse, call one library verb and report failures as sentences."""
