"""Object stores in tests: an S3 server (moto's), and a proxy that makes its requests fail."""
