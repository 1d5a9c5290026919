// What every peer written in C does: obeys the lines of its pipe, times calls, checks sums,
// answers.
//
// Pipes: FOLDER/RANK.in brings commands, FOLDER/RANK.out takes answers; benchmarks/ranks.py speaks
// the same. A rank sleeps in read() between commands, so that it disturbs nobody else's turn.
//   command  "measure PLAYER BYTES float32 OP WARM_UP_CALLS CALLS CHECK\n"; OP: "sum" or "avg"
//   answer   8-byte length, then doubles: wrong elements, CPU seconds, seconds of each call
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef void (*Allreduce)(float* data, size_t count);

enum { kWarmUpFloats = 1 << 18, kPeriod = 7 };

// What is measured: a sum, which is then scaled where the mean is asked for.
typedef struct {
  Allreduce sum;
  float scale;  // 1: none
} Call;

static void die(const char* what) {
  perror(what);
  exit(1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void reduce(Call call, float* data, size_t count) {
  call.sum(data, count);
  if (call.scale != 1) {
    for (size_t i = 0; i < count; ++i) data[i] *= call.scale;
  }
}

// Sums rank + (i mod 7): small integers, exact in any order. Returns how many elements are wrong.
static size_t wrong_sums(float* data, size_t count, int rank, int size, Call call) {
  for (size_t i = 0; i < count; ++i) data[i] = (float)(rank + (int)(i % kPeriod));
  reduce(call, data, count);
  size_t wrong = 0;
  for (size_t i = 0; i < count; ++i) {
    const int sum = size * (size - 1) / 2 + size * (int)(i % kPeriod);
    wrong += data[i] != (float)sum * call.scale;
  }
  memset(data, 0, count * sizeof *data);
  return wrong;
}

static void write_all(int fd, const void* data, size_t nbytes) {
  for (const char* at = data; nbytes > 0;) {
    ssize_t n = write(fd, at, nbytes);
    if (n < 0) die("answer");
    at += n;
    nbytes -= (size_t)n;
  }
}

static void measure(int out, float* data, size_t count, int warm_up, int calls, size_t wrong,
                    Call call) {
  const uint64_t nbytes = (2 + (uint64_t)calls) * sizeof(double);
  double* answer = malloc(nbytes);
  if (!answer) die("malloc");
  reduce(call, data, count < kWarmUpFloats ? count : kWarmUpFloats);  // brings the ranks together
  for (int i = 0; i < warm_up; ++i) reduce(call, data, count);
  const double cpu = cpu_seconds();
  for (int i = 0; i < calls; ++i) {
    const double begin = now();
    reduce(call, data, count);
    answer[2 + i] = now() - begin;
  }
  answer[0] = (double)wrong;
  answer[1] = cpu_seconds() - cpu;
  write_all(out, &nbytes, sizeof nbytes);
  write_all(out, answer, nbytes);
  free(answer);
}

static FILE* open_pipe(const char* folder, int rank, const char* suffix, const char* mode) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%d.%s", folder, rank, suffix);
  FILE* file = fopen(path, mode);
  if (!file) die(path);
  return file;
}

// Obeys until the other end closes the pipe.
static inline void serve(const char* folder, int rank, int size, Allreduce allreduce) {
  FILE* in = open_pipe(folder, rank, "in", "r");
  FILE* out = open_pipe(folder, rank, "out", "w");
  float* data = NULL;
  size_t held = 0, nbytes;
  int warm_up, calls, check;
  char op[8];
  const char* format = " measure %*s %zu %*s %7s %d %d %d";
  while (fscanf(in, format, &nbytes, op, &warm_up, &calls, &check) == 5) {
    if (nbytes != held) {
      free(data);
      if (posix_memalign((void**)&data, 4096, nbytes)) die("posix_memalign");
      memset(data, 0, held = nbytes);
    }
    const size_t count = nbytes / sizeof *data;
    const Call call = {allreduce, strcmp(op, "avg") == 0 ? 1 / (float)size : 1};
    const size_t wrong = check ? wrong_sums(data, count, rank, size, call) : 0;
    measure(fileno(out), data, count, warm_up, calls, wrong, call);
  }
  free(data);
}
