"""The benchmarks: `attach` measures CNI calls, `datapath` measures traffic.

A suite is a module with `tasks(options, results, stack)`: the tasks to run, in order and in one
thread, which fill `results`; closing `stack` removes what they made.
"""
