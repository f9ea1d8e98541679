"""The guest's NIC for a VMM: its description, its descriptors, hot plug, and the formats."""
