"""Files and web pages as a `Document`: `worker.read_file` and `addresses.read_address` are the ways in."""
