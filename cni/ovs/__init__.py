"""Open vSwitch: one lasting connection to its database, and the rows that are ours in it."""
