"""Import before torch: how its OpenMP threads wait for each other.

By default libgomp's threads spin at a barrier.  Where cores are shared (virtual machines, two jobs on one node) the
thread that is waited for may be off its core, and single steps then take seconds instead of a tenth.  A short spin costs
nothing measurable where the cores are free.  A value that the user has set stands.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")
