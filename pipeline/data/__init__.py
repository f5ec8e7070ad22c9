"""From songs to shards to the windows that training reads."""
