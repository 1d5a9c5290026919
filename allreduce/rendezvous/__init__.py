"""From a launcher's variables to connected sockets and shared memory."""
