"""What is measured side by side.

`plugins`, `ovs_vsctl`, `peers` and `kernel_alone` attach pods; `datapaths` carry traffic.
"""
