"""An attachment: the plan that makes it, what its steps share, its record and its lock."""
