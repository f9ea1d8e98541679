"""vmlinkd: the CNI verbs, the pool of prepared ports, the sockets, the life of the process."""
