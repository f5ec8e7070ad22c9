"""What several tests share, a file for each topic."""
