"""Tests in network namespaces of their own: frames, links, taps, and what a DEL leaves."""
