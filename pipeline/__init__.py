"""The stages from raw songs to a leaderboard, as Ray workflows."""
