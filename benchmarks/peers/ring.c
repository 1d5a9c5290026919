// A ring written by hand over TCP sockets: reduce-scatter, then allgather. argv: FOLDER RANK SIZE.
//
// The same messages as our schedule `ring`, with nothing in between: it shows what interpreting a
// schedule costs. It polls for a while before it sleeps where each rank can have a core.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include "protocol.h"

enum { kScratchFloats = 64 << 10, kPolls = 100 };

static int rank_, size_, to_next_, from_previous_, polls_;
static float scratch_[kScratchFloats + 1];

static void port_file(char* path, size_t length, const char* folder, int rank) {
  snprintf(path, length, "%s/%d.port", folder, rank);
}

static int listen_and_tell(const char* folder) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(fd, (struct sockaddr*)&address, length) || listen(fd, 1)) die("listen");
  getsockname(fd, (struct sockaddr*)&address, &length);
  char path[4096], unfinished[4112];
  port_file(path, sizeof path, folder, rank_);
  snprintf(unfinished, sizeof unfinished, "%s.new", path);
  FILE* file = fopen(unfinished, "w");
  fprintf(file, "%d", ntohs(address.sin_port));
  fclose(file);
  rename(unfinished, path);
  return fd;
}

static int connect_to(const char* folder, int rank) {
  char path[4096];
  port_file(path, sizeof path, folder, rank);
  FILE* file = NULL;
  for (int tries = 0; !(file = fopen(path, "r")); ++tries) {
    if (tries == 3000) die(path);
    usleep(10000);
  }
  int port = 0;
  if (fscanf(file, "%d", &port) != 1) die(path);
  fclose(file);
  struct sockaddr_in address = {.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, (struct sockaddr*)&address, sizeof address)) die("connect");
  return fd;
}

static void make_ready(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  fcntl(fd, F_SETFL, O_NONBLOCK);
}

// Returns bytes moved; 0 if the socket is not ready.
static size_t moved(ssize_t n) {
  if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) die("neighbour");
  return n < 0 ? 0 : (size_t)n;
}

// Receives into `into`, or adds to it. *part: bytes of a float that is not complete yet.
static size_t receive(float* into, size_t nbytes, int add, size_t* part) {
  if (!add) return moved(recv(from_previous_, into, nbytes, 0));
  const size_t room = sizeof(float) * kScratchFloats;
  const size_t want = nbytes < room ? nbytes : room;
  const size_t got = moved(recv(from_previous_, (char*)scratch_ + *part, want, 0));
  const size_t count = (*part + got) / sizeof(float);
  float* at = (float*)((char*)into - *part);
  for (size_t i = 0; i < count; ++i) at[i] += scratch_[i];
  *part = (*part + got) % sizeof(float);
  memmove(scratch_, scratch_ + count, *part);
  return got;
}

static void exchange(const float* out, size_t out_bytes, float* in, size_t in_bytes, int add) {
  size_t part = 0;
  for (int idle = 0; out_bytes > 0 || in_bytes > 0;) {
    size_t sent = 0, got = 0;
    if (out_bytes > 0) sent = moved(send(to_next_, out, out_bytes, MSG_NOSIGNAL));
    if (in_bytes > 0) got = receive(in, in_bytes, add, &part);
    out = (const float*)((const char*)out + sent);
    in = (float*)((char*)in + got);
    out_bytes -= sent;
    in_bytes -= got;
    idle = sent + got > 0 ? 0 : idle + 1;
    if (idle > polls_) {
      struct pollfd ready[2] = {{out_bytes > 0 ? to_next_ : -1, POLLOUT, 0},
                                {in_bytes > 0 ? from_previous_ : -1, POLLIN, 0}};
      poll(ready, 2, -1);
    }
  }
}

static void allreduce(float* data, size_t count) {
  for (int step = 0; step < 2 * (size_ - 1); ++step) {
    const int adding = step < size_ - 1;
    const size_t out = (size_t)((rank_ - step + 2 * size_) % size_);
    const size_t in = (out + (size_t)size_ - 1) % (size_t)size_;
    const size_t n = (size_t)size_;
    const size_t a = count * out / n, b = count * (out + 1) / n;
    const size_t c = count * in / n, d = count * (in + 1) / n;
    exchange(data + a, (b - a) * sizeof *data, data + c, (d - c) * sizeof *data, adding);
  }
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  rank_ = atoi(argv[2]);
  size_ = atoi(argv[3]);
  polls_ = size_ <= sysconf(_SC_NPROCESSORS_ONLN) ? kPolls : 0;
  const int listener = listen_and_tell(argv[1]);
  to_next_ = connect_to(argv[1], (rank_ + 1) % size_);
  from_previous_ = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  make_ready(to_next_);
  make_ready(from_previous_);
  serve(argv[1], rank_, size_, allreduce);
}
