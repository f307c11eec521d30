"""Jobs in several processes of this machine, or of many."""
