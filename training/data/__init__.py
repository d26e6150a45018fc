"""From folders to records: scanning, captions, pairing, buckets, pixels."""
