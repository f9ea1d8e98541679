"""Where demo, benchmarks and tests run: nodes, switches, guests, and what they leave behind."""
