"""Where demo, benchmarks and tests run: nodes, switches, guests, and a check for leftovers."""
