"""Tests of what vmlinkd does with the Kubernetes API server."""
