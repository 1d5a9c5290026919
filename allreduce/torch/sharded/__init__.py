"""SGD whose state and work are split over the ranks."""
