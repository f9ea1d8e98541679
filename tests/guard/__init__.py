"""Tests of the guard: its program against a model of its rules, and on the wire."""
