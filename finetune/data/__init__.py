"""From `--data` to reproducible batches: readers, decoding, transforms, sampling, caches."""
