"""Many jobs on one machine: a process each, a ledger of what is done, a search that chooses the next ones."""
