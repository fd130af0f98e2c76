"""Samples in shards: tar files and Parquet, on disks, web servers and object storage."""
