"""What ships: presets, their files and cards, the leaderboard, the numbers on a card."""
