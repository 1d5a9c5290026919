// What the kernel knows of the other host: TCP_INFO.
#include "transport/silence.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>

namespace hier {

bool is_unanswered(int error) {
  return error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH ||
         error == EHOSTDOWN || error == ENETDOWN;
}

double seconds_unanswered(int socket) {
  constexpr unsigned kRetransmissions = 2;  // one may be bad luck, or this host slept
  constexpr unsigned kProbes = 3;           // likewise; an answered one counts for nothing
  tcp_info info{};
  socklen_t bytes = sizeof info;
  if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &bytes) != 0) return 0;
  const bool data = info.tcpi_unacked > 0 && info.tcpi_retransmits >= kRetransmissions;
  // What never left this host, for it has no route, is probed for as if the window were full.
  const bool probes = info.tcpi_probes >= kProbes;
  return data || probes ? info.tcpi_last_ack_recv * 1e-3 : 0;
}

}  // namespace hier
