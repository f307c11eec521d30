"""How fast each stage runs on this machine, and what share of the machine's own limits that is."""
