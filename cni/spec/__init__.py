"""The CNI contract: requests, results, and the protocol between vmlink and vmlinkd. Pure."""
