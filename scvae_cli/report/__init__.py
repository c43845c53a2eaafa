"""Pictures of what a model says, for people to look at."""
