"""Pictures and tables made from finished runs."""
