// The registry of descriptors that the atfork handler closes in a child.
#include "base/fd.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <set>

#include "base/error.h"

namespace hier {

namespace {

std::atomic<unsigned> depth{0};  // written in a forked child before it has a second thread

// Never destroyed: descriptors may be closed by destructors that run at exit.
struct Registry {
  std::mutex mutex;
  std::set<int> open;
};

Registry& registry() {
  static Registry* instance = [] {
    auto* created = new Registry;
    pthread_atfork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); },
                   [] {
                     for (int fd : registry().open) ::close(fd);
                     registry().open.clear();
                     depth.fetch_add(1, std::memory_order_relaxed);
                     registry().mutex.unlock();
                   });
    return created;
  }();
  return *instance;
}

}  // namespace

Fd::Fd(int fd) : fd_(fd) {
  if (fd < 0) return;
  const std::lock_guard lock(registry().mutex);
  registry().open.insert(fd);
}

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::exchange(other.fd_, -1);
    origin_ = other.origin_;
  }
  return *this;
}

void Fd::close() noexcept {
  if (fd_ < 0) return;
  const int fd = std::exchange(fd_, -1);
  if (origin_.inherited()) return;  // it was closed at the fork
  const std::lock_guard lock(registry().mutex);
  registry().open.erase(fd);
  ::close(fd);
}

unsigned fork_depth() noexcept {
  registry();  // installs the handler that counts
  return depth.load(std::memory_order_relaxed);
}

void Origin::check() const {
  if (!inherited()) return;
  throw UsageError(
      "this process was forked from a member of the group and is no member itself: "
      "make a new group in it");
}

}  // namespace hier
