"""The steps that modes are made of: one file for each resource."""
