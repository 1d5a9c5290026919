// Owning file descriptors that a forked child does not keep.
//
// FD_CLOEXEC does not help a plain fork(): a DataLoader worker that inherits our sockets hides the
// death of its parent from every peer. So each Fd is known to a pthread_atfork handler, which
// closes it in the child.
#pragma once

#include <utility>

namespace hier {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd);  // takes ownership; -1 is empty
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd() { close(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void close() noexcept;

 private:
  int fd_ = -1;
};

// How many forks lie between this process and the first one. An object that notes it when it is
// made knows later whether it lives in a forked child, where threads and descriptors are gone.
unsigned fork_depth() noexcept;

}  // namespace hier
