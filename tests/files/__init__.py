"""Tests of files on disks and in stores."""
