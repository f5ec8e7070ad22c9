"""Windows for training: draw plan, shards in a folder or an object store, batches."""
