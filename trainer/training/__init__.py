"""What a worker does: loop, learning rate, virtual workers, metrics, evaluation."""
