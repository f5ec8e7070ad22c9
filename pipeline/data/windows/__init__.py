"""What training reads: draw plan, shards near and far, batches."""
