"""Every error that vmlink raises on purpose, each with its CNI code.

VmlinkError                         100
├── IncompatibleVersion               1  cniVersion that is not served
├── UnsupportedField                  2  a field of the network config, key and value in the message
├── UnknownContainer                  3  tells the runtime that no clean-up is needed
├── BadEnvironment                    4  CNI_* missing or malformed, names in the message
├── IOFailure                         5  stdin, state or store cannot be read or written
├── CannotDecode                      6  stdin is not the JSON that was expected
├── BadConfig                         7  a value of the network config; key, remedy in the message
├── TryAgain                         11  a passing condition; the same call may succeed later
│   ├── DeadlineExceeded             11  the request took longer than its deadline
│   └── ClientGone                   11  the caller hung up before it had its answer
├── NotReady                         50  STATUS: ADD cannot succeed here now
├── AttachmentExists                101  ADD of an attachment or an interface name that is there
├── KernelRefused                   102  a kernel request failed; errno and what was asked
├── IpamFailed                      103  the delegated plugin failed without a CNI error of its own
├── CheckFailed                     104  CHECK found a difference; what, expected, found
├── SwitchRefused                   105  ovsdb-server or ovs-vswitchd refused; their reason
├── BadDevice                       100  a VMM or guest cannot have this NIC; why, and what can
└── VmmRefused                      100  a VMM refused or did not answer; its reason

Codes 1 to 99 are those of the CNI specification, section "Error".
"""

from __future__ import annotations


class VmlinkError(Exception):
    """An error that is meant for the user, with the code that CNI's error object carries.

    `msg` is one line: it begins with what is wrong and ends with what to do. `details` may be
    longer, as the end of a plugin's stderr. `code` overrides the class's, where an IPAM plugin has
    its own.
    """

    code = 100

    def __init__(self, msg: str, details: str = "", *, code: int | None = None) -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details
        if code is not None:
            self.code = code


class IncompatibleVersion(VmlinkError):
    """The configuration's cniVersion is not served, or does not have the verb (code 1)."""

    code = 1


class UnsupportedField(VmlinkError):
    """The network configuration has a key that nobody knows (code 2)."""

    code = 2


class UnknownContainer(VmlinkError):
    """The container does not exist; the runtime need not clean up (code 3)."""

    code = 3


class BadEnvironment(VmlinkError):
    """A CNI_* variable is missing or malformed (code 4)."""

    code = 4


class IOFailure(VmlinkError):
    """A file, a socket or stdin cannot be read or written (code 5)."""

    code = 5


class CannotDecode(VmlinkError):
    """What should be JSON, or a frame of the client's protocol, is not (code 6)."""

    code = 6


class BadConfig(VmlinkError):
    """A value of a configuration is wrong; the message begins with its key (code 7)."""

    code = 7


class TryAgain(VmlinkError):
    """A passing condition: the same call may succeed later (code 11)."""

    code = 11


class DeadlineExceeded(TryAgain):
    """The work took longer than its deadline (code 11)."""


class ClientGone(TryAgain):
    """The caller hung up before it had its answer (code 11)."""


class NotReady(VmlinkError):
    """An ADD cannot succeed on this node as it is now (code 50 of STATUS)."""

    code = 50


class CutOff(NotReady):
    """An ADD cannot succeed, and pods that are attached have no or little traffic (code 51)."""

    code = 51


class AttachmentExists(VmlinkError):
    """The attachment, its address or its interface's name is there already (code 101)."""

    code = 101


class KernelRefused(VmlinkError):
    """The kernel refused a request; see `cni.kernel.netlink.NetlinkError` (code 102)."""

    code = 102


class IpamFailed(VmlinkError):
    """No address: the pool is used up, or the IPAM plugin failed (code 103 or the plugin's)."""

    code = 103


class CheckFailed(VmlinkError):
    """CHECK found a difference: what, what was expected, what is there (code 104)."""

    code = 104


class SwitchRefused(VmlinkError):
    """Open vSwitch refused a change, for the reason in the message (code 105)."""

    code = 105


class BadDevice(VmlinkError):
    """A VMM or guest cannot have this NIC; the message says why, and what can (code 100)."""


class VmmRefused(VmlinkError):
    """A VMM refused a NIC or did not answer (code 100)."""


def refuses_configuration(error: VmlinkError) -> bool:
    """Tell whether this is about what was asked for, so that an ADD is refused for it as well."""
    return error.code in (1, 2, 4, 6, 7)
