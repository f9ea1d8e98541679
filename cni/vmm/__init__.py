"""A guest's NIC for its VMM: description, descriptors, hot plug, and every VMM's format."""
