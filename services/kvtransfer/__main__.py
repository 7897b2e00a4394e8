"""Starts the directory, the one process of this service: `python -m services.kvtransfer`."""

import sys

from services.kvtransfer.directory.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
