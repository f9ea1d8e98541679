"""A lab that runs a command under another kernel: Debian's, in a VM with the machine's own files.

`python -m bench.testbed.kernel_lab VERSION COMMAND...` boots the kernel under QEMU, with the
machine's root read-only below a tmpfs, runs the command in the same directory and ends with its
exit status. `kernels` fetches a kernel, `initramfs` packs what it needs to find that root, and
`machine` boots it. The guest has no network.
"""
