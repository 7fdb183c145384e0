"""A process of root that the permissions of files hold for, as they do for everyone else."""

import ctypes
import os

_VERSION_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: what lets root read and write whatever the permissions say."""


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def obey_permissions() -> None:
    """Give up, in this process and its children, what lets root pass over permissions.

    Raises:
        OSError: The kernel does not let it.
    """
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(_VERSION_3, 0), (_Sets * 2)()
    for call in (libc.capget, libc.capset):
        if call(ctypes.byref(header), ctypes.byref(sets)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        sets[0].effective &= ~_OVERRIDES
        sets[0].permitted &= ~_OVERRIDES
        sets[0].inheritable &= ~_OVERRIDES
