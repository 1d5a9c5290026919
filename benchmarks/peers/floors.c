// What this machine can do at best, one line each: memcpy, add, and TCP over the loopback device.
//
//   copy CORES BYTES SECONDS   CORES processes copy BYTES each at the same time
//   add CORES BYTES SECONDS    d[i] += s[i]
//   update CORES BYTES SECONDS d[i] *= constant: what is written has just been read
//   hand CORES BYTES SECONDS   each writes BYTES of shared memory, then reads what another wrote
//   loopback CHUNK BYTES_PER_SECOND  that two cores carry over sockets when neither ever waits
//   hop SECONDS                half of a round trip of 4 bytes, both ends polling
// argv: the sizes. PEER_CONGESTION, with congestion.c preloaded, sets the congestion control.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "protocol.h"

enum { kCoresMax = 256, kBatches = 21, kBatchBytes = 32 << 20, kTrips = 5000, kChunk = 256 << 10 };
enum { kChunkLeast = 64 << 10, kChunkMost = 1 << 20, kWindow = 16 << 20, kForever = 100 };
static const double kStreamSeconds = 0.3;
enum { kOwn = 16 << 10 };  // bytes that stay in the first cache

typedef struct {
  atomic_int arrived;
  _Alignas(64) atomic_int hands;
  double seconds[kBatches][kCoresMax];
} Shared;

static Shared* shared_;
static cpu_set_t allowed_;  // before any process is pinned

static void pin(int index) {
  cpu_set_t one;
  CPU_ZERO(&one);
  for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed_) && index-- == 0) CPU_SET(cpu, &one);
  }
  sched_setaffinity(0, sizeof one, &one);
}

typedef enum { kCopy, kAdd, kUpdate } Pass;

static void pass(float* to, const float* from, size_t count, Pass what) {
  if (what == kCopy) memcpy(to, from, count * sizeof *to);
  if (what == kAdd) {
    for (size_t i = 0; i < count; ++i) to[i] += from[i];
  }
  if (what == kUpdate) {
    for (size_t i = 0; i < count; ++i) to[i] *= 0.5f;
  }
  __asm__ volatile("" : : "r"(to) : "memory");  // the compiler must not drop a repetition
}

static void work(int core, int cores, size_t nbytes, Pass what) {
  const size_t repeats = nbytes < kBatchBytes ? kBatchBytes / nbytes : 1;
  float *to, *from;
  if (posix_memalign((void**)&to, 4096, nbytes) || posix_memalign((void**)&from, 4096, nbytes)) {
    die("posix_memalign");
  }
  memset(to, 0, nbytes);
  memset(from, 0, nbytes);
  pin(core);
  for (int batch = 0; batch < kBatches; ++batch) {
    atomic_fetch_add(&shared_->arrived, 1);
    while (atomic_load(&shared_->arrived) < cores * (batch + 1)) sched_yield();
    const double begin = now();
    for (size_t i = 0; i < repeats; ++i) pass(to, from, nbytes / sizeof *to, what);
    shared_->seconds[batch][core] = (now() - begin) / (double)repeats;
  }
}

// Returns the seconds that all cores at once needed, in the best batch.
static double best(int cores) {
  while (wait(NULL) > 0) {
  }
  double least = 1e9;
  for (int batch = 0; batch < kBatches; ++batch) {
    double slowest = 0;
    for (int core = 0; core < cores; ++core) {
      if (shared_->seconds[batch][core] > slowest) slowest = shared_->seconds[batch][core];
    }
    if (slowest < least) least = slowest;
  }
  return least;
}

static void meet(int all) {
  atomic_fetch_add(&shared_->hands, 1);
  while (atomic_load(&shared_->hands) < all) {
  }
}

static void hand_over(int core, int cores, size_t nbytes, char* slots) {
  static float own[kOwn / sizeof(float)];
  char* mine = slots + (size_t)core * nbytes;
  const float* theirs = (const float*)(slots + (size_t)((core + 1) % cores) * nbytes);
  const int repeats = (int)(kBatchBytes / nbytes);
  int meetings = 0;
  pin(core);
  for (int batch = 0; batch < kBatches; ++batch) {
    meet(cores * ++meetings);
    const double begin = now();
    for (int i = 0; i < repeats; ++i) {
      for (size_t at = 0; at < nbytes; at += kOwn) memcpy(mine + at, own, kOwn);
      meet(cores * ++meetings);
      for (size_t at = 0; at < nbytes; at += kOwn) {
        pass(own, theirs + at / sizeof(float), kOwn / sizeof(float), kAdd);
      }
      meet(cores * ++meetings);
    }
    shared_->seconds[batch][core] = (now() - begin) / repeats;
  }
}

