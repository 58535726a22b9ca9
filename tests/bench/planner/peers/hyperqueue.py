"""Runs processes that do nothing through a HyperQueue of our own, and prints the seconds."""

import sys
import time

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig

count, cores = int(sys.argv[1]), int(sys.argv[2])
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=cores))
    client = cluster.client()
    job = Job()
    for _ in range(count):
        job.program(["/bin/true"], stdout=None, stderr=None)
    begun = time.monotonic()
    submitted = client.submit(job)
    client.wait_for_jobs([submitted])
    print(time.monotonic() - begun)
