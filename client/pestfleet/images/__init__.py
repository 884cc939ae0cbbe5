"""Container images: our own (worker, master, tunnel), and those of cases."""
