// Hosts that do not answer: what the kernel knows of them.
//
// The kernel of a rank's host answers for it, whatever the rank does: computes for minutes, holds
// the interpreter's lock, is stopped. So no answer means no host, or no way to it.
//
// While nothing is under way, the kernel's keepalive probes find that out. While something is, it
// sends none, and retransmits for a quarter of an hour. TCP_USER_TIMEOUT would end that earlier,
// but kills healthy connections too: those whose peer does not read, so that its window is full.
// There the kernel has nothing unacknowledged, and its probes of the window are answered.
#pragma once

namespace hier {

// Whether a system call on a connection failed since the other host does not answer.
bool is_unanswered(int error);

// Seconds since the other host has acknowledged anything, if it should have by now: something was
// retransmitted or probed for several times. 0 where it owes nothing, or the socket is no TCP
// socket.
double seconds_unanswered(int socket);

}  // namespace hier
