"""What the tests compare with: optimizer records and their runner, random programs, published trajectories."""
