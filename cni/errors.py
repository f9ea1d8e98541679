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
│   └── ClientGone                   11  the caller hung up, so the work was undone
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
    """Base of the tree. `msg` is one line for people; `details` may say more."""

    code = 100

    def __init__(self, msg: str, details: str = "", *, code: int | None = None) -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details
        if code is not None:
            self.code = code


class IncompatibleVersion(VmlinkError):
    code = 1


class UnsupportedField(VmlinkError):
    code = 2


class UnknownContainer(VmlinkError):
    code = 3


class BadEnvironment(VmlinkError):
    code = 4


class IOFailure(VmlinkError):
    code = 5


class CannotDecode(VmlinkError):
    code = 6


class BadConfig(VmlinkError):
    code = 7


class TryAgain(VmlinkError):
    code = 11


class DeadlineExceeded(TryAgain):
    pass


class ClientGone(TryAgain):
    pass


class NotReady(VmlinkError):
    code = 50


class AttachmentExists(VmlinkError):
    code = 101


class KernelRefused(VmlinkError):
    code = 102


class IpamFailed(VmlinkError):
    code = 103


class CheckFailed(VmlinkError):
    code = 104


class SwitchRefused(VmlinkError):
    code = 105


class BadDevice(VmlinkError):
    pass


class VmmRefused(VmlinkError):
    pass
