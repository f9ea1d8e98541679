"""Tests of single functions and classes. They need no root, and no links or namespaces."""
