// To be preloaded: gives each TCP socket the congestion control that PEER_CONGESTION names now.
// A network namespace cannot do this: there a default must be one that the whole machine allows.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int socket(int domain, int type, int protocol) {
  int (*original)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
  const int fd = original(domain, type, protocol);
  const int error = errno;
  const char* name = getenv("PEER_CONGESTION");
  const int is_tcp = (domain == AF_INET || domain == AF_INET6) && (type & 0xf) == SOCK_STREAM;
  if (fd >= 0 && name && is_tcp) {
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
  }
  errno = error;
  return fd;
}
