// Running without the interpreter's lock, and coming back to an interpreter that may be ending.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace hier {

// While Python ends it stops each thread that asks for the lock, by an exception that may leave no
// destructor: the process would end with SIGABRT. Such a thread stays where it is instead, as
// Python itself arranges from 3.14 on.
inline void take_gil_back(PyThreadState* state) noexcept {
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) ::pause();
  }
}

class WithoutGil {
 public:
  WithoutGil() : saved_(PyEval_SaveThread()) {}
  ~WithoutGil() { take_gil_back(saved_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* const saved_;
};

}  // namespace hier
