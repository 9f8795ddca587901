"""``make bench``: the figures in the README, measured on this machine."""

from __future__ import annotations

import platform

import record
import session
import sqlalchemy

if __name__ == "__main__":
    print(f"Python {platform.python_version()}, SQLAlchemy {sqlalchemy.__version__}\n")
    found = record.measure()
    print(
        f"{record.RECORDS} records created and read: plain dataclass {found['plain_ms']:.2f} ms, "
        f"mirrored {found['mirrored_ms']:.2f} ms, ratio {found['ratio']:.2f}\n"
    )
    print(session.table())
