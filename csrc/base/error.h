// The typed errors of the core. Each names what was attempted, with whom, the cause and the remedy.
#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace hier {

// Kinds travel in abort frames, so that every rank raises the same type. Append only.
enum class ErrorKind : unsigned char {
  usage = 1,
  peer,
  timeout,
  mismatch,
  system,
  cuda,
  aborted,
  integrity
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& what) : std::runtime_error(what), kind_(kind) {}
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
};

// The caller passed something that cannot work. Python: ValueError.
struct UsageError : Error {
  explicit UsageError(const std::string& what) : Error(ErrorKind::usage, what) {}
};

// A peer died, left, or its connection broke. Python: ConnectionError.
struct PeerError : Error {
  PeerError(int peer, const std::string& what) : Error(ErrorKind::peer, what), rank(peer) {}
  int rank;
};

// A deadline passed. Python: TimeoutError.
struct Timeout : Error {
  explicit Timeout(const std::string& what) : Error(ErrorKind::timeout, what) {}
};

// Two ranks called different collectives, or the same one with different arguments. Python:
// RuntimeError.
struct MismatchError : Error {
  explicit MismatchError(const std::string& what) : Error(ErrorKind::mismatch, what) {}
};

// What a peer sent arrived as something else. Python: IntegrityError, a MismatchError.
struct IntegrityError : Error {
  explicit IntegrityError(const std::string& what) : Error(ErrorKind::integrity, what) {}
};

// The operating system refused. Python: OSError.
struct SystemError : Error {
  SystemError(int error, const std::string& attempted)
      : Error(ErrorKind::system, attempted + ": " + std::system_category().message(error)),
        error_number(error) {}
  int error_number;
};

struct CudaError : Error {
  explicit CudaError(const std::string& what) : Error(ErrorKind::cuda, what) {}
};

// The group was aborted or is used after it failed or closed. Python: RuntimeError.
struct AbortedError : Error {
  explicit AbortedError(const std::string& what) : Error(ErrorKind::aborted, what) {}
};

// Passes a system call's result through, or throws SystemError with errno.
template <class T>
T check_errno(T result, const char* attempted) {
  if (result < 0) throw SystemError(errno, attempted);
  return result;
}

}  // namespace hier
