"""PEST control files, read as plain data (`model`) by `reader`."""
