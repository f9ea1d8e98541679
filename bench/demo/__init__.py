"""./run demo: a guest behind every mode."""
