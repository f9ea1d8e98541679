"""Configuration: a network's, as CNI passes it, and vmlinkd's own. Pure."""
