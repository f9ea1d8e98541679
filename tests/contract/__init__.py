"""Black-box tests of the CNI contract: the client and vmlinkd, seen from outside."""
