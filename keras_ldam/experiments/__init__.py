"""The experiments: datasets, networks, training runs, and the tables of the paper."""
