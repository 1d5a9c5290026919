// Owning file descriptors that a forked child does not keep.
//
// FD_CLOEXEC does not help a plain fork(): a DataLoader worker that inherits our sockets hides the
// death of its parent from every peer. So each Fd is known to a pthread_atfork handler, which
// closes it in the child.
#pragma once

#include <utility>

#include "base/fork.h"

namespace hier {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd);  // takes ownership; -1 is empty
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)), origin_(other.origin_) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd() { close(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void close() noexcept;

 private:
  int fd_ = -1;
  Origin origin_;  // a child may have a descriptor of this number, which is not this one
};

}  // namespace hier
