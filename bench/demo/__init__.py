"""./run demo: a guest behind every mode, or on two nodes of an OVN."""
