"""For every test, in every worker: few threads, and no time limit that a busy machine would exceed."""

import os

from hypothesis import HealthCheck, settings

# Set before numpy and llama.cpp are loaded; child processes inherit it. The work is small and the workers share the
# cores: with more threads, most of the time goes to threads that spin at barriers and wait for one that has no core.
os.environ.update(OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
