// Allreduces written by hand on TCP sockets, with nothing in between: what a schedule, an engine and
// checks cost beside them. Halving/doubling needs a power of two; the ring's chunks are as equal as
// can be. A shared library: benchmarks/networks/delay.py gives connected, nonblocking sockets.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

static void add(float* to, const float* from, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] += from[i];
}

// Sends and receives at the same time; adds what has come whole, if `sum` is where to. Returns 0, or
// -1 with errno.
static int exchange(int to, const float* out, size_t out_count, int from, float* in,
                    size_t in_count, float* sum) {
  size_t sent = 0, received = 0, added = 0;
  const size_t out_bytes = out_count * sizeof(float), in_bytes = in_count * sizeof(float);
  while (sent < out_bytes || received < in_bytes) {
    int moved = 0;
    if (sent < out_bytes) {
      const ssize_t n = send(to, (const char*)out + sent, out_bytes - sent, MSG_NOSIGNAL);
      if (n < 0 && errno != EAGAIN) return -1;
      if (n > 0) sent += (size_t)n, moved = 1;
    }
    if (received < in_bytes) {
      const ssize_t n = recv(from, (char*)in + received, in_bytes - received, 0);
      if (n == 0) errno = ECONNRESET;
      if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
      if (n > 0) received += (size_t)n, moved = 1;
      const size_t whole = received / sizeof(float);
      if (sum) add(sum + added, in + added, whole - added), added = whole;
    }
    if (moved) continue;
    struct pollfd fds[2] = {{to, sent < out_bytes ? POLLOUT : 0, 0},
                            {from, received < in_bytes ? POLLIN : 0, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return -1;
  }
  return 0;
}

// fds[k] leads to rank ^ (1 << k).
int bare_halving_doubling(int rank, int size, const int* fds, float* data, size_t count,
                          float* scratch) {
  size_t first[32], counts[32];
  size_t begin = 0, length = count;
  int rounds = 0;
  for (int distance = size / 2; distance > 0; distance /= 2, ++rounds) {
    const size_t lower = length / 2, upper = length - lower;
    const int up = (rank & distance) != 0;
    const int fd = fds[__builtin_ctz((unsigned)distance)];
    first[rounds] = begin, counts[rounds] = length;
    const size_t mine = up ? begin + lower : begin, theirs = up ? begin : begin + lower;
    const size_t keep = up ? upper : lower, give = up ? lower : upper;
    if (exchange(fd, data + theirs, give, fd, scratch, keep, data + mine)) return -1;
    begin = mine, length = keep;
  }
  for (int distance = 1; distance < size; distance *= 2) {
    const int fd = fds[__builtin_ctz((unsigned)distance)];
    --rounds;
    const size_t other = begin == first[rounds] ? begin + length : first[rounds];
    const size_t others = counts[rounds] - length;
    if (exchange(fd, data + begin, length, fd, data + other, others, NULL)) return -1;
    begin = first[rounds], length = counts[rounds];
  }
  return 0;
}

// fds[0] leads to the next rank, fds[1] to the one before.
int bare_ring(int rank, int size, const int* fds, float* data, size_t count, float* scratch) {
  const size_t n = (size_t)size;
#define BEGIN(chunk) ((chunk) % n * count / n)
#define COUNT(chunk) (((chunk) % n + 1) * count / n - BEGIN(chunk))
  for (size_t step = 0; step < n - 1; ++step) {
    const size_t out = (size_t)rank + n - step, in = out + n - 1;
    if (exchange(fds[0], data + BEGIN(out), COUNT(out), fds[1], scratch, COUNT(in),
                 data + BEGIN(in))) {
      return -1;
    }
  }
  for (size_t step = 0; step < n - 1; ++step) {
    const size_t out = (size_t)rank + n + 1 - step, in = out + n - 1;
    if (exchange(fds[0], data + BEGIN(out), COUNT(out), fds[1], data + BEGIN(in), COUNT(in),
                 NULL)) {
      return -1;
    }
  }
  return 0;
}
