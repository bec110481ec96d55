"""Every router that a job can use. One registry, by `router.kind`."""
