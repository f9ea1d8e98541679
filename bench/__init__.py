"""Demo and benchmarks of vmlink, and the test bed that they share with the tests.

    results      samples: what a benchmark measured
    testbed      nodes, switches, guests, traffic, and the check for leftovers
    contenders   what is measured: vmlink, other CNI plugins, ovs-vsctl, datapaths, the kernel alone
    suites       the benchmarks: which contender is measured when, and how
    report       statistics, tables, plots, the page, the comparison of two runs
    progress     the progress bar
    demo         ./run demo
    runner       runs the tasks of the suites
    run          ./run bench

Each imports only what stands above it; pyproject.toml has the contract for import-linter.
"""
