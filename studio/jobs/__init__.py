"""Long work: job folders, the queue that hands them out, the worker process that owns the device."""