static double best_pass(int cores, size_t nbytes, Pass what) {
  atomic_store(&shared_->arrived, 0);
  for (int core = 0; core < cores; ++core) {
    if (fork() == 0) {
      work(core, cores, nbytes, what);
      _exit(0);
    }
  }
  return best(cores);
}

static double best_hand(int cores, size_t nbytes) {
  char* slots =
      mmap(NULL, (size_t)cores * nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (slots == MAP_FAILED) die("mmap");
  atomic_store(&shared_->hands, 0);
  for (int core = 0; core < cores; ++core) {
    if (fork() == 0) {
      hand_over(core, cores, nbytes, slots);
      _exit(0);
    }
  }
  return best(cores);
}

static void connected_pair(int fds[2]) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  const int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  if (bind(listener, (struct sockaddr*)&address, length) || listen(listener, 1)) die("listen");
  getsockname(listener, (struct sockaddr*)&address, &length);
  fds[0] = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fds[0], (struct sockaddr*)&address, length)) die("connect");
  fds[1] = accept(listener, NULL, NULL);
  for (int i = 0; i < 2; ++i) setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  close(listener);
}

static void receive_word(int fd) {
  int word;
  while (recv(fd, &word, sizeof word, MSG_DONTWAIT) != sizeof word) {
  }
}

static double hop(void) {
  int fds[2], word = 0;
  connected_pair(fds);
  const pid_t echo = fork();
  pin(echo == 0);
  if (echo == 0) {
    for (int i = 0; i < kTrips; ++i) {
      receive_word(fds[1]);
      if (send(fds[1], &word, sizeof word, 0) < 0) _exit(1);
    }
    _exit(0);
  }
  double least = 1e9;
  for (int i = 0; i < kTrips; ++i) {
    const double begin = now();
    if (send(fds[0], &word, sizeof word, 0) < 0) die("send");
    receive_word(fds[0]);
    const double half = (now() - begin) / 2;
    if (half < least) least = half;
  }
  waitpid(echo, NULL, 0);
  return least;
}

// Moves chunks for a while, or until the other end has gone. Returns the least CPU seconds a byte.
static double stream(int fd, size_t chunk, int sends, double seconds) {
  static char data[kChunkMost];
  double least = 1;
  for (const double start = now(); now() < start + seconds;) {
    const double begin = cpu_seconds();
    size_t bytes = 0;
    while (bytes < kWindow) {
      const ssize_t n = sends ? send(fd, data, chunk, MSG_NOSIGNAL) : recv(fd, data, chunk, 0);
      if (n <= 0) return least;
      bytes += (size_t)n;
    }
    const double taken = (cpu_seconds() - begin) / (double)bytes;
    if (taken < least) least = taken;
  }
  return least;
}

// Returns bytes per second that two cores can carry when neither ever waits: what both ends of a
// socket compute for a byte, by the clock of the CPU, halved. So queues and other work are no help
// and no harm.
static double loopback(size_t chunk) {
  int fds[2];
  connected_pair(fds);
  const pid_t sender = fork();
  if (sender == 0) {
    close(fds[1]);
    shared_->seconds[0][0] = stream(fds[0], chunk, 1, kForever);
    _exit(0);
  }
  close(fds[0]);
  const double receiving = stream(fds[1], chunk, 0, kStreamSeconds);
  close(fds[1]);
  waitpid(sender, NULL, 0);
  return 2 / (receiving + shared_->seconds[0][0]);
}

int main(int argc, char** argv) {
  shared_ = mmap(NULL, sizeof *shared_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared_ == MAP_FAILED) die("mmap");
  sched_getaffinity(0, sizeof allowed_, &allowed_);
  const int all = (int)sysconf(_SC_NPROCESSORS_ONLN);
  setvbuf(stdout, NULL, _IONBF, 0);  // a forked child must not print again what its parent did
  for (int cores = 1; cores <= all && cores <= kCoresMax; cores *= 2) {
    for (int i = 1; i < argc; ++i) {
      const size_t nbytes = strtoul(argv[i], NULL, 10);
      printf("copy %d %zu %.9f\n", cores, nbytes, best_pass(cores, nbytes, kCopy));
      printf("add %d %zu %.9f\n", cores, nbytes, best_pass(cores, nbytes, kAdd));
      printf("update %d %zu %.9f\n", cores, nbytes, best_pass(cores, nbytes, kUpdate));
    }
  }
  for (int cores = 2; cores <= all && cores <= kCoresMax; cores *= 2) {
    printf("hand %d %d %.9f\n", cores, kChunk, best_hand(cores, kChunk));
  }
  for (size_t chunk = kChunkLeast; chunk <= kChunkMost; chunk *= 2) {
    printf("loopback %zu %.0f\n", chunk, loopback(chunk));
  }
  printf("hop %.9f\n", hop());
}
