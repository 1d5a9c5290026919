"""Tables, targets and pictures of what was measured."""
