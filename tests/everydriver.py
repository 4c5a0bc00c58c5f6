"""Every storage driver that this kernel has: devicemapper too, in the guest."""

import os
from functools import partial

from minidocker.devicemapper import Devicemapper
from minidocker.drivers import DRIVERS
from minidocker.poolrecords import PoolOptions


SMALL = PoolOptions(base_size=96 << 20, data_size=128 << 20, metadata_size=4 << 20)
EVERY = dict(DRIVERS)
if os.environ.get("UML_RUN"):
    EVERY["devicemapper"] = partial(Devicemapper, options=SMALL)  # type: ignore[assignment]
