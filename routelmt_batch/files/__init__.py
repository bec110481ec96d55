"""Files on disks and objects in stores, by path or URI: read, created, and replaced safely."""
